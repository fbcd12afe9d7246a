//! The stub: what runs in a task on our behalf.

/// The machine code of the interpreter, position-independent.
///
/// It ends by sending its own thread the signal of the [`Entry`]: under a tracer that is a stop;
/// without one, the signal is ignored and the thread falls through to the healing code, which puts
/// it back as it was found. So a tracer may die at any moment.
#[derive(Clone, Copy, Debug)]
pub struct Stub {
    /// The bytes, from `stub.S` (kept fresh by `cargo xtask stub`).
    pub code: &'static [u8],
    /// Offset of the entry that interprets records.
    pub batch: usize,
    /// Offset of the entry that makes one call whose arguments are in registers.
    pub once: usize,
    /// Offset of the instruction pointer in the final stop.
    pub stopped: usize,
}

/// How to enter the stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What to do.
    pub job: Job,
    /// Process and thread that gets the closing signal: the thread itself.
    pub thread: (u32, u32),
    /// The closing signal: one that the task ignores.
    pub signal: u32,
    /// Address of the bytes of [`crate::Arch::heal`], or 0 where the task dies with its tracer.
    pub heal: u64,
}

/// What the stub does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Interpret the records at this address.
    Batch(u64),
    /// One call.
    Once {
        /// Syscall number.
        nr: u64,
        /// Arguments.
        args: [u64; 6],
    },
}

/// What a thread needs to put itself back.
#[derive(Clone, Debug)]
pub struct HealContext<'a, R> {
    /// The registers as they were when the thread was stopped: the machine knows whether an interrupted
    /// call can be resumed from where it heals.
    pub regs: &'a R,
    /// The regsets of [`crate::Arch::KEPT_NOTES`], as they were then.
    pub kept: &'a [(u32, Vec<u8>)],
    /// The signal mask to go on with.
    pub mask: &'a [u8],
    /// Address of records to run first (descriptors to close …), or 0.
    pub undo: u64,
    /// Memory to unmap first: address and length, or zeros.
    pub unmap: (u64, u64),
}
