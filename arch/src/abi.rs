//! The syscall interface where it is each architecture's own: layouts, numbers, widths.

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

/// How an argument of 64 bits (`loff_t`, `u64`) lies among the arguments of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wide {
    /// It is one argument.
    Word,
    /// It is two, the lower half first.
    Pair,
    /// It is two, of which the first has an even index; an argument that nobody reads fills the gap.
    AlignedPair,
}

impl Wide {
    /// The arguments that a wide one becomes, with `before` arguments in front of it.
    pub fn split(self, before: usize, value: u64) -> Vec<u64> {
        let halves = [value & 0xffff_ffff, value >> 32];
        match self {
            Self::Word => vec![value],
            Self::AlignedPair if before % 2 == 1 => vec![0, halves[0], halves[1]],
            Self::Pair | Self::AlignedPair => halves.to_vec(),
        }
    }
}

/// The calls that a machine has under other names, or with other arguments, than the 64-bit ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    /// How an argument of 64 bits is passed.
    pub wide: Wide,
    /// `mmap`: its number, and the bytes in a unit of its offset.
    pub mmap: (u32, u64),
    /// `F_SETLK` of `fcntl`, with a lock of 64-bit offsets.
    pub set_lock: u32,
    /// `IPC_64`: what is added to a command of `msgctl`, `semctl` or `shmctl` where the kernel would take it as one of old,
    /// with structures of old. Zero where it has no such.
    pub ipc_64: i32,
    /// `SHMLBA`, if `shmat` insists on it: of what its address must be a multiple. The kernel itself chooses others.
    pub shmlba: Option<u64>,
    /// `FIRST_USER_ADDRESS`, in pages, but not the first of all: below it nobody may map anything.
    pub first_user_page: u64,
    /// Whether an interrupted call has been rewound, and forgotten, when the tracer sees the registers:
    /// see [`crate::Regs::woken_in`].
    pub rewound: bool,
    /// `_llseek`, where the result of `lseek` is too narrow.
    pub llseek: Option<u32>,
    /// Calls whose arguments are too narrow (16-bit user ids, 32-bit times), and which takes their place.
    /// So times in calls have 64-bit halves everywhere, but in `getitimer` and `setitimer`.
    pub wider: &'static [(u32, u32)],
}

/// `siginfo_t`: offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiginfoLayout {
    /// `si_code`.
    pub code: usize,
    /// `si_pid` of a signal that a process sent.
    pub sender: usize,
}

/// Thread areas: where the kernel keeps a thread's TLS, if not in a register or a regset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadAreas {
    /// `PTRACE_GET_THREAD_AREA`, which writes an area to an address.
    pub get: u32,
    /// Who sets one.
    pub set: SetArea,
    /// Their numbers; none where there are no such areas.
    pub slots: &'static [u32],
    /// Bytes of one.
    pub size: usize,
}

impl ThreadAreas {
    /// A machine without.
    pub const NONE: Self = Self {
        get: 0,
        set: SetArea::Itself,
        slots: &[],
        size: 0,
    };
}

/// Who sets a thread area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetArea {
    /// This ptrace request, which reads it from an address.
    From(u32),
    /// This ptrace request, which takes it as a number.
    Value(u32),
    /// Only the thread itself, by a call: [`crate::CoreImage::tls_call`].
    Itself,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_argument_is_one_two_or_three() {
        let value = 0x1_0000_0002;
        assert_eq!(Wide::Word.split(3, value), [value]);
        assert_eq!(Wide::Pair.split(3, value), [2, 1]);
        assert_eq!(Wide::AlignedPair.split(3, value), [0, 2, 1]);
        assert_eq!(Wide::AlignedPair.split(2, value), [2, 1]);
    }
}
