//! The state of one thread that lives in the processor.

/// All of it, as ptrace moves it.
#[derive(Clone, Debug, PartialEq)]
pub struct ThreadState<R> {
    /// General registers.
    pub regs: R,
    /// The regset [`crate::Arch::FP_NOTE`].
    pub fp: Vec<u8>,
    /// Those of [`crate::Arch::MORE_NOTES`] that the thread has.
    pub more: Vec<(u32, Vec<u8>)>,
    /// The thread areas of [`crate::Arch::TLS_SLOTS`], in order.
    pub tls: Vec<Vec<u8>>,
}
