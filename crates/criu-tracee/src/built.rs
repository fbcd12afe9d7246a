//! The last steps of a process that was built: it ends, stops, or goes on.

use criu_arch::Arch;
use nix::sys::signal::{Signal, kill};

use crate::error::{Context, Error, Result, gone_is_fine};
use crate::native::Native;
use crate::program::Program;
use crate::run;
use crate::site::Site;
use crate::stop::Stop;
use crate::tracee::Tracee;

/// The last step of building processes: removes the nursery's mapping from them and sets every thread to its own
/// registers and mask. They are stopped then, ready for [`Tracee::detach`].
pub fn leave_all<'t>(tracees: impl IntoIterator<Item = &'t mut Tracee>) -> Result<()> {
    let mut leaving = Vec::new();
    for tracee in tracees {
        let workplace = tracee.workplace.take();
        // The leader is the one that unmaps.
        put_back(tracee, usize::from(workplace.is_some()))?;
        leaving.extend(workplace.map(|workplace| (tracee, workplace)));
    }
    run::vanish(&mut leaving)?;
    for (tracee, _) in leaving {
        let leader = &mut tracee.threads[0];
        let regs = leader.natural.clone();
        leader.put_back(&regs)?;
    }
    Ok(())
}

fn put_back(tracee: &mut Tracee, first: usize) -> Result<()> {
    for thread in tracee.threads.iter_mut().skip(first) {
        let regs = thread.natural.clone();
        thread.put_back(&regs)?;
    }
    Ok(())
}

impl Tracee {
    /// Ends a process that is being built, with this wait status, and leaves it a zombie of its parent.
    pub fn exit(mut self, status: u32) -> Result<()> {
        let signal = i32::try_from(status & 0x7f).unwrap_or(0);
        let mut program = Program::new();
        if signal == 0 {
            program.exit_group(status >> 8 & 0xff);
        } else {
            // Deadly by default, and no core file of a task that is none.
            let default = program.bytes(vec![0; 64]);
            program.rt_sigaction(signal, default, 0, Native::SIGSET);
            program.tolerate();
            let limits = program.bytes(vec![0; 16]);
            program.prlimit64(0, libc::RLIMIT_CORE, limits, 0);
        }
        match self.run(&program) {
            Err(Error::Gone(_)) => {}
            Err(error) => return Err(error),
            Ok(_) => {
                let thread = &mut self.threads[0];
                let stopped = thread.stopped.take().ok_or(Error::Gone(thread.tid))?;
                // A blocked signal would only be queued.
                stopped.set_mask(&[0; Native::SIGSET])?;
                match stopped.cont(signal)?.wait() {
                    Err(Error::Gone(_)) => {}
                    Err(error) => return Err(error),
                    Ok((_, stop)) => {
                        return Err(Error::Stray {
                            pid: self.pid,
                            stop: format!("{stop:?}"),
                            ip: 0,
                        });
                    }
                }
            }
        }
        self.threads.clear();
        Ok(())
    }

    /// [`leave_all`] of one.
    pub fn leave(&mut self) -> Result<()> {
        leave_all([self])
    }

    /// Stops a built process as by job control, so that it stays stopped when it is let go and none of
    /// its queued signals comes first. After [`Tracee::leave`].
    pub fn stop(&mut self, signal: i32) -> Result<()> {
        let pid = self.pid;
        let thread = &mut self.threads[0];
        let stopped = thread.stopped.take().ok_or(Error::Gone(pid))?;
        // All are blocked but the one that stops, and SIGSTOP, which cannot be.
        let mut mask = vec![0xff; Native::SIGSET];
        let bit = usize::try_from(signal - 1).unwrap_or(0);
        mask[bit / 8] &= !(1 << (bit % 8));
        stopped.set_mask(&mask)?;
        kill(pid, Signal::SIGSTOP).call("kill")?;
        let mut running = stopped.cont(0)?;
        let mut deliver = signal;
        loop {
            let (stopped, stop) = running.wait()?;
            running = match stop {
                Stop::Signal(libc::SIGSTOP) => {
                    let with = deliver;
                    // If that signal does not stop it (its group is orphaned, say), SIGSTOP does.
                    deliver = libc::SIGSTOP;
                    stopped.cont(with)?
                }
                Stop::Group(_) => {
                    stopped.set_mask(&thread.mask)?;
                    thread.stopped = Some(stopped);
                    return Ok(());
                }
                Stop::Signal(_) | Stop::Interrupt | Stop::Syscall => stopped.cont(0)?,
            };
        }
    }

    /// From here on a built process goes on if the tracer dies. After [`Tracee::leave`]: filters are in force again.
    pub fn unbind(&self) -> Result<()> {
        for thread in &self.threads {
            gone_is_fine(thread.stopped()?.unbind())?;
        }
        Ok(())
    }

    /// Lets go of a built process, leader last.
    pub fn detach(mut self) -> Result<()> {
        for mut thread in self.threads.drain(..).rev() {
            if let Some(stopped) = thread.stopped.take() {
                stopped.detach()?;
            }
        }
        Ok(())
    }
}
