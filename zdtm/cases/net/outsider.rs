//! The other side: a process outside of the tree, which is not dumped.

use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid, fork, setsid};
use zdtm::Result;

/// A process that is no descendant of ours, until it is told to end.
#[derive(Debug)]
pub(crate) struct Outsider(Pid);

impl Outsider {
    /// Starts one that works, after it has called what it is given.
    pub(crate) fn start(work: impl FnOnce(&dyn Fn())) -> Result<Self> {
        let (told, tell) = std::io::pipe()?;
        // SAFETY: there is one thread; the child never returns from here.
        if let ForkResult::Parent { child } = unsafe { fork() }? {
            drop(tell);
            nix::sys::wait::waitpid(child, None)?;
            let mut pid = [0; 4];
            std::io::Read::read_exact(&mut &told, &mut pid)?;
            return Ok(Self(Pid::from_raw(i32::from_ne_bytes(pid))));
        }
        drop(told);
        let ended: nix::Result<()> = (|| {
            setsid()?;
            // SAFETY: as above; the middle one ends, and the reaper of all gets the last.
            if let ForkResult::Parent { .. } = unsafe { fork() }? {
                // SAFETY: no handlers of the parent's are to run.
                unsafe { libc::_exit(0) };
            }
            let pid = std::process::id().to_ne_bytes();
            work(&|| drop(std::io::Write::write_all(&mut &tell, &pid)));
            Ok(())
        })();
        // SAFETY: as above.
        unsafe { libc::_exit(i32::from(ended.is_err())) }
    }
}

impl Outsider {
    pub(crate) fn pid(&self) -> Pid {
        self.0
    }
}

impl Drop for Outsider {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGKILL).ok();
    }
}
