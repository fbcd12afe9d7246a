//! The contract between the engine and a machine.
//!
//! An architecture is described by bytes and pure functions: nothing here, and nothing in the crates
//! that implement it, runs a syscall or asks what host it is built on. So all of them are built and
//! tested everywhere, and a 64-bit driver can hold a 32-bit task.
//!
//! Invariants: no I/O, no `cfg(target_arch)`, explicit widths, little-endian images.
#![forbid(unsafe_code)]

mod record;
mod regs;
mod stub;

pub use record::{END, Record, RecordLayout, TOLERATE};
pub use regs::{Regs, RegsTransfer};
pub use stub::{Entry, HealContext, Job, Stub};

/// One machine: what the engine has to know to hold a task of it.
pub trait Arch {
    /// The general registers of one thread.
    type Regs: Regs;

    /// The kernel's name of the machine, as in `uname -m`.
    const NAME: &'static str;

    /// Bytes in a pointer and in a syscall argument.
    const WORD: usize;

    /// How registers travel between the kernel and the tracer.
    const TRANSFER: RegsTransfer;

    /// The regset that holds all FP and SIMD state (`NT_*`, `include/uapi/linux/elf.h`).
    const FP_NOTE: u32;

    /// Bytes of a kernel signal set.
    const SIGSET: usize;

    /// The interpreter of records.
    const STUB: Stub;

    /// Points a thread at the stub.
    ///
    /// Only registers change. The thread must be stopped; `code` is where [`Arch::STUB`] lies in it.
    fn enter(regs: &mut Self::Regs, code: u64, entry: &Entry);

    /// The result of an [`Entry::Once`] call, once the stub has stopped.
    fn once_result(regs: &Self::Regs) -> i64;

    /// The bytes with which the stub puts a thread back by itself when its tracer has died.
    fn heal(context: &HealContext<'_, Self::Regs>) -> Vec<u8>;

    /// Bytes that [`Arch::heal`] gives.
    const HEAL_SIZE: usize;
}
