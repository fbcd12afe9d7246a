//! A connection that ends by a RST.

use std::os::fd::{AsRawFd, OwnedFd};

use criu_kind::{Error, Result};
use criu_tracee::{Local, Program, Site};
use nix::errno::Errno;

use crate::sockets::message::option_at;

const LINGER: (i32, i32) = (libc::SOL_SOCKET, libc::SO_LINGER);
/// `struct linger`: two ints.
const SIZE: usize = 8;

/// What `SO_LINGER` was before.
#[derive(Debug)]
pub(crate) struct Abrupt(Vec<u8>);

/// When the last descriptor of it is closed it says so by a RST.
pub(crate) fn abrupt(fd: &OwnedFd) -> Result<Abrupt> {
    let former = option_at(fd, LINGER, SIZE)?.ok_or(Error::Kernel {
        call: "getsockopt(SO_LINGER)",
        errno: Errno::ENOPROTOOPT,
    })?;
    let at_once = [1i32, 0].map(i32::to_ne_bytes).concat();
    linger(fd, at_once)?;
    Ok(Abrupt(former))
}

/// It goes on, as it was.
pub(crate) fn gentle(fd: &OwnedFd, former: &Abrupt) -> Result<()> {
    linger(fd, former.0.clone())
}

fn linger(fd: &OwnedFd, how: Vec<u8>) -> Result<()> {
    let mut program = Program::new();
    let length = how.len();
    let how = program.bytes(how);
    program.setsockopt(fd.as_raw_fd(), LINGER.0, LINGER.1, how, length);
    Local.run(&program)?;
    Ok(())
}

/// Ends it at once, whoever else has it open.
pub(crate) fn reset(fd: &OwnedFd) -> Result<()> {
    let mut program = Program::new();
    // `AF_UNSPEC`: it is connected to nobody any more, and the kernel tells who it was.
    let nobody = program.bytes(vec![0; 16]);
    program.connect(fd.as_raw_fd(), nobody, 16);
    Local.run(&program)?;
    Ok(())
}
