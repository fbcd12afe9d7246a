//! Descriptors of other tasks, fetched with nothing running inside them.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;
use syscalls::Sysno;

use crate::error::{Error, Result};
use crate::local::Local;
use crate::program::Program;
use crate::site::Site;

/// `pidfd_open(2)`, Linux 5.3.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    pidfd_open_with(pid, 0)
}

/// The same with flags.
pub(crate) fn pidfd_open_with(pid: Pid, flags: u32) -> Result<OwnedFd> {
    let mut program = Program::new();
    let fd = program.pidfd_open(pid.as_raw(), flags);
    own(Local.run(&program)?.value(fd))
}

/// A copy of descriptor `fd` of the process behind `pidfd`: the same open file description
/// (`pidfd_getfd(2)`, Linux 5.6). `None` if it has no such descriptor.
pub fn fetch_fd(pidfd: impl AsFd, fd: i32) -> Result<Option<OwnedFd>> {
    let mut program = Program::new();
    let got = program.call(
        Sysno::pidfd_getfd,
        [pidfd.as_fd().as_raw_fd().into(), fd.into(), 0.into()],
    );
    program.tolerate();
    match Local.run(&program)?.get(got) {
        Ok(fd) => own(fd).map(Some),
        Err(Errno::EBADF) => Ok(None),
        Err(errno) => Err(Error::Kernel {
            call: "pidfd_getfd",
            errno,
        }),
    }
}

#[allow(unsafe_code, reason = "the kernel has just given us this descriptor")]
fn own(fd: i64) -> Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(|_| Error::Kernel {
        call: "pidfd",
        errno: Errno::EBADF,
    })?;
    // SAFETY: `fd` is the fresh result of a call that makes a descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
