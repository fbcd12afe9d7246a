//! Which descriptors show the same struct file: kcmp(2), in few calls.
//!
//! The kernel orders objects, so n files of a bucket take n log n comparisons; and files that differ in
//! inode, mount or access are told apart without asking.

use std::collections::HashMap;

use criu_image::id::{FdTableId, FileId};
use criu_kind::{Error, Result, Slot};
use criu_proc::Fdinfo;
use criu_tracee::{Kcmp, Local, Program, Site, Sysno, find, kcmp};
use nix::errno::Errno;
use nix::unistd::Pid;

const KCMP_EPOLL_TFD: u32 = 7;

/// What all descriptors of one struct file have in common for as long as it is open. Position and most flags are
/// not: somebody outside the dump may have the file too, and move on while we look.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Bucket {
    object: Object,
    /// Event counters, which have one inode, are numbered: Linux 5.2.
    serial: Option<u64>,
    mount: Option<i32>,
    access: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Object {
    Inode(u64),
    /// Before Linux 5.14 fdinfo has no inode number: the link takes its place.
    Link(Vec<u8>),
}

/// All struct files met so far.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    buckets: HashMap<Bucket, Vec<(Slot, FileId)>>,
    tables: Vec<(Pid, FdTableId)>,
}

impl Identities {
    /// The file of a descriptor if it was met before; else `next` becomes its id.
    pub(crate) fn file(
        &mut self,
        slot: Slot,
        info: &Fdinfo,
        link: impl FnOnce() -> Result<Vec<u8>>,
        next: FileId,
    ) -> Result<Option<FileId>> {
        let object = match info.inode {
            Some(inode) => Object::Inode(inode),
            None => Object::Link(link()?),
        };
        let serial = info
            .value("eventfd-id")
            .and_then(|id| std::str::from_utf8(id).ok()?.trim().parse().ok());
        let bucket = Bucket {
            object,
            serial,
            mount: info.mount.map(|id| id.0),
            access: info.flags & (libc::O_ACCMODE | libc::O_PATH).cast_unsigned(),
        };
        let known = self.buckets.entry(bucket).or_default();
        Ok(find(known, (slot, next), |known| {
            kcmp(known.pid, slot.pid, Kcmp::File(known.fd, slot.fd))
        })?)
    }

    /// The descriptor table of a process if it was met before; else `next` becomes its id.
    pub(crate) fn table(&mut self, pid: Pid, next: FdTableId) -> Result<Option<FdTableId>> {
        Ok(find(&mut self.tables, (pid, next), |known| {
            kcmp(known, pid, Kcmp::Files)
        })?)
    }
}

/// Whether two tasks share their descriptor table, or one left that of the other.
pub(crate) fn share_descriptors(one: Pid, other: Pid) -> Result<bool> {
    Ok(kcmp(one, other, Kcmp::Files)?.is_eq())
}

/// Whether two tasks share working directory, root and umask.
pub(crate) fn share_fs(one: Pid, other: Pid) -> Result<bool> {
    Ok(kcmp(one, other, Kcmp::Fs)?.is_eq())
}

/// Whether the file of `slot` is the one that the epoll set at `epoll` watches under the number `number`;
/// `skip` earlier targets have that number too. Linux 4.13.
pub(crate) fn is_epoll_target(slot: Slot, epoll: Slot, number: i32, skip: u32) -> Result<bool> {
    let mut program = Program::new();
    let mut words = Vec::with_capacity(12);
    for word in [epoll.fd.cast_unsigned(), number.cast_unsigned(), skip] {
        words.extend(word.to_ne_bytes());
    }
    let which = program.bytes(words);
    let order = program.call(
        Sysno::kcmp,
        [
            slot.pid.as_raw().into(),
            epoll.pid.as_raw().into(),
            KCMP_EPOLL_TFD.into(),
            slot.fd.into(),
            which.into(),
        ],
    );
    program.tolerate();
    match Local.run(&program)?.get(order) {
        Ok(order) => Ok(order == 0),
        // The slot is free.
        Err(Errno::EBADF) => Ok(false),
        Err(errno) => Err(Error::Kernel {
            call: "kcmp",
            errno,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn copies_are_one_file_and_openings_are_not() {
        let me = Pid::this();
        let first = File::open("/dev/null").expect("a device");
        let copy = first.try_clone().expect("dup");
        let second = File::open("/dev/null").expect("a device");
        let mut identities = Identities::default();
        let mut id = |file: &File, next| {
            let slot = Slot {
                pid: me,
                fd: file.as_raw_fd(),
            };
            let text = std::fs::read(format!("/proc/self/fdinfo/{}", slot.fd)).expect("ours");
            let info = Fdinfo::parse(&text).expect("well formed");
            identities
                .file(slot, &info, || Ok(Vec::new()), FileId::new(next))
                .expect("kcmp")
        };
        assert_eq!(id(&first, 1), None);
        assert_eq!(id(&copy, 2), Some(FileId::new(1)));
        assert_eq!(id(&second, 2), None);
        assert_eq!(id(&second, 3), Some(FileId::new(2)));
    }
}
