//! The contract between the engine and a machine.
//!
//! An architecture is described by bytes and pure functions: nothing here, and nothing in the crates
//! that implement it, runs a syscall or asks what host it is built on. So all of them are built and
//! tested everywhere, and a 64-bit driver can hold a 32-bit task.
//!
//! Invariants: no I/O, no `cfg(target_arch)`, explicit widths, little-endian images.
#![forbid(unsafe_code)]

mod abi;
#[cfg(feature = "image")]
mod core_image;
mod record;
mod regs;
mod stub;
mod thread;
mod waiting;

pub use abi::{
    Calls, CompatAbi, SetArea, SigactionLayout, SiginfoLayout, StackLayout, ThreadAreas, Wide,
};
#[cfg(feature = "image")]
pub use core_image::{CoreError, CoreImage, CpuChecks};
pub use record::{COMPAT, END, Record, RecordLayout, TOLERATE};
pub use regs::{Next, Regs, RegsTransfer, Timeout, TimeoutForm};
pub use stub::{Entry, HealContext, Job, Stub};
pub use thread::ThreadState;
pub use waiting::{Interrupted, WaitTable, Woken};

/// Why a thread cannot go on here: [`Arch::lack`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lack {
    /// What it has in use, and is not here.
    pub fact: &'static str,
    /// What the user can do.
    pub remedy: &'static str,
}

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

    /// Further regsets that are a thread's state. A kernel, or a thread, may lack any.
    const MORE_NOTES: &'static [u32];

    /// Further regsets that the image format has no field for: they are kept in an extension of it.
    const EXTRA_NOTES: &'static [u32];

    /// A regset that nobody sets: how kernel and processor do something that the thread's memory has traces of.
    /// It goes on only where this is the same.
    const FIXED_NOTE: Option<u32>;

    /// Regsets that not every processor has, or has as large: what a new thread has of them here is looked up before
    /// anything is restored.
    const BORN_NOTES: &'static [u32];

    /// Regsets that are read when a thread is seized: those that calls of the stub destroy, and those
    /// that [`Arch::heal`] needs. A kernel, or a thread, may lack any.
    const KEPT_NOTES: &'static [u32];

    /// Thread areas (`PTRACE_GET_THREAD_AREA`); none where TLS is a register or a regset.
    const TLS: ThreadAreas;

    /// What is special about its calls.
    const CALLS: Calls;

    /// `siginfo_t`.
    const SIGINFO: SiginfoLayout;

    /// `struct sigaction` as `rt_sigaction(2)` takes it.
    const SIGACTION: SigactionLayout;

    /// The machine's 32-bit code, if there is such.
    const COMPAT: Option<CompatAbi>;

    /// `stack_t` as `sigaltstack(2)` takes it.
    const STACK: StackLayout;

    /// Where the components of [`Arch::FP_NOTE`] lie, if the processor has a say in that.
    type FpLayout: Clone + core::fmt::Debug + PartialEq + Send + 'static;

    /// The layout, from what the processor says of itself: on x86 `identify` is CPUID, a function of
    /// leaf and subleaf that gives eax, ebx, ecx, edx.
    fn fp_layout(identify: &dyn Fn(u32, u32) -> [u32; 4]) -> Self::FpLayout;

    /// The regset with the FP and SIMD state on a processor of this layout.
    fn fp_note(_: &Self::FpLayout) -> u32 {
        Self::FP_NOTE
    }

    /// Bytes of a kernel signal set.
    const SIGSET: usize;

    /// The interpreter of records.
    const STUB: Stub;

    /// Whether a task in call `nr` may be waiting for a time counted from when the call was made,
    /// whichever of the machine's tables of calls the number is of.
    fn may_time_out(nr: u64, args: &[u64; 6]) -> bool;

    /// Points a thread at the stub.
    ///
    /// Only registers change. The thread must be stopped; `code` is where [`Arch::STUB`] lies in it.
    fn enter(regs: &mut Self::Regs, code: u64, entry: &Entry);

    /// The result of an [`Entry::Once`] call, once the stub has stopped.
    fn once_result(regs: &Self::Regs) -> i64;

    /// Whether a thread that stands before these bytes is in code that the kernel has put there for this
    /// moment, of which it alone knows where it leads: such a thread is let run until it is past. `None`
    /// where kernels do no such thing.
    const PASSING: Option<fn(&[u8; 8]) -> bool>;

    /// Whether a regset of [`Arch::EXTRA_NOTES`] holds anything that a new thread lacks.
    fn is_extra(note: u32, bytes: &[u8]) -> bool;

    /// What keeps a thread that had these bytes in a regset of [`Arch::BORN_NOTES`] from going on where a new thread has
    /// `here` of it, or nothing. What it does not have in use keeps it from nothing.
    fn lack(note: u32, bytes: &[u8], here: Option<&[u8]>, layout: &Self::FpLayout) -> Option<Lack>;

    /// What a program has been told of its processor, by its auxiliary vector, that it or its libraries use unasked, and
    /// that is not here.
    fn lack_of_told(auxv: &[u64], layout: &Self::FpLayout) -> Option<Lack>;

    /// Ways to protect memory that this processor has beside the usual three: bits of mmap(2).
    fn protections(layout: &Self::FpLayout) -> u32;

    /// Of the regsets that were kept ([`Arch::KEPT_NOTES`]), the one that must be set again after the
    /// thread has run calls of the stub.
    fn lost_in_calls(kept: &[(u32, Vec<u8>)]) -> Option<&(u32, Vec<u8>)>;

    /// The bytes with which the stub puts a thread back by itself when its tracer has died.
    fn heal(context: &HealContext<'_, Self::Regs>) -> Vec<u8>;

    /// Bytes that [`Arch::heal`] gives.
    const HEAL_SIZE: usize;

    /// The call that maps the vdso of 32-bit programs into a task of a 64-bit kernel, and its first
    /// argument; the second is the address.
    const COMPAT_VDSO: Option<(usize, u64)>;

    /// Code to replace `from`, a function of a vdso, that goes on at `target`, the same function of another:
    /// arguments and return address stay as they are. With where to write it: the address of a function
    /// may say more than where it is.
    fn vdso_jump(from: u64, target: u64) -> (u64, Vec<u8>);
}
