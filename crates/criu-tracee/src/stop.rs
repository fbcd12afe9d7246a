//! A stopped thread as a value.

use std::marker::PhantomData;
use std::time::Instant;

use criu_arch::{Arch, Regs, RegsTransfer};
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::native::{Native, NativeRegs};
use crate::ptrace::{self, RseqConfiguration, SigInfo};
use crate::wait;

/// Why a thread is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// `PTRACE_INTERRUPT`, or the birth of a traced task.
    Interrupt,
    /// It was stopped already, by this signal (job control).
    Group(i32),
    /// A signal is about to be delivered.
    Signal(i32),
    /// Entry to or exit from a syscall.
    Syscall,
}

/// What a task is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// To be read: it goes on if the tracer dies.
    Dump,
    /// To be built: it dies with the tracer.
    Restore,
}

impl Hold {
    pub(crate) fn options(self) -> usize {
        match self {
            Self::Dump => ptrace::O_TRACESYSGOOD,
            Self::Restore => ptrace::O_TRACESYSGOOD | ptrace::O_EXITKILL,
        }
    }
}

/// A thread that this thread of the tracer has stopped.
///
/// Resuming consumes it. It is not `Send`: ptrace binds a task to the thread that attached to it.
#[derive(Debug)]
pub struct Stopped {
    tid: Pid,
    _bound: PhantomData<*const ()>,
}

/// A thread that runs and is ours.
#[derive(Debug)]
pub(crate) struct Running {
    tid: Pid,
    _bound: PhantomData<*const ()>,
}

impl Running {
    /// Attaches without stopping.
    pub(crate) fn seize(tid: Pid, hold: Hold) -> Result<Self> {
        ptrace::seize(tid, hold.options())?;
        Ok(Self {
            tid,
            _bound: PhantomData,
        })
    }

    /// A task that was born traced (`CLONE_PTRACE`).
    pub(crate) fn born(tid: Pid) -> Self {
        Self {
            tid,
            _bound: PhantomData,
        }
    }

    pub(crate) fn interrupt(&self) -> Result<()> {
        ptrace::interrupt(self.tid)
    }

    pub(crate) fn wait(self) -> Result<(Stopped, Stop)> {
        self.wait_until(None)
    }

    /// Like [`Running::wait`], for one of many that work side by side.
    pub(crate) fn wait_among_many(self) -> Result<(Stopped, Stop)> {
        let stop = wait::stop_of_many(self.tid)?;
        Ok((self.stopped(), stop))
    }

    fn wait_until(self, deadline: Option<Instant>) -> Result<(Stopped, Stop)> {
        let stop = wait::stop(self.tid, deadline)?;
        Ok((self.stopped(), stop))
    }

    fn stopped(self) -> Stopped {
        Stopped {
            tid: self.tid,
            _bound: PhantomData,
        }
    }

    /// Waits for the first stop in which the thread belongs to us alone: signals that were on their
    /// way when it was seized are let through.
    pub(crate) fn wait_held(self, deadline: Option<Instant>) -> Result<(Stopped, Stop)> {
        let mut running = self;
        loop {
            match running.wait_until(deadline)? {
                (stopped, Stop::Signal(signal)) => running = stopped.cont(signal)?,
                (stopped, Stop::Syscall) => running = stopped.cont(0)?,
                held => return Ok(held),
            }
        }
    }
}

impl Stopped {
    /// The thread.
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// General registers.
    pub fn regs(&self) -> Result<NativeRegs> {
        let mut bytes = vec![0; NativeRegs::SIZE];
        match Native::TRANSFER {
            RegsTransfer::Getregs => ptrace::getregs(self.tid, &mut bytes)?,
            RegsTransfer::Getregset => {
                ptrace::getregset(self.tid, NT_PRSTATUS, &mut bytes)?;
            }
        }
        Ok(NativeRegs::from_bytes(&bytes).expect("the buffer has the size of the structure"))
    }

    /// Sets the general registers.
    pub fn set_regs(&self, regs: &NativeRegs) -> Result<()> {
        match Native::TRANSFER {
            RegsTransfer::Getregs => ptrace::setregs(self.tid, &regs.to_bytes()),
            RegsTransfer::Getregset => ptrace::setregset(self.tid, NT_PRSTATUS, &regs.to_bytes()),
        }
    }

    /// A regset (`NT_*`).
    pub fn regset(&self, note: u32) -> Result<Vec<u8>> {
        // The kernel fills what there is room for, without a word if that is too little.
        let mut size = 4096;
        loop {
            let mut bytes = vec![0; size];
            let length = ptrace::getregset(self.tid, note, &mut bytes)?;
            if length < size || size >= LARGEST_REGSET {
                bytes.truncate(length);
                return Ok(bytes);
            }
            size = LARGEST_REGSET;
        }
    }

    /// Sets a regset.
    pub fn set_regset(&self, note: u32, bytes: &[u8]) -> Result<()> {
        ptrace::setregset(self.tid, note, bytes)
    }

    /// A regset that the thread may not have (`NT_*`).
    pub fn regset_if_any(&self, note: u32) -> Result<Option<Vec<u8>>> {
        use nix::errno::Errno::{EINVAL, EIO, ENODEV};
        match self.regset(note) {
            Ok(bytes) => Ok(Some(bytes).filter(|bytes| !bytes.is_empty())),
            Err(error) if matches!(error.errno(), Some(ENODEV | EINVAL | EIO)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One of the thread areas of [`Arch::TLS`].
    pub fn thread_area(&self, slot: u32) -> Result<Vec<u8>> {
        ptrace::get_thread_area(self.tid, slot)
    }

    /// Sets a thread area, where somebody else than the thread can.
    pub fn set_thread_area(&self, slot: u32, bytes: &[u8]) -> Result<()> {
        ptrace::set_thread_area(self.tid, slot, bytes)
    }

    /// The blocked signals, as the kernel's set.
    pub fn mask(&self) -> Result<Vec<u8>> {
        let mut mask = vec![0; Native::SIGSET];
        ptrace::getsigmask(self.tid, &mut mask)?;
        Ok(mask)
    }

    /// Blocks these signals and no others.
    pub fn set_mask(&self, mask: &[u8]) -> Result<()> {
        ptrace::setsigmask(self.tid, mask)
    }

    /// The signal of a [`Stop::Signal`].
    pub fn siginfo(&self) -> Result<SigInfo> {
        ptrace::getsiginfo(self.tid)
    }

    /// Queued signals, oldest first: the thread's own or those its process shares.
    pub fn queued(&self, shared: bool) -> Result<Vec<SigInfo>> {
        ptrace::peeksiginfo(self.tid, shared)
    }

    /// Its registered rseq(2) area; `None` on kernels before 5.13 or without rseq.
    pub fn rseq(&self) -> Result<Option<RseqConfiguration>> {
        match ptrace::rseq_configuration(self.tid) {
            Ok(conf) => Ok(Some(conf)),
            Err(Error::Kernel {
                errno: nix::errno::Errno::EIO | nix::errno::Errno::EINVAL,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Its seccomp filter number `index`, in the order they were installed: BPF code and flags.
    pub fn seccomp_filter(&self, index: u64) -> Result<Option<(Vec<u8>, u64)>> {
        ptrace::seccomp_filter(self.tid, index)
    }

    /// Lets a task under seccomp run our calls until it is released. Needs `CAP_SYS_ADMIN`.
    pub fn suspend_seccomp(&self, hold: Hold) -> Result<()> {
        ptrace::set_options(self.tid, hold.options() | ptrace::O_SUSPEND_SECCOMP)
    }

    /// Lets the task outlive its tracer.
    pub(crate) fn unbind(&self) -> Result<()> {
        ptrace::set_options(self.tid, 0)
    }

    /// Asks for one more stop, as soon as it goes on.
    pub(crate) fn interrupt(&self) -> Result<()> {
        ptrace::interrupt(self.tid)
    }

    pub(crate) fn cont(self, signal: i32) -> Result<Running> {
        ptrace::cont(self.tid, signal)?;
        Ok(Running {
            tid: self.tid,
            _bound: PhantomData,
        })
    }

    pub(crate) fn until_syscall(self) -> Result<Running> {
        ptrace::syscall(self.tid)?;
        Ok(Running {
            tid: self.tid,
            _bound: PhantomData,
        })
    }

    /// Lets go of the thread.
    pub(crate) fn detach(self) -> Result<()> {
        ptrace::detach(self.tid, 0)
    }
}

const NT_PRSTATUS: u32 = 1;
/// Larger than the vectors of any machine.
const LARGEST_REGSET: usize = 16384;
