//! Child processes that set up, report ready, wait for the end and check, like the root does.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::{Context, Mapping, PAGE, Result, protocol, ret};

/// The write end of the pipe on which this process tells its parent "set up"; -1 once told.
static TELL: AtomicI32 = AtomicI32::new(-1);

/// The same for a child that shares descriptors with its parent: a word in shared memory, 1 once told.
static TELL_WORD: AtomicPtr<AtomicU32> = AtomicPtr::new(std::ptr::null_mut());

/// A forked child. [`Child::spawn`] returns when it is set up.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    label: String,
}

impl Child {
    /// Forks a child that runs `body` and exits: with 0, or with 1 after reporting why.
    ///
    /// Returns when the child calls [`Child::set_up`] (or ends). The pipe for that is gone by then.
    pub fn spawn(label: impl Into<String>, body: impl FnOnce() -> Result<()>) -> Result<Self> {
        let label = label.into();
        let (told, tell) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        // SAFETY: the child goes on in `body` and never returns from here. Cases fork before they start threads,
        // or the child keeps to what is safe then.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Parent { child: pid } => {
                drop(tell);
                // End of file: set up, or dead.
                let _ = nix::unistd::read(&told, &mut [0; 1]);
                Ok(Self { pid, label })
            }
            ForkResult::Child => {
                drop(told);
                protocol::forget();
                // A parent that is itself not set up yet has its pipe open; it is not ours to hold.
                close(TELL.swap(tell.as_raw_fd(), Ordering::SeqCst));
                std::mem::forget(tell);
                TELL_WORD.store(std::ptr::null_mut(), Ordering::SeqCst);
                end(&label, body)
            }
        }
    }

    /// Like [`Child::spawn`], with `flags` of clone(2) for what parent and child have in common: `CLONE_FILES`,
    /// `CLONE_FS`. Memory is not among it.
    pub fn sharing(
        label: impl Into<String>,
        flags: i32,
        body: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let label = label.into();
        let told = Mapping::shared(PAGE)?;
        // SAFETY: without CLONE_VM and a stack this is fork(2), of a process with one thread; all other arguments
        // are null on every machine.
        let pid = ret(unsafe {
            libc::syscall(
                libc::SYS_clone,
                flags | libc::SIGCHLD,
                0usize,
                0usize,
                0usize,
                0usize,
            )
        })?;
        if pid == 0 {
            protocol::forget();
            // The pipe is the parent's: here and there it has the same number.
            TELL.store(-1, Ordering::SeqCst);
            TELL_WORD.store(told.pointer().cast(), Ordering::SeqCst);
            end(&label, body)
        }
        let pid = Pid::from_raw(i32::try_from(pid)?);
        let dead = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        while told.words()[0].load(Ordering::SeqCst) == 0
            && waitid(Id::Pid(pid), dead)? == WaitStatus::StillAlive
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        told.unmap()?;
        Ok(Self { pid, label })
    }

    /// A child that came to us in another way: an orphan that a subreaper got.
    pub fn adopted(pid: Pid, label: impl Into<String>) -> Self {
        Self {
            pid,
            label: label.into(),
        }
    }

    /// In a child: tells the parent that the state is there.
    pub fn set_up() {
        close(TELL.swap(-1, Ordering::SeqCst));
        let word = TELL_WORD.swap(std::ptr::null_mut(), Ordering::SeqCst);
        // SAFETY: the word is a mapping that this process was born with and that only its parent unmaps, in its
        // own memory.
        if let Some(word) = unsafe { word.as_ref() } {
            word.store(1, Ordering::SeqCst);
        }
    }

    /// In a child: [`Child::set_up`], then [`crate::wait`].
    pub fn checkpoint() {
        Self::set_up();
        crate::wait();
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Tells it to check and waits for its verdict.
    pub fn finish(self) -> Result<()> {
        kill(self.pid, Signal::SIGTERM).with_context(|| format!("SIGTERM to {}", self.label))?;
        self.join()
    }

    /// Waits for its verdict.
    pub fn join(self) -> Result<()> {
        let status = waitpid(self.pid, None).with_context(|| format!("wait for {}", self.label))?;
        crate::check_eq!(
            status,
            WaitStatus::Exited(self.pid, 0),
            "child {}",
            self.label
        );
        Ok(())
    }

    /// Kills it and reaps it.
    pub fn kill(self) -> Result<()> {
        kill(self.pid, Signal::SIGKILL).with_context(|| format!("SIGKILL to {}", self.label))?;
        let status = waitpid(self.pid, None)?;
        crate::check!(
            matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)),
            "{status:?}"
        );
        Ok(())
    }
}

/// The life of a child from its birth on.
fn end(label: &str, body: impl FnOnce() -> Result<()>) -> ! {
    let code = match protocol::attempt(body) {
        Ok(()) => 0,
        Err(error) => {
            protocol::report(label, &error);
            1
        }
    };
    // SAFETY: ends the process without running the parent's exit handlers.
    unsafe { libc::_exit(code) }
}

/// The living and dead children of the calling process, lowest pid first. For the main thread.
pub fn children() -> Result<Vec<Pid>> {
    let text = crate::proc_text("thread-self", "children")?;
    let mut pids = text
        .split_whitespace()
        .map(|word| Ok(Pid::from_raw(word.parse()?)))
        .collect::<Result<Vec<_>>>()?;
    pids.sort_unstable();
    Ok(pids)
}

/// Waits until the child is dead, without reaping it: it stays a zombie.
pub fn wait_exit(pid: Pid) -> Result<()> {
    waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
    Ok(())
}

/// Reaps a child and checks that it exited with this code.
pub fn exit_code(pid: Pid, code: i32) -> Result<()> {
    crate::check_eq!(waitpid(pid, None)?, WaitStatus::Exited(pid, code));
    Ok(())
}

/// Reaps a child and checks that this signal killed it.
pub fn exit_signal(pid: Pid, signal: Signal) -> Result<()> {
    let status = waitpid(pid, None)?;
    crate::check!(
        matches!(status, WaitStatus::Signaled(found, by, _) if found == pid && by == signal),
        "{status:?}, should be killed by {signal}"
    );
    Ok(())
}

fn close(fd: RawFd) {
    if fd >= 0 {
        // SAFETY: the number came out of the static, which owned it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}
