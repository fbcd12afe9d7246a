//! Repair mode: a connection can be looked into and made, and closing it tells nobody.

use std::os::fd::{AsRawFd, OwnedFd};

use criu_kind::{Error, Result};
use criu_tracee::{Local, Program, Site};
use nix::errno::Errno;

use crate::sockets::message::{number, set, set_at};

pub(crate) const REPAIR: (i32, i32) = (libc::SOL_TCP, libc::TCP_REPAIR);
pub(crate) const QUEUE: (i32, i32) = (libc::SOL_TCP, libc::TCP_REPAIR_QUEUE);
pub(crate) const SEQUENCE: (i32, i32) = (libc::SOL_TCP, libc::TCP_QUEUE_SEQ);
/// `TCP_REPAIR_OFF`: a probe asks the other end for news.
pub(crate) const OFF: u32 = 0;
pub(crate) const ON: u32 = 1;
/// `TCP_REPAIR_OFF_NO_WP`: quietly.
pub(crate) const OFF_QUIETLY: u32 = u32::MAX;
/// `TCP_NO_QUEUE`, `TCP_RECV_QUEUE`, `TCP_SEND_QUEUE`.
pub(crate) const NO_QUEUE: u32 = 0;
pub(crate) const RECEIVED: u32 = 1;
pub(crate) const SENT: u32 = 2;

/// A socket in repair mode, until it is dropped.
#[derive(Debug)]
pub(crate) struct Repair<'a> {
    fd: &'a OwnedFd,
    reuse: u32,
}

impl<'a> Repair<'a> {
    /// Enters it.
    pub(crate) fn enter(fd: &'a OwnedFd) -> Result<Self> {
        let reuse = number(fd, libc::SO_REUSEADDR, "getsockopt(SO_REUSEADDR)")?.unwrap_or(0);
        let mut program = Program::new();
        let entered = set_at(&mut program, fd.as_raw_fd(), REPAIR, ON);
        program.tolerate();
        let outcome = Local.run(&program)?;
        match outcome.get(entered) {
            Ok(_) => Ok(Self { fd, reuse }),
            Err(Errno::EPERM) => Err(Error::unsupported(
                "a TCP connection cannot be looked into without CAP_NET_ADMIN",
                "run criu as root of the network namespace, or close connections with --tcp-close",
            )),
            Err(errno) => Err(Error::Kernel {
                call: "setsockopt(TCP_REPAIR)",
                errno,
            }),
        }
    }

    /// Stays in it.
    pub(crate) fn stay(self) -> u32 {
        let reuse = self.reuse;
        std::mem::forget(self);
        reuse
    }
}

impl Drop for Repair<'_> {
    fn drop(&mut self) {
        if let Err(error) = leave(self.fd, OFF_QUIETLY, self.reuse) {
            tracing::error!(%error, "a connection could not be let out of repair mode");
        }
    }
}

/// Enters it again, where that has been allowed once.
pub(crate) fn enter(fd: &OwnedFd) -> Result<()> {
    let mut program = Program::new();
    set_at(&mut program, fd.as_raw_fd(), REPAIR, ON);
    Local.run(&program)?;
    Ok(())
}

/// Leaves it. The kernel forgets `SO_REUSEADDR` on the way.
pub(crate) fn leave(fd: &OwnedFd, how: u32, reuse: u32) -> Result<()> {
    let fd = fd.as_raw_fd();
    let mut program = Program::new();
    set_at(&mut program, fd, REPAIR, how);
    set(&mut program, fd, libc::SO_REUSEADDR, reuse);
    Local.run(&program)?;
    Ok(())
}
