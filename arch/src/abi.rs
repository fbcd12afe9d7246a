//! Structures of the syscall interface whose layout is each architecture's own.

/// `struct sigaction` of the kernel (`include/linux/signal_types.h`): offsets and widths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SigactionLayout {
    /// Of the whole.
    pub size: usize,
    /// The handler, a word.
    pub handler: usize,
    /// The flags: offset and width.
    pub flags: (usize, usize),
    /// The restorer, a word, where there is one.
    pub restorer: Option<usize>,
    /// The mask: offset; its width is [`crate::Arch::SIGSET`].
    pub mask: usize,
}

/// `stack_t` (`include/uapi/asm-generic/signal.h`; MIPS has its own).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackLayout {
    /// Of the whole.
    pub bytes: usize,
    /// The base, a word.
    pub sp: usize,
    /// The flags, an int.
    pub flags: usize,
    /// The size, a word.
    pub size: usize,
}

/// What a 64-bit machine does differently for 32-bit code. Some calls note how they were made, so they
/// have to be made so again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompatAbi {
    /// Number of `rt_sigaction`.
    pub rt_sigaction: u32,
    /// Number of `set_robust_list`.
    pub set_robust_list: u32,
    /// Number of `get_robust_list`.
    pub get_robust_list: u32,
    /// `struct compat_sigaction`; its words are of 32 bits.
    pub sigaction: SigactionLayout,
}
