//! General registers of one thread.

use core::fmt::Debug;

/// Which ptrace request moves the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegsTransfer {
    /// `PTRACE_GETREGS`: on x86 it gives the 64-bit layout of a 32-bit task too, which
    /// `PTRACE_GETREGSET` does not.
    Getregs,
    /// `PTRACE_GETREGSET` with `NT_PRSTATUS`.
    Getregset,
}

/// The general registers as the kernel hands them to a tracer.
///
/// Two forms of a stopped thread matter, and both are computed here so that the rules of syscall
/// restart live beside the registers they touch (`arch/*/kernel/signal.c`).
pub trait Regs: Clone + Debug + PartialEq + Send + 'static {
    /// Bytes of the kernel's structure.
    const SIZE: usize;

    /// Reads the kernel's structure; `None` if the length is wrong.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;

    /// The kernel's structure.
    fn to_bytes(&self) -> Vec<u8>;

    /// The instruction pointer.
    fn ip(&self) -> u64;

    /// Moves the instruction pointer.
    fn set_ip(&mut self, ip: u64);

    /// The stack pointer.
    fn sp(&self) -> u64;

    /// Whether the thread runs 32-bit code on a 64-bit kernel.
    fn is_compat(&self) -> bool;

    /// Sets an argument of the call that the thread is about to issue again.
    fn set_argument(&mut self, index: usize, value: u64);

    /// Whether the thread was stopped in a call that only the stop interrupted.
    fn is_interrupted(&self) -> bool;

    /// Tells registers that are not enough which call the thread slept in when the stop woke it, as
    /// `/proc/PID/syscall` told before: number, arguments, and the instruction pointer behind the call.
    /// Some kernels have rewound the call, and forgotten it, when the tracer comes to see the registers.
    fn woken_in(&mut self, nr: u64, args: &[u64; 6], ip: u64);

    /// The registers with which the thread, still the same kernel task, goes on if a handler runs first
    /// (`handler`), or if it stays stopped by job control. Where the kernel decides from the registers
    /// what becomes of the call, these are those it was stopped with.
    fn left_to_kernel(&self, handler: bool) -> Self;

    /// The registers with which the thread, still the same kernel task, goes on as if it had never
    /// been stopped. An interrupted syscall is issued again; one with a restart block through
    /// `restart_syscall`, which finds the block where the kernel left it. Where a handler is to run
    /// first none of this is right: see [`Regs::left_to_kernel`].
    fn resumed(&self) -> Self;

    /// The registers with which a *new* task goes on. The restart block does not exist there, so a
    /// call that needs one is issued anew; if it counts from when it began, see [`Regs::timeout`].
    fn reborn(&self, next: Next) -> Self;

    /// How long the interrupted call wanted to wait when it was made, if issuing it again means
    /// waiting for all of that again.
    fn timeout(&self) -> Option<Timeout>;
}

/// What a stopped thread does before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It goes on.
    Resume,
    /// It runs the handler of a signal that is pending already.
    Handler {
        /// Whether the handler wants interrupted calls issued again (`SA_RESTART`).
        restart: bool,
    },
}

/// A time to wait, counted from when the call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout {
    /// Which argument it is.
    pub argument: usize,
    /// The argument: the time itself, or the address of it.
    pub value: u64,
    /// How to read it.
    pub form: TimeoutForm,
    /// The kernel remembers the rest of it for a task that is still the same.
    pub remembered: bool,
}

/// How a call is told a time to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutForm {
    /// Milliseconds.
    Millis,
    /// The address of seconds and nanoseconds, each of so many bytes.
    Timespec(usize),
}
