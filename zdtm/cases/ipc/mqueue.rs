//! POSIX message queues: mq_open(3).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use zdtm::{Case, Child, Result, check, check_eq, fill, ret, skip, verify};

pub(crate) const CASES: &[Case] = &[
    Case::new("mqueue", messages).refused("CRIU has no POSIX message queues"),
    Case::new("mqueue-unlinked", unlinked).refused("CRIU has no POSIX message queues"),
    Case::new("mqueue-shared", shared).refused("CRIU has no POSIX message queues"),
    Case::new("mqueue-notify", notify).refused("what it would tell cannot be read"),
];

const SIZE: usize = 100;
const COUNT: usize = 5;

fn open(name: &CStr, flags: i32) -> Result<OwnedFd> {
    // SAFETY: all its fields are numbers.
    let mut attributes: libc::mq_attr = unsafe { std::mem::zeroed() };
    attributes.mq_maxmsg = COUNT.try_into()?;
    attributes.mq_msgsize = SIZE.try_into()?;
    // SAFETY: a name and a structure of ours.
    let fd = ret(unsafe { libc::mq_open(name.as_ptr(), flags, 0o640, &raw mut attributes) });
    match fd {
        // SAFETY: it is new.
        Ok(fd) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => skip("no POSIX message queues"),
        Err(error) => Err(error.into()),
    }
}

fn unlink(name: &CStr) -> io::Result<()> {
    // SAFETY: a name.
    ret(unsafe { libc::mq_unlink(name.as_ptr()) }).map(drop)
}

fn send(queue: &OwnedFd, priority: u32, size: usize, seed: u64) -> io::Result<()> {
    let mut text = vec![0; size];
    fill(&mut text, seed);
    let start = text.as_ptr().cast();
    // SAFETY: the text is as long as is said.
    ret(unsafe { libc::mq_send(queue.as_raw_fd(), start, size, priority) }).map(drop)
}

fn receive(queue: &OwnedFd, size: usize, seed: u64) -> Result<u32> {
    let mut text = [0_u8; SIZE];
    let mut priority = 0;
    let start = text.as_mut_ptr().cast();
    // SAFETY: there is room for the largest message.
    let got = ret(unsafe { libc::mq_receive(queue.as_raw_fd(), start, SIZE, &raw mut priority) })?;
    check_eq!(got.cast_unsigned(), size);
    verify(&text[..size], seed)?;
    Ok(priority)
}

fn attributes(queue: &OwnedFd) -> Result<libc::mq_attr> {
    // SAFETY: all its fields are numbers.
    let mut found: libc::mq_attr = unsafe { std::mem::zeroed() };
    // SAFETY: a structure of ours.
    ret(unsafe { libc::mq_getattr(queue.as_raw_fd(), &raw mut found) })?;
    Ok(found)
}

const NEW: i32 = libc::O_CREAT | libc::O_EXCL;

/// The highest priority first, of each the oldest; it is full.
fn messages() -> Result<()> {
    let name = c"/zdtm-queue";
    let queue = open(name, NEW | libc::O_RDWR | libc::O_NONBLOCK)?;
    let sent = [(1, SIZE), (7, 0), (1, 10), (32767, 1), (7, 50)];
    for ((priority, size), seed) in sent.into_iter().zip(0..) {
        send(&queue, priority, size, seed)?;
    }
    zdtm::checkpoint()?;
    check!(send(&queue, 1, 1, 9).is_err(), "it is full");
    let now = attributes(&queue)?;
    check_eq!(usize::try_from(now.mq_maxmsg)?, COUNT);
    check_eq!(usize::try_from(now.mq_msgsize)?, SIZE);
    check_eq!(usize::try_from(now.mq_curmsgs)?, COUNT);
    let again = open(name, libc::O_RDWR | libc::O_NONBLOCK)?;
    for index in [3, 1, 4, 0, 2] {
        let (priority, size) = sent[index];
        check_eq!(receive(&again, size, index as u64)?, priority);
    }
    check!(receive(&queue, 0, 0).is_err(), "no more");
    let stat = nix::sys::stat::fstat(&queue)?;
    check_eq!(stat.st_mode & 0o777, 0o640);
    Ok(unlink(name)?)
}

/// It has no name any more.
fn unlinked() -> Result<()> {
    let name = c"/zdtm-queue";
    let queue = open(name, NEW | libc::O_RDWR)?;
    unlink(name)?;
    send(&queue, 3, 30, 3)?;
    zdtm::checkpoint()?;
    check_eq!(receive(&queue, 30, 3)?, 3);
    check!(open(name, libc::O_RDWR).is_err(), "it has no name");
    Ok(())
}

/// Opened for reading by one and for writing by another.
fn shared() -> Result<()> {
    let name = c"/zdtm-queue";
    let reader = open(name, NEW | libc::O_RDONLY)?;
    let writer = open(name, libc::O_WRONLY)?;
    send(&writer, 1, 11, 1)?;
    let child = Child::spawn("child", move || {
        let own = open(name, libc::O_WRONLY)?;
        drop(writer);
        Child::checkpoint();
        Ok(send(&own, 2, 22, 2)?)
    })?;
    zdtm::checkpoint()?;
    child.finish()?;
    check_eq!(receive(&reader, 22, 2)?, 2);
    check_eq!(receive(&reader, 11, 1)?, 1);
    check!(send(&reader, 1, 1, 1).is_err(), "it is for reading");
    Ok(unlink(name)?)
}

/// The task is to be told of the next message.
fn notify() -> Result<()> {
    let name = c"/zdtm-queue";
    let queue = open(name, NEW | libc::O_RDWR)?;
    unlink(name)?;
    // SAFETY: all its fields are numbers.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGWINCH;
    // SAFETY: mq_notify(2), which libc does not have, reads the structure.
    unsafe {
        let event = std::ptr::from_ref(&event).addr();
        let fd = usize::try_from(queue.as_raw_fd())?;
        zdtm::syscall(libc::SYS_mq_notify, [fd, event, 0, 0, 0, 0])?;
    }
    zdtm::checkpoint()?;
    // Only one may ask, so it still stands.
    let event = std::ptr::from_ref(&event).addr();
    let fd = usize::try_from(queue.as_raw_fd())?;
    // SAFETY: as above.
    let again = unsafe { zdtm::syscall(libc::SYS_mq_notify, [fd, event, 0, 0, 0, 0]) };
    check!(again.is_err(), "it was asked before");
    Ok(())
}
