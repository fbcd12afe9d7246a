//! Processes held by a descriptor: pidfd_open(2).

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use zdtm::{Case, Child, Result, check, check_eq, exit_signal};

pub(crate) const CASES: &[Case] = &[
    Case::new("pidfd-self", own),
    Case::new("pidfd-child", child),
    Case::new("pidfd-dead", dead),
    Case::new("pidfd-thread", thread)
        .refused("CRIU has no PIDFD_THREAD")
        .stays("Linux 6.9 made pidfds of threads"),
];

fn open(pid: Pid, flags: usize) -> Result<OwnedFd> {
    // SAFETY: takes no address; the descriptor is new and ours.
    unsafe {
        let fd = zdtm::syscall(
            libc::SYS_pidfd_open,
            [usize::try_from(pid.as_raw())?, flags, 0, 0, 0, 0],
        )?;
        Ok(OwnedFd::from_raw_fd(i32::try_from(fd)?))
    }
}

fn send(fd: &OwnedFd, signal: i32) -> std::io::Result<i64> {
    let (fd, signal) = (
        usize::try_from(fd.as_raw_fd()).unwrap_or(0),
        usize::try_from(signal).unwrap_or(0),
    );
    // SAFETY: a null siginfo means the ordinary one.
    unsafe { zdtm::syscall(libc::SYS_pidfd_send_signal, [fd, signal, 0, 0, 0, 0]) }
}

fn ended(fd: &OwnedFd) -> Result<bool> {
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? == 1)
}

fn pid_in_fdinfo(fd: &OwnedFd) -> Result<String> {
    let info = zdtm::proc_text("self", &format!("fdinfo/{}", fd.as_raw_fd()))?;
    let line = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    Ok(line.unwrap_or_default().trim().to_owned())
}

fn own() -> Result<()> {
    let fd = open(nix::unistd::getpid(), 0)?;
    zdtm::checkpoint()?;
    check_eq!(pid_in_fdinfo(&fd)?, std::process::id().to_string());
    check!(!ended(&fd)?);
    send(&fd, 0)?;
    Ok(())
}

/// It still is the one that dies when the child does.
fn child() -> Result<()> {
    let child = Child::spawn("child", || {
        Child::checkpoint();
        Ok(())
    })?;
    let fd = open(child.pid(), libc::PIDFD_NONBLOCK as usize)?;
    zdtm::checkpoint()?;
    check!(!ended(&fd)?);
    send(&fd, Signal::SIGKILL as i32)?;
    exit_signal(child.pid(), Signal::SIGKILL)?;
    check!(ended(&fd)?);
    Ok(())
}

fn dead() -> Result<()> {
    let child = Child::spawn("child", || {
        Child::checkpoint();
        Ok(())
    })?;
    let (fd, twin) = (open(child.pid(), 0)?, open(child.pid(), 0)?);
    child.finish()?;
    zdtm::checkpoint()?;
    for fd in [&fd, &twin] {
        check_eq!(pid_in_fdinfo(fd)?, "-1");
        check_eq!(
            send(fd, 0).map_err(|error| error.raw_os_error()),
            Err(Some(libc::ESRCH))
        );
        check!(ended(fd)?);
    }
    Ok(())
}

fn thread() -> Result<()> {
    let Ok(fd) = open(nix::unistd::gettid(), libc::O_EXCL as usize) else {
        return zdtm::skip("no PIDFD_THREAD before Linux 6.9");
    };
    zdtm::checkpoint()?;
    check_eq!(pid_in_fdinfo(&fd)?, std::process::id().to_string());
    Ok(())
}
