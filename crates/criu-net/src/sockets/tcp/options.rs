//! Options of TCP for which the image messages have fields.

use std::os::fd::OwnedFd;

use criu_image::pb;
use criu_kind::Result;
use criu_tracee::Program;

use crate::sockets::message::{number_at, set_at};

/// Reads them. What is off or zero is left out.
pub(crate) fn read(fd: &OwnedFd) -> Result<pb::TcpOptsEntry> {
    let number = |name| {
        Ok::<_, criu_kind::Error>(number_at(fd, libc::SOL_TCP, name)?.filter(|value| *value != 0))
    };
    Ok(pb::TcpOptsEntry {
        cork: number(libc::TCP_CORK)?.map(|_| true),
        nodelay: number(libc::TCP_NODELAY)?.map(|_| true),
        keepcnt: number(libc::TCP_KEEPCNT)?,
        keepidle: number(libc::TCP_KEEPIDLE)?,
        keepintvl: number(libc::TCP_KEEPINTVL)?,
    })
}

/// Adds the calls that set them.
pub(crate) fn write(program: &mut Program, fd: i32, options: &pb::TcpOptsEntry) {
    let numbers = [
        (libc::TCP_NODELAY, options.nodelay.map(u32::from)),
        (libc::TCP_CORK, options.cork.map(u32::from)),
        (libc::TCP_KEEPCNT, options.keepcnt),
        (libc::TCP_KEEPIDLE, options.keepidle),
        (libc::TCP_KEEPINTVL, options.keepintvl),
    ];
    for (name, value) in numbers {
        if let Some(value) = value {
            set_at(program, fd, (libc::SOL_TCP, name), value);
        }
    }
}
