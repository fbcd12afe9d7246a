//! Work that is finished even if the tracer is killed in the middle of it.
#![allow(unsafe_code, reason = "a process of its own does it")]

use std::fs::File;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, Pid, fork, pipe2, setsid};

use crate::error::{Context, Error, Result};
use crate::wait;

/// The last byte of an answer: it is whole.
const DONE: u8 = 1;

/// Does `work` in a process of its own, and returns what that returned. Who kills the tracer does not kill that: what the work
/// takes away for a moment it puts back. It has copies of all that the tracer has, and is the tracer of nobody.
///
/// No other thread of the tracer may hold a lock meanwhile that `work` takes: it would hold it for ever there. That of
/// the C library's memory is let go by fork(3) itself.
pub fn sheltered(work: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>> {
    let (from, to) = pipe2(OFlag::O_CLOEXEC).call("pipe2")?;
    // SAFETY: what other threads may leave in disorder is not used in the child; it runs `work` and ends, and no destructor
    // of the tracer runs in it.
    let child: Pid = match unsafe { fork() }.call("fork")? {
        ForkResult::Child => {
            let done = catch_unwind(AssertUnwindSafe(|| {
                // Whoever ends the tracer's session or group does not mean this. A child that was just born leads no group: it
                // cannot fail.
                let _ = setsid();
                let mut answer = work();
                answer.push(DONE);
                File::from(to).write_all(&answer)
            }));
            let failed = !matches!(done, Ok(Ok(())));
            // SAFETY: ends the child, and runs nothing of ours on the way.
            unsafe { libc::_exit(i32::from(failed)) }
        }
        ForkResult::Parent { child } => child,
    };
    drop(to);
    let mut answer = Vec::new();
    let read = File::from(from).read_to_end(&mut answer);
    wait::reap(child)?;
    let failed = |errno| Error::Kernel {
        call: "read(pipe)",
        errno,
    };
    read.map_err(|error| failed(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))?;
    match answer.pop() {
        Some(DONE) => Ok(answer),
        _ => Err(failed(Errno::ECHILD)),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn an_answer_comes_back() {
        assert_eq!(sheltered(|| vec![7; 100_000]).expect("done"), [7; 100_000]);
    }

    /// What another process does, which is then killed; not a test of its own.
    #[test]
    fn work_that_takes_its_time() {
        let Ok(path) = std::env::var("CRIU_RS_SHELTER") else {
            return;
        };
        drop(sheltered(|| {
            drop(std::fs::write(format!("{path}.begun"), "x"));
            std::thread::sleep(Duration::from_millis(200));
            drop(std::fs::write(&path, "x"));
            Vec::new()
        }));
    }

    #[test]
    fn work_goes_on_without_the_tracer() {
        let path = std::env::temp_dir().join(format!("criu-rs-shelter-{}", std::process::id()));
        let begun = path.with_extension("begun");
        let mut tracer = Command::new(std::env::current_exe().expect("it runs"))
            .args(["--exact", "shelter::tests::work_that_takes_its_time"])
            .env("CRIU_RS_SHELTER", &path)
            .spawn()
            .expect("it runs");
        let start = Instant::now();
        let wait = |path: &std::path::Path| {
            while !path.exists() && start.elapsed() < Duration::from_secs(60) {
                std::thread::sleep(Duration::from_millis(5));
            }
            path.exists()
        };
        assert!(wait(&begun), "it has begun");
        tracer.kill().expect("ours");
        tracer.wait().expect("ours");
        assert!(wait(&path), "and ends");
        std::fs::remove_file(&path).expect("written");
        std::fs::remove_file(&begun).expect("written");
    }
}
