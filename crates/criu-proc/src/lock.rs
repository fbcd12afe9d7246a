//! File locks and leases: `/proc/locks` and the `lock:` lines of fdinfo, proc_locks(5).

use nix::unistd::Pid;

use crate::text::{Line, lines, split_at_byte, unsigned};
use crate::{Dev, ParseError};

/// Which call made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockKind {
    /// `POSIX`: fcntl(2) `F_SETLK`, owned by the process.
    Posix,
    /// `OFDLCK`: fcntl(2) `F_OFD_SETLK`, owned by the open file.
    Ofd,
    /// `FLOCK`: flock(2).
    Flock,
    /// `LEASE`: fcntl(2) `F_SETLEASE`.
    Lease,
    /// `DELEG`: a delegation, `FL_DELEG`: of an NFS server.
    Deleg,
    /// `ACCESS`: a lock that only tests, for mandatory locking; `FL_ACCESS`.
    Access,
}

/// The second word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockMode {
    /// `ADVISORY`.
    Advisory,
    /// `MANDATORY`: of kernels that still had `CONFIG_MANDATORY_FILE_LOCKING`.
    Mandatory,
    /// `MSNFS`: `LOCK_MAND` of flock(2), which newer kernels ignore.
    Msnfs,
    /// `*NOINODE*`: the file is not known.
    NoInode,
    /// `ACTIVE`: a lease nobody disputes.
    Active,
    /// `BREAKING`: a lease its holder must give up.
    Breaking,
    /// `BREAKER`: who waits for that.
    Breaker,
}

/// What the lock lets its owner do; of a lease that breaks, what will be left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockAccess {
    /// `READ`: shared.
    Read,
    /// `WRITE`: exclusive.
    Write,
    /// `UNLCK`.
    Unlock,
    /// `RW`: `LOCK_MAND` with `LOCK_RW`.
    ReadWrite,
    /// `NONE`: `LOCK_MAND` alone.
    None,
}

/// One line. `lock_get_status` in `fs/locks.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lock {
    /// Its number in this reading of the file; those who wait for it share it.
    pub id: i64,
    /// `->`: waits for the lock above.
    pub waits: bool,
    /// Which call made it.
    pub kind: LockKind,
    /// Advisory or mandatory; of leases, the state.
    pub mode: LockMode,
    /// Shared or exclusive.
    pub access: LockAccess,
    /// Who took it: 0 if that process is dead or outside this pid namespace, -1 for [`LockKind::Ofd`].
    pub pid: Pid,
    /// The file, by the device of its superblock and its inode number.
    pub file: Option<(Dev, u64)>,
    /// The first byte.
    pub start: i64,
    /// The last byte, or `None` for `EOF`: to the end, however far it moves.
    pub end: Option<i64>,
}

/// All the lines of `/proc/locks`.
pub fn locks(locks: &[u8]) -> Result<Vec<Lock>, ParseError> {
    lines("locks", locks).map(Lock::parse).collect()
}

impl Lock {
    pub(crate) fn parse(mut line: Line<'_>) -> Result<Self, ParseError> {
        line.skip_blanks();
        let before = line.clone();
        let id = crate::text::signed(line.until(b':', "a lock's number")?);
        let id = id.ok_or_else(|| before.error("a lock's number"))?;
        line.skip_blanks();
        let waits = line.take(b"->");
        let before = line.clone();
        let kind = match line.word() {
            b"POSIX" => LockKind::Posix,
            b"OFDLCK" => LockKind::Ofd,
            b"FLOCK" => LockKind::Flock,
            b"LEASE" => LockKind::Lease,
            b"DELEG" => LockKind::Deleg,
            b"ACCESS" => LockKind::Access,
            _ => return Err(before.error("a kind of lock like POSIX")),
        };
        let before = line.clone();
        let mode = match line.word() {
            b"ADVISORY" => LockMode::Advisory,
            b"MANDATORY" => LockMode::Mandatory,
            b"MSNFS" => LockMode::Msnfs,
            b"*NOINODE*" => LockMode::NoInode,
            b"ACTIVE" => LockMode::Active,
            b"BREAKING" => LockMode::Breaking,
            b"BREAKER" => LockMode::Breaker,
            _ => return Err(before.error("a lock's mode like ADVISORY")),
        };
        let before = line.clone();
        let access = match line.word() {
            b"READ" => LockAccess::Read,
            b"WRITE" => LockAccess::Write,
            b"UNLCK" => LockAccess::Unlock,
            b"RW" => LockAccess::ReadWrite,
            b"NONE" => LockAccess::None,
            _ => return Err(before.error("READ or WRITE")),
        };
        let pid = line.pid("a pid")?;
        let before = line.clone();
        let file = file(line.word()).ok_or_else(|| before.error("a file like fe:00:1234"))?;
        let start = line.int("the first byte")?;
        line.skip_blanks();
        let end = if line.take(b"EOF") {
            None
        } else {
            Some(line.int("the last byte")?)
        };
        line.end()?;
        Ok(Self {
            id,
            waits,
            kind,
            mode,
            access,
            pid,
            file,
            start,
            end,
        })
    }
}

/// `fe:00:1234`, or `<none>:0`. Old kernels printed inode numbers above 2^63 as negative.
fn file(word: &[u8]) -> Option<Option<(Dev, u64)>> {
    if word == b"<none>:0" {
        return Some(None);
    }
    let number = |digits| unsigned(digits, 16).and_then(|number| u32::try_from(number).ok());
    let (major, rest) = split_at_byte(word, b':')?;
    let (minor, inode) = split_at_byte(rest, b':')?;
    let inode =
        unsigned(inode, 10).or_else(|| crate::text::signed(inode).map(i64::cast_unsigned))?;
    Some(Some((
        Dev {
            major: number(major)?,
            minor: number(minor)?,
        },
        inode,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_locks() {
        let all = locks(include_bytes!("../fixtures/locks")).expect("a real file");
        let file = Some((
            Dev {
                major: 0xfe,
                minor: 0,
            },
            10_010_764,
        ));
        assert_eq!(
            (all[0].kind, all[0].mode, all[0].access),
            (LockKind::Lease, LockMode::Active, LockAccess::Read)
        );
        assert_eq!(
            (all[1].kind, all[1].file, all[1].start, all[1].end),
            (LockKind::Posix, file, 0, Some(9))
        );
        assert_eq!(
            (all[2].kind, all[2].access, all[2].end),
            (LockKind::Flock, LockAccess::Write, None)
        );
    }

    #[test]
    fn waiters_and_old_kernels() {
        let text = b"1: OFDLCK ADVISORY  READ -1 00:01:7 5 EOF\n\
            1:        -> POSIX  MANDATORY WRITE 0 <none>:0 5 6\n\
            2: -> FLOCK  MSNFS     NONE 9 08:01:-1 0 EOF\n";
        let all = locks(text).expect("well formed");
        assert_eq!((all[0].pid.as_raw(), all[0].waits), (-1, false));
        assert_eq!((all[1].waits, all[1].file), (true, None));
        assert_eq!(all[2].file.map(|(_, inode)| inode), Some(u64::MAX));
        let error = locks(b"1: GLOCK").expect_err("no such kind");
        assert_eq!(
            error.to_string(),
            "locks:1: expected a kind of lock like POSIX, found \"GLOCK\""
        );
    }
}
