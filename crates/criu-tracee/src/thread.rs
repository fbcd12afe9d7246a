//! One thread of a held process.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use criu_arch::{Arch, Regs, Timeout};
use nix::unistd::Pid;

use crate::error::{Error, Result, if_allowed};
use crate::keep;
use crate::look;
use crate::memory::Memory;
use crate::native::{Native, NativeRegs};
use crate::ptrace::SigInfo;
use crate::rseq::Rseq;
use crate::stop::{Hold, Stop, Stopped};

/// One thread of a held process.
#[derive(Debug)]
pub struct Thread {
    pub(crate) tid: Pid,
    pub(crate) vtid: Pid,
    pub(crate) stopped: Option<Stopped>,
    pub(crate) stop: Stop,
    pub(crate) natural: NativeRegs,
    pub(crate) mask: Vec<u8>,
    pub(crate) status: Vec<u8>,
    pub(crate) rseq: Option<Rseq>,
    pub(crate) slept: Duration,
    /// Regsets as they were before any call of ours: `Arch::KEPT_NOTES`.
    pub(crate) kept: Vec<(u32, Vec<u8>)>,
    /// Its own registers are back for good.
    pub(crate) settled: bool,
    /// Its registers are ours.
    pub(crate) hijacked: bool,
    /// It has run nothing for us yet, so it has the mask it was found with.
    pub(crate) fresh: bool,
    pub(crate) deferred: Vec<SigInfo>,
}

impl Thread {
    /// Lets a thread that was seized go on while it stands in code of the kernel's own making
    /// ([`Arch::PASSING`]).
    pub(crate) fn pass(
        mut held: (Stopped, Stop),
        deadline: Option<Instant>,
    ) -> Result<(Stopped, Stop)> {
        let Some(is_passing) = Native::PASSING else {
            return Ok(held);
        };
        let memory = Memory::open(held.0.tid())?;
        loop {
            let mut code = [0; 8];
            let known = memory.read(held.0.regs()?.ip(), &mut code).is_ok();
            if !known || !is_passing(&code) {
                return Ok(held);
            }
            let running = held.0.cont(0)?;
            // A few instructions are enough, but it has to get a processor.
            std::thread::sleep(Duration::from_millis(1));
            running.interrupt()?;
            held = running.wait_held(deadline)?;
        }
    }

    pub(crate) fn held(tid: Pid, vtid: Pid, (stopped, stop): (Stopped, Stop)) -> Result<Self> {
        let natural = stopped.regs()?;
        let mask = stopped.mask()?;
        Ok(Self {
            tid,
            vtid,
            stopped: Some(stopped),
            stop,
            natural,
            mask,
            status: Vec::new(),
            rseq: None,
            slept: Duration::ZERO,
            kept: Vec::new(),
            settled: false,
            hijacked: false,
            fresh: true,
            deferred: Vec::new(),
        })
    }

    /// Reads what calls of ours may destroy.
    pub(crate) fn keep_regsets(&mut self) -> Result<()> {
        for note in Native::KEPT_NOTES {
            let bytes = self.stopped()?.regset_if_any(*note)?;
            self.kept.extend(bytes.map(|bytes| (*note, bytes)));
        }
        Ok(())
    }

    /// A regset (`NT_*`) as it was when the thread was stopped; `None` if it has none such.
    pub fn regset(&self, note: u32) -> Result<Option<Vec<u8>>> {
        match self.kept.iter().find(|(known, _)| *known == note) {
            Some((_, bytes)) => Ok(Some(bytes.clone())),
            None => self.stopped()?.regset_if_any(note),
        }
    }

    /// Keeps what the kernel says of a thread, now that all of its process have stopped, and suspends its
    /// filters if it has some and they may be.
    pub(crate) fn look_at_status(&mut self, status: Vec<u8>) -> Result<()> {
        let text = String::from_utf8_lossy(&status);
        self.vtid = look::own_id(self.tid, &text);
        if !matches!(look::field(&text, "Seccomp"), "0" | "") {
            if_allowed(self.stopped()?.suspend_seccomp(Hold::Dump))?;
        }
        self.status = status;
        Ok(())
    }

    pub(crate) fn status_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.status)
    }

    /// Finds out where the thread goes on if it was stopped in a restartable sequence.
    pub(crate) fn look_at_rseq(&mut self, memory: &Memory) -> Result<()> {
        let (rseq, abort) = Rseq::of(self.stopped()?, memory, self.natural.ip())?;
        self.rseq = rseq;
        if let Some(abort) = abort {
            self.natural.set_ip(abort);
            // It must not go on where it stood, even if no call of ours ever runs.
            self.hijacked = true;
        }
        Ok(())
    }

    /// The thread id as the tracer sees it.
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// The thread id as the thread's own pid namespace sees it.
    pub fn vtid(&self) -> Pid {
        self.vtid
    }

    /// Why it stopped when it was seized.
    pub fn stop(&self) -> Stop {
        self.stop
    }

    /// The registers as they were when it was seized; in a restartable sequence, with the instruction
    /// pointer at its abort handler.
    pub fn natural(&self) -> &NativeRegs {
        &self.natural
    }

    /// The signal mask as it was when it was seized.
    pub fn mask(&self) -> &[u8] {
        &self.mask
    }

    /// `/proc/PID/task/TID/status` of a seized thread, as it was when all of its process had stopped.
    pub fn status(&self) -> &[u8] {
        &self.status
    }

    /// The restartable sequences area that a seized thread had registered.
    pub fn rseq(&self) -> Option<&Rseq> {
        self.rseq.as_ref()
    }

    /// What is left of the time that the call it was stopped in wants to wait for, if that counts
    /// from when the call was made.
    pub fn rest(&self, memory: &Memory) -> Option<(Timeout, Duration)> {
        let timeout = self.natural.timeout()?;
        let whole = keep::whole(&timeout, memory)?;
        Some((timeout, whole.saturating_sub(self.slept)))
    }

    /// The stopped thread, for what only ptrace can ask.
    pub fn stopped(&self) -> Result<&Stopped> {
        self.stopped.as_ref().ok_or(Error::Gone(self.tid))
    }

    /// What the thread will go on with; used when it is let go.
    pub fn set_natural(&mut self, regs: NativeRegs, mask: Vec<u8>) {
        (self.natural, self.mask) = (regs, mask);
        (self.hijacked, self.fresh) = (true, false);
    }

    /// Gives the thread back its own registers and mask. The mask goes first: until the registers
    /// are set the thread would, if we died, still heal itself.
    pub(crate) fn put_back(&mut self, regs: &NativeRegs) -> Result<()> {
        if self.hijacked
            && let Some(stopped) = &self.stopped
        {
            stopped.set_mask(&self.mask)?;
            if let Some((note, bytes)) = Native::lost_in_calls(&self.kept) {
                stopped.set_regset(*note, bytes)?;
            }
            stopped.set_regs(regs)?;
            self.hijacked = false;
        }
        Ok(())
    }
}
