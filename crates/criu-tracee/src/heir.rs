//! Who sees to the tasks if the tracer is killed while it lets them go.
//!
//! `PTRACE_O_EXITKILL` is a matter of one task: a tracer that dies when it has let go of some leaves half a tree. The
//! heir makes one moment of it. Until [`Heir::commit`] a tracer that dies takes all tasks with it, also those that would
//! go on by themselves; from then on they are free, and the heir does what the tracer has not come to.
#![allow(unsafe_code, reason = "a process of its own does it")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, Pid, fork, pipe2, setsid};

use crate::error::{Context, Error, Result, gone_is_fine};
use crate::fds::pidfd_open;
use crate::wait;

/// What the tracer says.
const COMMIT: u8 = 1;
const DONE: u8 = 2;

/// A process that outlives the tracer.
///
/// Dropped before [`Heir::commit`], it ends the tasks; dropped after it, it does the rest.
#[derive(Debug)]
pub struct Heir {
    word: Option<File>,
    child: Pid,
}

impl Heir {
    /// Appoints one for these processes. `undo` is what it does before it ends them; `rest` is what is to be done when
    /// they are free, at any moment of their new lives.
    ///
    /// No other thread of the tracer may hold a lock meanwhile that either takes.
    pub fn appoint(processes: &[Pid], undo: impl FnOnce(), rest: impl FnOnce()) -> Result<Self> {
        let tasks: Vec<OwnedFd> = processes
            .iter()
            .map(|pid| pidfd_open(*pid))
            .collect::<Result<_>>()?;
        let (from, to) = pipe2(OFlag::O_CLOEXEC).call("pipe2")?;
        // SAFETY: what other threads may leave in disorder is not used in the child; it runs `inherit` and ends, and no
        // destructor of the tracer runs in it.
        let child: Pid = match unsafe { fork() }.call("fork")? {
            ForkResult::Child => {
                drop(to);
                let done = catch_unwind(AssertUnwindSafe(|| {
                    inherit(from.into(), &tasks, undo, rest)
                }));
                // SAFETY: ends the child, and runs nothing of ours on the way.
                unsafe { libc::_exit(i32::from(!matches!(done, Ok(Ok(()))))) }
            }
            ForkResult::Parent { child } => child,
        };
        Ok(Self {
            word: Some(to.into()),
            child,
        })
    }

    /// From here on the tasks live, whatever becomes of the tracer.
    pub fn commit(&mut self) -> Result<()> {
        self.say(COMMIT)
    }

    /// There is nothing left to inherit. It ends by itself, and is waited for when this is dropped.
    pub fn dismiss(&mut self) -> Result<()> {
        self.say(DONE)
    }

    fn say(&mut self, word: u8) -> Result<()> {
        let said = self.word.as_mut().map(|pipe| pipe.write_all(&[word]));
        said.unwrap_or(Ok(())).map_err(failed("write(pipe)"))
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        self.word = None;
        if let Err(error) = wait::reap(self.child) {
            tracing::error!(%error, "the process that sees to the tasks cannot be waited for");
        }
    }
}

/// What the child does.
fn inherit(
    mut tracer: File,
    tasks: &[OwnedFd],
    undo: impl FnOnce(),
    rest: impl FnOnce(),
) -> Result<()> {
    // Whoever ends the tracer's session or group does not mean this. A child that was just born leads no group: it
    // cannot fail.
    let _ = setsid();
    match heard(&mut tracer)? {
        None => {
            undo();
            tasks.iter().try_for_each(end)
        }
        Some(_) => {
            if heard(&mut tracer)?.is_none() {
                rest();
            }
            Ok(())
        }
    }
}

/// The next word of the tracer; `None`: it is no more.
fn heard(tracer: &mut File) -> Result<Option<u8>> {
    let mut word = [0];
    let count = tracer.read(&mut word).map_err(failed("read(pipe)"))?;
    Ok((count == 1).then_some(word[0]))
}

fn failed(call: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::Kernel {
        call,
        errno: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
    }
}

fn end(task: &OwnedFd) -> Result<()> {
    use std::os::fd::AsRawFd;
    let task = task.as_raw_fd();
    // SAFETY: numbers only.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, task, libc::SIGKILL, 0, 0) };
    gone_is_fine(Errno::result(sent).map(drop).call("pidfd_send_signal"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    use super::*;

    fn task() -> (Child, Pid) {
        let child = Command::new("sleep").arg("1000").spawn().expect("it runs");
        let pid = Pid::from_raw(child.id().cast_signed());
        (child, pid)
    }

    fn ended(mut child: Child) -> Option<i32> {
        let ended = child.try_wait().expect("ours");
        if ended.is_none() {
            child.kill().expect("ours");
            child.wait().expect("ours");
        }
        ended.and_then(|status| status.signal())
    }

    /// The rest writes this file; nothing is shared with a process.
    fn mark(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("criu-rs-heir-{}-{name}", std::process::id()))
    }

    fn write(path: &std::path::Path) {
        drop(std::fs::write(path, "x"));
    }

    #[test]
    fn before_the_word_all_end() {
        let (child, pid) = task();
        let path = mark("before");
        let undone = mark("undone");
        let heir = Heir::appoint(&[pid], || write(&undone), || write(&path)).expect("a process");
        drop(heir);
        std::fs::remove_file(&undone).expect("written");
        // It has been reaped: the signal is sent.
        let mut child = child;
        let status = child.wait().expect("ours");
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        assert!(!path.exists());
    }

    #[test]
    fn after_the_word_the_rest_is_done() {
        let (child, pid) = task();
        let path = mark("after");
        let mut heir = Heir::appoint(&[pid], || (), || write(&path)).expect("a process");
        heir.commit().expect("it listens");
        drop(heir);
        assert_eq!(ended(child), None);
        std::fs::remove_file(&path).expect("written");
    }

    #[test]
    fn a_tracer_that_lives_does_the_rest_itself() {
        let (child, pid) = task();
        let path = mark("dismissed");
        let mut heir = Heir::appoint(&[pid], || (), || write(&path)).expect("a process");
        heir.commit().expect("it listens");
        heir.dismiss().expect("it ends");
        assert_eq!(ended(child), None);
        assert!(!path.exists());
    }
}
