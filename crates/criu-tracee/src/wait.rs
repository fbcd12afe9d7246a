//! Every wait for a task.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::{Context, Error, Result};
use crate::stop::Stop;

/// Bits of a raw status that nix does not decode: the event, and the signal it came with.
const EVENT_STOP: i32 = 128;

/// How long a thread mostly takes that runs a batch or is to stop: to go to sleep and be woken takes as long.
const AT_ONCE: Duration = Duration::from_micros(100);

/// Waits until this very thread stops, or until the deadline; at first without sleep.
pub(crate) fn stop(tid: Pid, deadline: Option<Instant>) -> Result<Stop> {
    let status = match deadline {
        None => soon(tid)?,
        Some(deadline) => patiently(tid, deadline)?,
    };
    stop_of(tid, status)
}

/// Waits until this very thread stops, and leaves the processor to those that are to stop after it.
pub(crate) fn stop_of_many(tid: Pid) -> Result<Stop> {
    stop_of(tid, raw(tid, 0)?)
}

/// To give the processor away instead would mean to come last among all that want it, on a busy machine.
fn soon(tid: Pid) -> Result<Option<i32>> {
    if let Some(status) = raw(tid, libc::WNOHANG)? {
        return Ok(Some(status));
    }
    if has_another_processor() {
        let start = Instant::now();
        while start.elapsed() < AT_ONCE {
            if let Some(status) = raw(tid, libc::WNOHANG)? {
                return Ok(Some(status));
            }
            std::hint::spin_loop();
        }
    }
    raw(tid, 0)
}

/// Whether somebody else can run while we do.
fn has_another_processor() -> bool {
    sched_getaffinity(Pid::from_raw(0)).is_ok_and(|set| {
        let mut ours = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true));
        ours.nth(1).is_some()
    })
}

fn stop_of(tid: Pid, status: Option<i32>) -> Result<Stop> {
    let status = status.ok_or(Error::Unresponsive(tid))?;
    if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
        return Err(Error::Gone(tid));
    }
    let signal = libc::WSTOPSIG(status);
    Ok(match status >> 16 {
        EVENT_STOP if signal == libc::SIGTRAP => Stop::Interrupt,
        EVENT_STOP => Stop::Group(signal),
        _ if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        _ => Stop::Signal(signal),
    })
}

/// A task in an uninterruptible sleep (a vfork whose child has not let go, a hung disk) does not stop.
/// Others do so at once, far sooner than the shortest nap ends: the kernel adds 50 µs to each.
fn patiently(tid: Pid, deadline: Instant) -> Result<Option<i32>> {
    let start = Instant::now();
    let mut nap = Duration::from_micros(50);
    loop {
        if let Some(status) = raw(tid, libc::WNOHANG)? {
            return Ok(Some(status));
        }
        let now = Instant::now();
        if now > deadline {
            return Ok(None);
        }
        if now - start < AT_ONCE {
            std::thread::yield_now();
            continue;
        }
        std::thread::sleep(nap);
        nap = (nap * 2).min(Duration::from_millis(2));
    }
}

/// `waitpid` with the raw status: nix folds ptrace events of unknown kinds into errors.
#[allow(
    unsafe_code,
    reason = "nix does not give the raw status, and its decoding refuses PTRACE_EVENT_STOP"
)]
fn raw(tid: Pid, options: i32) -> Result<Option<i32>> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a live int.
        let got = unsafe { libc::waitpid(tid.as_raw(), &raw mut status, libc::__WALL | options) };
        match Errno::result(got) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(status)),
            Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Err(Error::Gone(tid)),
            Err(errno) => {
                return Err(Error::Kernel {
                    call: "waitpid",
                    errno,
                });
            }
        }
    }
}

/// Waits until a child has ended and takes its status.
pub(crate) fn reap(pid: Pid) -> Result<()> {
    loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => {
                return Ok(());
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).call("waitpid"),
        }
    }
}
