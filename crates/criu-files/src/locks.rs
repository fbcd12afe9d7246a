//! Locks on files: POSIX, flock(2), open file description, leases.
//!
//! The kernel lists them in fdinfo, at each descriptor of the struct file they were taken through; a POSIX lock
//! belongs to the process and shows only there. Each is kept once. Of a lease that breaks the kernel shows
//! what will be left of it; what it was follows from how the file is open. It is broken again at restore, and
//! its holder, who knows already, is not told a second time.

use std::collections::HashSet;

use criu_image::pb;
use criu_kind::{Error, Result, Slot};
use criu_proc::{Fdinfo, Lock, LockAccess, LockKind, LockMode, ProcDir};
use criu_tracee::{Program, Sysno};

use crate::options::DumpOptions;

// Kinds, as images number them.
const POSIX: u32 = 1;
const FLOCK: u32 = 2;
const OFD: u32 = 4;
const LEASE: u32 = 8;
/// Beside the type that will be left, in the type of a lease that breaks.
const BREAKING: u32 = 4;

// `include/uapi/asm-generic/fcntl.h`, the same on all architectures.
const F_RDLCK: u32 = 0;
const F_WRLCK: u32 = 1;
const F_UNLCK: u32 = 2;

/// The locks met so far.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    entries: Vec<pb::FileLockEntry>,
    known: HashSet<(LockKind, i64, u64, i64, Option<i64>)>,
}

impl Locks {
    /// Takes in the locks of a descriptor. `file` is the id of its struct file.
    pub(crate) fn take(
        &mut self,
        options: &DumpOptions,
        slot: Slot,
        file: u32,
        info: &Fdinfo,
        proc: &ProcDir,
    ) -> Result<()> {
        let pid = proc
            .status()?
            .ns_pid
            .and_then(|pids| pids.last().copied())
            .unwrap_or(slot.pid);
        for lock in &info.locks {
            if !options.file_locks {
                let fact = format!("it holds a {} lock", describe(lock));
                return Err(Error::unsupported(fact, "give --file-locks"));
            }
            let owner = match lock.kind {
                LockKind::Posix => slot.pid.as_raw().into(),
                _ => i64::from(file),
            };
            let inode = lock.file.map_or(0, |(_, inode)| inode);
            if self
                .known
                .insert((lock.kind, owner, inode, lock.start, lock.end))
            {
                self.entries.push(entry(lock, pid.as_raw(), slot.fd)?);
            }
        }
        Ok(())
    }

    pub(crate) fn into_entries(self) -> Vec<pb::FileLockEntry> {
        self.entries
    }
}

fn describe(lock: &Lock) -> &'static str {
    match lock.kind {
        LockKind::Posix => "POSIX",
        LockKind::Ofd => "open file description",
        LockKind::Flock => "flock",
        LockKind::Lease => "lease",
        LockKind::Deleg => "delegation",
        LockKind::Access => "mandatory",
    }
}

fn entry(lock: &Lock, pid: i32, fd: i32) -> Result<pb::FileLockEntry> {
    let flag = match (lock.kind, lock.mode) {
        (LockKind::Posix, LockMode::Advisory) => POSIX,
        (LockKind::Ofd, LockMode::Advisory) => OFD,
        (LockKind::Flock, LockMode::Advisory) => FLOCK,
        (LockKind::Lease, LockMode::Active | LockMode::Breaking) => LEASE,
        _ => {
            let fact = format!(
                "it holds a {} lock that is not plain ({:?})",
                describe(lock),
                lock.mode
            );
            return Err(Error::unsupported(
                fact,
                "try again when the lock is released",
            ));
        }
    };
    let r#type = match lock.access {
        LockAccess::Read => F_RDLCK,
        LockAccess::Write => F_WRLCK,
        _ => F_UNLCK,
    };
    let breaking = if lock.mode == LockMode::Breaking {
        BREAKING
    } else {
        0
    };
    let len = lock.end.map_or(0, |end| end - lock.start + 1);
    Ok(pb::FileLockEntry {
        flag,
        r#type: r#type | breaking,
        pid,
        fd,
        start: lock.start,
        len,
    })
}

/// Takes the lock again, in the process that had it. `file`: how its file is open.
pub(crate) fn retake(lock: &pb::FileLockEntry, file: u32, program: &mut Program) -> Result<()> {
    let fd = lock.fd;
    let reads = lock.r#type == F_RDLCK;
    match lock.flag {
        POSIX => {
            let what = program.bytes(flock(lock));
            program.set_lock(fd, what);
        }
        OFD => {
            let what = program.bytes(flock(lock));
            program.fcntl(fd, libc::F_OFD_SETLK, what);
        }
        FLOCK => {
            let how = if reads { libc::LOCK_SH } else { libc::LOCK_EX };
            program.call(Sysno::flock, [fd.into(), (how | libc::LOCK_NB).into()]);
        }
        LEASE if lock.r#type & BREAKING != 0 => rebreak(lock, file, program),
        LEASE => {
            program.fcntl(fd, libc::F_SETLEASE, lock.r#type);
        }
        other => {
            return Err(Error::corrupt(
                "filelocks.img",
                format!("kind {other} of lock is not known"),
            ));
        }
    }
    Ok(())
}

/// Takes the lease that was, and breaks it without a signal: the owner is set afterwards.
fn rebreak(lock: &pb::FileLockEntry, file: u32, program: &mut Program) {
    let only_reads = file & libc::O_ACCMODE.cast_unsigned() == libc::O_RDONLY.cast_unsigned();
    let before = if only_reads { F_RDLCK } else { F_WRLCK };
    program.fcntl(lock.fd, libc::F_SETLEASE, before);
    program.fcntl(lock.fd, libc::F_SETOWN, 0);
    let breaker = if lock.r#type & !BREAKING == F_RDLCK {
        libc::O_RDONLY
    } else {
        libc::O_WRONLY
    };
    let path = program.cstr(format!("/proc/self/fd/{}", lock.fd));
    let flags = breaker | libc::O_NONBLOCK | libc::O_CLOEXEC;
    program.openat(libc::AT_FDCWD, path, flags, 0);
    // Refused, as it is to be: EWOULDBLOCK.
    program.tolerate();
}

/// `struct flock` with 64-bit offsets.
fn flock(lock: &pb::FileLockEntry) -> Vec<u8> {
    let kind = u16::try_from(lock.r#type).unwrap_or(0);
    let mut bytes = Vec::with_capacity(32);
    bytes.extend(kind.to_ne_bytes());
    bytes.extend([0; 6]); // SEEK_SET, and a hole.
    bytes.extend(lock.start.to_ne_bytes());
    bytes.extend(lock.len.to_ne_bytes());
    bytes.extend([0; 8]); // The pid is for answers.
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn each_kind_is_taken_by_its_own_call() {
        let mut program = Program::new();
        for (flag, kind) in [(POSIX, 1), (OFD, 0), (FLOCK, 0), (LEASE, 1), (LEASE, 6)] {
            let lock = pb::FileLockEntry {
                flag,
                r#type: kind,
                pid: 7,
                fd: 3,
                start: 10,
                len: 5,
            };
            retake(&lock, 2, &mut program).expect("known kinds");
        }
        expect![[r#"
            $0 = fcntl(3, 6, <01000000000000000a0000000000000005000000000000000000000000000000>)
            $1 = fcntl(3, 37, <00000000000000000a0000000000000005000000000000000000000000000000>)
            $2 = flock(3, 5)
            $3 = fcntl(3, 1024, 1)
            $4 = fcntl(3, 1024, 1)
            $5 = fcntl(3, 8, 0)
            $6 = openat(-100, "/proc/self/fd/3", 0x80801, 0) ?
        "#]]
        .assert_eq(&program.to_string());
    }
}
