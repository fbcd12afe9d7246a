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

/// A copy of a descriptor of ours: the same open file description.
pub fn copy_fd(fd: i32) -> Result<OwnedFd> {
    let mut program = Program::new();
    let copy = program.fcntl(fd, libc::F_DUPFD_CLOEXEC, 0);
    own(Local.run(&program)?.value(copy))
}

/// Looks at what waits in a stream socket without taking it, as far as whole buffers of the kernel's fit into `room`;
/// how many bytes that were. A look by length cannot tell where a buffer ends: the kernel goes on to
/// the next one to see whether descriptors come with it.
#[allow(unsafe_code, reason = "a vector that leads nowhere")]
pub fn peek_whole(fd: impl AsFd, room: &mut [u8]) -> Result<usize> {
    let mut vector = [
        libc::iovec {
            iov_base: room.as_mut_ptr().cast(),
            iov_len: room.len(),
        },
        // Nothing is ever mapped there: the buffer that does not fit fails, and does not count.
        libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 1 << 20,
        },
    ];
    // SAFETY: a message of zeros has no name and no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vector.as_mut_ptr();
    #[allow(
        clippy::useless_conversion,
        reason = "it has another width with other C libraries"
    )]
    {
        message.msg_iovlen = 2;
    }
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the first part of the vector is `room`, which outlives the call; a write to the second fails.
    let got = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut message, flags) };
    match Errno::result(got) {
        Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
        Err(Errno::EFAULT | Errno::EAGAIN) => Ok(0),
        Err(errno) => Err(Error::Kernel {
            call: "recvmsg(MSG_PEEK)",
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
