//! What `/proc` says of tasks that are to be held or are held.

use std::fs::{self, File};
use std::io::{self, Read};

use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::stop::Stop;

/// Whether a signal that has a handler is pending and not blocked.
pub(crate) fn handler_is_next(tid: Pid, mask: &[u8]) -> bool {
    let status = status(tid);
    let set = |name| u128::from_str_radix(field(&status, name), 16).unwrap_or(0);
    let blocked = mask
        .iter()
        .rev()
        .fold(0u128, |all, byte| all << 8 | u128::from(*byte));
    (set("SigPnd") | set("ShdPnd")) & set("SigCgt") & !blocked != 0
}

pub(crate) fn thread_ids(pid: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut tids: Vec<Pid> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .collect();
    if tids.len() > 1 && has_ring(pid) {
        tids.retain(|tid| *tid == pid || !is_worker(*tid));
    }
    tids
}

/// Whether the kernel may have threads of its own in a process: those of io_uring(7).
fn has_ring(pid: Pid) -> bool {
    let fds = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    fds.flatten().any(|fd| {
        let link = fs::read_link(fd.path());
        link.is_ok_and(|link| link.as_os_str() == "anon_inode:[io_uring]")
    })
}

/// Whether a thread is one of them. It never returns to user mode, and it goes on while others are stopped.
fn is_worker(tid: Pid) -> bool {
    /// `PF_IO_WORKER`, and `PF_USER_WORKER` of Linux 6.4.
    const WORKER: u64 = 0x10 | 0x4000;
    let Ok(stat) = fs::read_to_string(format!("/proc/{tid}/stat")) else {
        return false;
    };
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let flags = after.split_ascii_whitespace().nth(6);
    flags
        .and_then(|flags| flags.parse().ok())
        .is_some_and(|flags: u64| flags & WORKER != 0)
}

/// All of a small file of proc, in one piece. `take` keeps it from being asked for its size: it has none.
pub(crate) fn read(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(4096);
    File::open(path)?.take(u64::MAX).read_to_end(&mut bytes)?;
    bytes.shrink_to_fit();
    Ok(bytes)
}

/// The same as text.
pub(crate) fn read_text(path: &str) -> Option<String> {
    String::from_utf8(read_at_once(path).ok()?).ok()
}

/// From so many on two threads of ours look at as many threads at the same time.
const MANY: usize = 64;

/// What is found for each, in order.
pub(crate) fn side_by_side<T: Sync, R: Send>(all: &[T], each: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let look = |some: &[T]| -> Vec<R> { some.iter().map(&each).collect() };
    if all.len() < MANY {
        return look(all);
    }
    let (here, there) = all.split_at(all.len() / 2);
    std::thread::scope(|scope| {
        let there = scope.spawn(|| look(there));
        let mut found = look(here);
        match there.join() {
            Ok(others) => found.extend(others),
            Err(panic) => std::panic::resume_unwind(panic),
        }
        found
    })
}

/// What `status` says of a thread; nothing if that is gone.
pub(crate) fn thread_status(pid: Pid, tid: Pid) -> Vec<u8> {
    read_at_once(&format!("/proc/{pid}/task/{tid}/status")).unwrap_or_default()
}

/// A file that the kernel makes as a whole: a read that does not fill its buffer was the last.
fn read_at_once(path: &str) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 4096];
    match File::open(path)?.read(&mut buffer)? {
        length if length < buffer.len() => Ok(buffer[..length].to_vec()),
        _ => read(path),
    }
}

fn status(tid: Pid) -> String {
    String::from_utf8_lossy(&thread_status(tid, tid)).into_owned()
}

pub(crate) fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map_or("", str::trim)
}

/// Whether it is dead, reaped or not.
pub(crate) fn is_dead(tid: Pid) -> bool {
    matches!(
        field(&status(tid), "State").chars().next(),
        None | Some('Z' | 'X')
    )
}

/// The id that the task has in its own pid namespace.
pub(crate) fn own_id(tid: Pid, status: &str) -> Pid {
    field(status, "NSpid")
        .split_ascii_whitespace()
        .next_back()
        .and_then(|id| id.parse().ok())
        .map_or(tid, Pid::from_raw)
}

pub(crate) fn already_traced(tid: Pid, error: Error) -> Error {
    let tracer = field(&status(tid), "TracerPid").parse().unwrap_or(0);
    if tracer == 0 {
        error
    } else {
        Error::Traced {
            pid: tid,
            tracer: Pid::from_raw(tracer),
        }
    }
}

/// A signal that does nothing by default and that the process neither handles nor has pending.
///
/// `SIGCONT` is one too, as long as nobody is stopped or about to be. If all are taken, a process whose
/// tracer dies may see a `SIGURG` that nobody sent. `but` is left to others.
pub(crate) fn closing_signal(status: &str, stop: Stop, but: Option<i32>) -> i32 {
    const STOPS: [i32; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    let set = |name| u64::from_str_radix(field(status, name), 16).unwrap_or(0);
    let pending = set("ShdPnd") | set("SigPnd");
    let busy = set("SigCgt") | pending;
    let has = |set: u64, signal: i32| set >> (signal - 1) & 1 == 1;
    let may_continue =
        !matches!(stop, Stop::Group(_)) && !STOPS.iter().any(|signal| has(pending, *signal));
    [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD]
        .into_iter()
        .chain(may_continue.then_some(libc::SIGCONT))
        .find(|signal| !has(busy, *signal) && Some(*signal) != but)
        .unwrap_or(libc::SIGURG)
}

/// A hole below 4 GiB.
pub(crate) fn low_hole(pid: Pid, size: u64) -> Result<u64> {
    let maps = read(&format!("/proc/{pid}/maps")).map_err(|_| Error::Gone(pid))?;
    let maps = String::from_utf8_lossy(&maps);
    let mut at = 0x10_0000;
    for line in maps.lines() {
        let Some((start, end)) = line
            .split_ascii_whitespace()
            .next()
            .and_then(|range| range.split_once('-'))
        else {
            continue;
        };
        let start = u64::from_str_radix(start, 16).unwrap_or(0);
        let end = u64::from_str_radix(end, 16).unwrap_or(0);
        if start >= at + size + 0x10_0000 {
            break;
        }
        at = at.max(end);
    }
    // Of any page size.
    Ok(at.next_multiple_of(0x1_0000))
}
