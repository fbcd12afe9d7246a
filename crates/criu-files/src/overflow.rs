//! An event in place of those that a group of fanotify(7) had waiting: `FAN_Q_OVERFLOW`, some were lost.
//!
//! Only the kernel makes it, when a queue is full. So the queue is filled, with an event of a file of its own each, as
//! two of one file would be one; and all but the last are read. Groups whose queue is never full
//! (`FAN_UNLIMITED_QUEUE`) have no such event.

use criu_kind::{Error, RestoreCx, Result};
use criu_tracee::{Arg, Program, Ret};
use nix::errno::Errno;

const MARK_ADD: u32 = 1;
const MARK_FLUSH: u32 = 0x80;
const FAN_OPEN: u64 = 0x20;
/// `struct fanotify_event_metadata`; the descriptor in it.
const EVENT: usize = 24;
const FD_AT: usize = 16;
/// More than an event with the handle of a file of shared memory takes.
const MOST: usize = 512;
const ALIGN: usize = 4;
/// Files that are open at once.
const AT_ONCE: usize = 64;
/// Where there is no file that says so, before Linux 5.13.
const LIMIT: usize = 16384;
const READ: u32 = (libc::O_RDONLY | libc::O_CLOEXEC).cast_unsigned();

/// Leaves in the queue of a new group that events were lost, and nothing else.
pub(crate) fn leave(cx: &mut dyn RestoreCx, group: i32) -> Result<()> {
    let limit = match std::fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events") {
        Ok(text) => text.trim().parse().unwrap_or(LIMIT),
        Err(_) => LIMIT,
    };
    for first in (0..=limit).step_by(AT_ONCE) {
        fill(cx, group, AT_ONCE.min(limit + 1 - first))?;
    }
    let size = drain_first(cx, group)?;
    let mut left = limit.saturating_sub(1);
    while left > 0 {
        left -= drain(cx, group, left.min(AT_ONCE), size)?;
    }
    let mut program = Program::new();
    let bytes = program.room(4);
    program.ioctl(group, libc::FIONREAD, bytes);
    let outcome = cx.here().run(&program)?;
    if int(outcome.bytes(bytes), 0) == i32::try_from(EVENT).unwrap_or(0) {
        return Ok(());
    }
    Err(Error::unsupported(
        "its queue could not be made to say that events were lost",
        "dump again when the program has read its events",
    ))
}

/// Adds so many events.
fn fill(cx: &mut dyn RestoreCx, group: i32, count: usize) -> Result<()> {
    let mut program = Program::new();
    let name = program.cstr("lost");
    let made = (0..count).map(|_| program.memfd_create(name, libc::MFD_CLOEXEC));
    let made: Vec<Ret> = made.collect();
    let outcome = cx.here().run(&program)?;
    let made: Vec<i32> = made.into_iter().map(|file| outcome.fd(file)).collect();
    let program = hear(group, &made);
    cx.here().run(&program).map(drop).map_err(Error::from)
}

/// Lets the group hear of each of these files once, and closes them.
fn hear(group: i32, files: &[i32]) -> Program {
    let mut program = Program::new();
    for file in files {
        let path = program.cstr(format!("/proc/self/fd/{file}"));
        program.fanotify_mark(group, MARK_ADD, FAN_OPEN, libc::AT_FDCWD, path);
        let opened = program.openat(libc::AT_FDCWD, path, READ, 0);
        program.close(opened);
        program.close(*file);
    }
    let nowhere = program.cstr("/");
    program.fanotify_mark(group, MARK_FLUSH, 0, libc::AT_FDCWD, nowhere);
    program
}

/// Reads the first event, and tells how large all of them are.
fn drain_first(cx: &mut dyn RestoreCx, group: i32) -> Result<usize> {
    for size in (EVENT..MOST).step_by(ALIGN) {
        let mut program = Program::new();
        let room = program.room(size);
        let read = program.read(group, room, size);
        program.tolerate();
        let outcome = cx.here().run(&program)?;
        match outcome.get(read) {
            Ok(_) => {
                close(cx, outcome.bytes(room), size)?;
                return Ok(size);
            }
            Err(Errno::EINVAL) => {}
            Err(errno) => return Err(Error::kernel("read(fanotify)")(errno)),
        }
    }
    Err(Error::kernel("read(fanotify)")(Errno::EINVAL))
}

/// Reads up to so many events; how many there were.
fn drain(cx: &mut dyn RestoreCx, group: i32, count: usize, size: usize) -> Result<usize> {
    let mut program = Program::new();
    let room = program.room(count * size);
    let read = program.read(group, room, count * size);
    let outcome = cx.here().run(&program)?;
    let length = usize::try_from(outcome.value(read)).unwrap_or(0);
    close(cx, &outcome.bytes(room)[..length], size)?;
    Ok((length / size).max(1))
}

/// Closes the files that came with events.
fn close(cx: &mut dyn RestoreCx, events: &[u8], size: usize) -> Result<()> {
    let mut program = Program::new();
    let files = events.chunks_exact(size).map(|event| int(event, FD_AT));
    for file in files.filter(|file| *file >= 0) {
        program.close(Arg::from(file));
    }
    cx.here().run(&program).map(drop).map_err(Error::from)
}

fn int(bytes: &[u8], at: usize) -> i32 {
    let bytes = bytes.get(at..at + 4);
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(-1, i32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn files_are_heard_of_once() {
        expect![[r#"
            $0 = fanotify_mark(3, 1, 32, -100, "/proc/self/fd/7")
            $1 = openat(-100, "/proc/self/fd/7", 0x80000, 0)
            $2 = close($1)
            $3 = close(7)
            $4 = fanotify_mark(3, 1, 32, -100, "/proc/self/fd/9")
            $5 = openat(-100, "/proc/self/fd/9", 0x80000, 0)
            $6 = close($5)
            $7 = close(9)
            $8 = fanotify_mark(3, 128, 0, -100, "/")
        "#]]
        .assert_eq(&hear(3, &[7, 9]).to_string());
    }
}
