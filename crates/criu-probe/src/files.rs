//! Open files and what `/proc` says of them.

use criu_tracee::{Blob, Program};
use nix::errno::Errno;
use nix::sys::ioctl::ioctl_num_type;

use crate::feature::{Answer, Lack, judge, require};
use crate::scratch::{Scratch, try_once};
use crate::task::words;

/// Checks that a descriptor's fdinfo has a line that starts so.
fn shows(task: &Scratch, fd: i64, start: &str) -> Answer {
    let info = task.read(&format!("fdinfo/{fd}"))?;
    require(
        info.lines().any(|line| line.starts_with(start)),
        &format!("fdinfo has no `{start}`"),
    )
}

/// The lines of the four kinds of descriptors that report events.
pub(crate) fn fdinfo() -> Answer {
    let mut task = Scratch::new()?;
    let event = task.fd(|program| program.eventfd2(0, 0))?;
    shows(&task, event, "eventfd-count:")?;
    let signal = task.fd(|program| {
        let mask = program.bytes([0; 8]);
        program.signalfd4(-1, mask, 8, 0)
    });
    // MIPS has 128 signals.
    let signal = signal.or_else(|_| {
        task.fd(|program| {
            let mask = program.bytes([0; 16]);
            program.signalfd4(-1, mask, 16, 0)
        })
    })?;
    shows(&task, signal, "sigmask:")?;
    let epoll = task.fd(|program| program.epoll_create1(0))?;
    task.fd(|program| {
        let interest = program.bytes([0; 16]);
        program.epoll_ctl(epoll, libc::EPOLL_CTL_ADD, event, interest)
    })?;
    shows(&task, epoll, "tfd:")?;
    let inotify = task.fd(|program| program.inotify_init1(0))?;
    task.fd(|program| {
        let path = program.cstr("/");
        program.inotify_add_watch(inotify, path, libc::IN_MODIFY)
    })?;
    shows(&task, inotify, "inotify wd:")
}

pub(crate) fn mnt_id() -> Answer {
    let mut task = Scratch::new()?;
    let event = task.fd(|program| program.eventfd2(0, 0))?;
    shows(&task, event, "mnt_id:")
}

pub(crate) fn fdinfo_lock() -> Answer {
    let mut task = Scratch::new()?;
    let file = task.fd(|program| {
        let name = program.cstr("lock");
        program.call(criu_tracee::Sysno::memfd_create, [name.into(), 0.into()])
    })?;
    task.fd(|program| {
        program.call(
            criu_tracee::Sysno::flock,
            [file.into(), libc::LOCK_EX.into()],
        )
    })?;
    shows(&task, file, "lock:")
}

/// The fdinfo lines, and the ioctl that sets the count of expirations.
pub(crate) fn timerfd() -> Answer {
    const SET_TICKS: ioctl_num_type = nix::request_code_write!(b'T', 0, 8);
    let mut task = Scratch::new()?;
    let timer = task.fd(|program| program.timerfd_create(libc::CLOCK_MONOTONIC, 0))?;
    shows(&task, timer, "clockid:")?;
    let set = task.ask(|program| program.ioctl(timer, SET_TICKS, 0))?;
    judge("ioctl(TFD_IOC_SET_TICKS)", set, &[Errno::EFAULT])
}

pub(crate) fn getown_uids() -> Answer {
    const F_GETOWNER_UIDS: i32 = 17;
    try_once("fcntl(F_GETOWNER_UIDS)", &[], |program| {
        let fd = program.eventfd2(0, 0);
        let uids = program.room(8);
        program.fcntl(fd, F_GETOWNER_UIDS, uids)
    })
}

/// A terminal says whether it is in packet mode, locked, exclusive.
pub(crate) fn tty() -> Answer {
    let mut task = Scratch::new()?;
    let open = task.ask(|program| {
        let path = program.cstr("/dev/ptmx");
        program.openat(libc::AT_FDCWD, path, libc::O_RDWR | libc::O_NOCTTY, 0)
    })?;
    let master = open.map_err(|errno| Lack::unknown(format!("/dev/ptmx: {}", errno.desc())))?;
    for request in [libc::TIOCGPKT, libc::TIOCGPTLCK, libc::TIOCGEXCL] {
        let answer = task.ask(|program| {
            let value = program.room(4);
            program.ioctl(master, request, value)
        })?;
        judge(&format!("ioctl({request:#x}) of a terminal"), answer, &[])?;
    }
    Ok(())
}

pub(crate) fn openat2() -> Answer {
    try_once("openat2", &[], |program| {
        let path = program.cstr("/");
        let how = how(program);
        program.call(
            criu_tracee::Sysno::openat2,
            [libc::AT_FDCWD.into(), path.into(), how.into(), 24.into()],
        )
    })
}

fn how(program: &mut Program) -> Blob {
    program.bytes(words(&[u64::from(libc::O_PATH.cast_unsigned()), 0, 0]))
}
