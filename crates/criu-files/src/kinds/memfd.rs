//! Memory with a descriptor: memfd_create(2).
//!
//! One inode, opened any number of times, and mapped: each opening is an entry, the inode is in
//! `memfd.img`, its pages are where those of shared memory are. Seals come last, after the content
//! and the mappings. Not preserved: which control group pays for the pages; which huge pages are there and
//! hold nothing.
//!
//! Anonymous shared memory that is open, or mapped privately, by way of `/proc/PID/map_files`, is kept as CRIU keeps all of
//! it: as a memfd by the name that `/proc` shows, with the seal that it is born with. It is made as what it was.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};

use criu_image::id::ShmId;
use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{DumpCx, Error, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result};
use criu_tracee::stat::fstat;
use criu_tracee::{Local, Program, Site, shared_anonymous};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statfs::{FsType, HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::{SysconfVar, sysconf};

use crate::describe::reopen;
use crate::kinds::regular::copy_given;

const PREFIX: &[u8] = b"/memfd:";
/// What `/proc` calls anonymous shared memory, and the seal that it has from the start.
const ZERO: &[u8] = b"/dev/zero";
const F_SEAL_SEAL: u32 = 1;
const DELETED: &[u8] = b" (deleted)";
const MODE_BITS: u32 = 0o7777;
const O_PATH: u32 = libc::O_PATH.cast_unsigned();
/// `MFD_HUGE_SHIFT`, `MFD_HUGE_MASK`.
const HUGE_SHIFT: u32 = 26;
const HUGE_MASK: u32 = 0x3f << HUGE_SHIFT;
/// Marks the ids of inodes of huge pages. CRIU counts them with a sign.
const HUGE_ID: u32 = 1 << 30;
const O_ACCMODE: u32 = libc::O_ACCMODE.cast_unsigned();
const O_RDONLY: u32 = libc::O_RDONLY.cast_unsigned();
/// Linux 6.3.
const MFD_NOEXEC_SEAL: u32 = 8;
/// Linux 6.3.
const MFD_EXEC: u32 = 16;
/// Linux 6.3: the mode stays as executable as it is.
const F_SEAL_EXEC: u32 = 32;

/// An opening of a memfd.
#[derive(Debug)]
pub struct Memfd;

/// Whether a file is a memfd, or anonymous shared memory.
pub(crate) fn is_memfd(file: &OpenFile) -> bool {
    let has_name = || match name(&file.link) {
        Some(ZERO) => is_of_kernel(file),
        name => name.is_some(),
    };
    file.inode.format() == libc::S_IFREG && file.inode.links == 0 && has_name()
}

/// Whether a file is of the file system that the kernel keeps such memory in, and not one at `/dev/zero`.
fn is_of_kernel(file: &OpenFile) -> bool {
    let probe = memfd_create("probe", MFdFlags::MFD_CLOEXEC);
    let stat = probe.and_then(|probe| fstat(&probe));
    stat.is_ok_and(|stat| stat.st_dev == file.inode.dev)
}

/// Whether a file is System V shared memory, through `/proc/PID/map_files`: to keep it as a file of its own would part it
/// from those who attach it.
pub(crate) fn is_segment(file: &OpenFile) -> bool {
    let is_file = file.inode.format() == libc::S_IFREG && file.inode.links == 0;
    is_file && file.link.starts_with(b"/SYSV")
}

/// Whether a file is memory that nobody but who maps it may read: memfd_secret(2).
pub(crate) fn is_secret(file: &OpenFile) -> bool {
    /// `SECRETMEM_MAGIC` of `include/uapi/linux/magic.h`.
    const MAGIC: FsType = FsType(0x5345_434d);
    file.link == b"/secretmem (deleted)"
        && fstatfs(&file.fd).is_ok_and(|fs| fs.filesystem_type() == MAGIC)
}

fn name(link: &[u8]) -> Option<&[u8]> {
    let link = link.strip_suffix(DELETED)?;
    match link {
        ZERO => Some(ZERO),
        _ => link.strip_prefix(PREFIX),
    }
}

/// Whether it is no memfd, but anonymous shared memory.
fn is_anonymous(inode: &pb::MemfdInodeEntry) -> bool {
    inode.name == ZERO && inode.seals == F_SEAL_SEAL && inode.hugetlb_flag.is_none()
}

/// The seals that it has to be given.
fn seals(inode: &pb::MemfdInodeEntry) -> u32 {
    if is_anonymous(inode) { 0 } else { inode.seals }
}

impl FileKind for Memfd {
    type Entry = pb::MemfdFileEntry;
    const NAME: &'static str = "memfd";
    const SINCE: Kernel = Kernel::new(3, 17, 0);

    fn claims(&self, file: &OpenFile) -> bool {
        is_memfd(file)
    }

    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        let inode_id = inode_id(file)?;
        if cx.first(Self::NAME, inode_id.into()) {
            inode(cx, file, inode_id)?;
        }
        Ok(pb::MemfdFileEntry {
            id: file.number(),
            flags: file.flags(),
            pos: file.info.pos.cast_unsigned(),
            fown: file.owner,
            inode_id,
        })
    }

    fn twins(&self, entry: &Self::Entry) -> Option<u64> {
        Some(entry.inode_id.into())
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let mut all = self.open_twins(cx, &[entry])?;
        Ok(all.remove(0))
    }

    fn open_twins(&self, cx: &mut dyn RestoreCx, entries: &[&Self::Entry]) -> Result<Vec<Opened>> {
        let Some(first) = entries.first() else {
            return Ok(Vec::new());
        };
        let inode = inode_of(cx, first)?;
        if let Some(given) = cx.inherited(&[PREFIX, &inode.name].concat()) {
            return entries.iter().map(|_| copy_given(cx, given)).collect();
        }
        let made = create(cx, &inode)?;
        cx.memory(ShmId::new(inode.shmid.into()), made, inode.size)?;
        let mut program = Program::new();
        program.fchown(made, inode.uid, inode.gid);
        if let Some(mode) = inode.mode {
            program.fchmod(made, mode & MODE_BITS);
        }
        if seals(&inode) != 0 && !entries.iter().any(|entry| writes(entry)) {
            // Nobody else could add them later.
            program.fcntl(made, libc::F_ADD_SEALS, inode.seals);
        }
        let path = program.cstr(format!("/proc/self/fd/{made}"));
        let mut opened = Vec::with_capacity(entries.len());
        // What memfd_create gave is no opening for writing, which would forbid to execute it: one entry is that.
        let original = entries
            .iter()
            .position(|entry| entry.flags & (O_ACCMODE | O_PATH) == libc::O_RDWR.cast_unsigned());
        for (at, entry) in entries.iter().enumerate() {
            let always = (libc::O_CLOEXEC | libc::O_NOCTTY).cast_unsigned();
            let never = (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ASYNC)
                .cast_unsigned()
                | libc::O_NOFOLLOW.cast_unsigned();
            let flags = entry.flags & !never | always;
            let fd = if original == Some(at) {
                program.fcntl(made, libc::F_SETFL, flags & !O_ACCMODE & !always);
                program.fcntl(made, libc::F_DUPFD_CLOEXEC, 0)
            } else {
                program.openat(libc::AT_FDCWD, path, flags, 0)
            };
            if entry.pos != 0 && entry.flags & O_PATH == 0 {
                program.lseek(fd, entry.pos, libc::SEEK_SET);
            }
            opened.push(fd);
        }
        program.close(made);
        let outcome = cx.here().run(&program)?;
        Ok(opened
            .into_iter()
            .map(|fd| Opened::Here(outcome.fd(fd)))
            .collect())
    }

    /// When it is mapped: a seal against writing would forbid to map it for that.
    fn last(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry, fd: i32) -> Result<Program> {
        let mut program = Program::new();
        let seals = seals(&inode_of(cx, entry)?);
        let sealed = cx.cached(|_| Ok(Sealed::default()))?;
        if seals != 0 && writes(entry) && sealed.0.borrow_mut().insert(entry.inode_id) {
            program.fcntl(fd, libc::F_ADD_SEALS, seals);
        }
        Ok(program)
    }
}

/// Inodes that have their seals.
#[derive(Default)]
struct Sealed(RefCell<HashSet<u32>>);

/// Whether seals can be added through it.
fn writes(entry: &pb::MemfdFileEntry) -> bool {
    entry.flags & O_ACCMODE != O_RDONLY && entry.flags & O_PATH == 0
}

/// Describes the inode, and takes in its pages.
fn inode(cx: &mut dyn DumpCx, file: &OpenFile, inode_id: u32) -> Result<()> {
    let object = reopen(&file.fd, OFlag::O_RDONLY).map_err(Error::kernel("openat(memfd)"))?;
    let mut program = Program::new();
    let seals = program.fcntl(object.as_raw_fd(), libc::F_GET_SEALS, 0);
    let seals = Local.run(&program)?.value(seals);
    let entry = pb::MemfdInodeEntry {
        name: name(&file.link).unwrap_or_default().to_vec(),
        uid: file.inode.uid,
        gid: file.inode.gid,
        size: file.inode.size,
        shmid: inode_id,
        seals: u32::try_from(seals).unwrap_or(0),
        inode_id: inode_id.into(),
        hugetlb_flag: huge_page(&object)
            .map(|size| libc::MFD_HUGETLB | size.trailing_zeros() << HUGE_SHIFT),
        mode: Some(file.inode.mode),
    };
    cx.append(desc::MEMFD, (), &entry, &[])?;
    cx.memory(ShmId::new(inode_id.into()), object, file.inode.size);
    Ok(())
}

/// The size of its pages, if they are huge.
fn huge_page(object: impl AsFd) -> Option<u64> {
    let fs = fstatfs(object).ok()?;
    let huge = fs.filesystem_type() == HUGETLBFS_MAGIC;
    huge.then(|| u64::try_from(fs.block_size()).unwrap_or(0))
}

/// What the inode is called in the images. Huge pages are of another file system, which numbers its inodes as
/// it likes.
fn inode_id(file: &OpenFile) -> Result<u32> {
    let narrow = u32::try_from(file.inode.ino).ok();
    let id = match huge_page(&file.fd) {
        Some(_) => narrow.filter(|ino| *ino < HUGE_ID).map(|ino| ino | HUGE_ID),
        None => narrow,
    };
    id.ok_or_else(|| {
        Error::unsupported(
            "a memfd whose inode number has more than 32 bits",
            "make it anew",
        )
    })
}

/// Makes the inode, empty.
fn create(cx: &mut dyn RestoreCx, inode: &pb::MemfdInodeEntry) -> Result<i32> {
    if is_anonymous(inode) {
        let page = page_size()?;
        let object = shared_anonymous(inode.size.next_multiple_of(page).max(page), false, None)?;
        let object = object.into_raw_fd();
        let mut program = Program::new();
        program.ftruncate(object, inode.size);
        cx.here().run(&program)?;
        return Ok(object);
    }
    let huge = inode.hugetlb_flag();
    if huge & !(libc::MFD_HUGETLB | HUGE_MASK) != 0 {
        return Err(Error::corrupt(
            "memfd.img",
            format!("flags {huge:#x} are not of huge pages"),
        ));
    }
    let never_executable = inode.seals & F_SEAL_EXEC != 0 && inode.mode() & 0o111 == 0;
    let exec = if never_executable {
        MFD_NOEXEC_SEAL
    } else {
        MFD_EXEC
    };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | huge;
    // Before Linux 6.3 all are executable and nothing may be said of it.
    for exec in [exec, 0] {
        let mut program = Program::new();
        let name = program.cstr(&inode.name);
        let fd = program.memfd_create(name, flags | exec);
        program.tolerate();
        let outcome = cx.here().run(&program)?;
        match outcome.get(fd) {
            Ok(_) => {
                let fd = outcome.fd(fd);
                let mut program = Program::new();
                program.ftruncate(fd, inode.size);
                cx.here().run(&program)?;
                return Ok(fd);
            }
            Err(Errno::EINVAL) if exec != 0 => {}
            Err(errno) => return Err(Error::kernel("memfd_create")(errno)),
        }
    }
    Err(Error::kernel("memfd_create")(Errno::EINVAL))
}

fn inode_of(cx: &mut dyn RestoreCx, entry: &pb::MemfdFileEntry) -> Result<pb::MemfdInodeEntry> {
    let inodes = cx.cached(Inodes::load)?;
    let inode = inodes.0.get(&entry.inode_id.into()).cloned();
    inode.ok_or_else(|| {
        Error::corrupt(
            "memfd.img",
            format!("inode {} is not there", entry.inode_id),
        )
    })
}

fn page_size() -> Result<u64> {
    let size = sysconf(SysconfVar::PAGE_SIZE).map_err(Error::kernel("sysconf"))?;
    Ok(size
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096))
}

/// Inodes by id.
struct Inodes(HashMap<u64, pb::MemfdInodeEntry>);

impl Inodes {
    fn load(store: &dyn Store) -> Result<Self> {
        let entries = store
            .entries::<pb::MemfdInodeEntry>(desc::MEMFD, ())?
            .unwrap_or_default();
        let mut inodes = HashMap::new();
        for entry in entries {
            let id = entry.message.inode_id;
            if inodes.insert(id, entry.message).is_some() {
                return Err(Error::corrupt(
                    "memfd.img",
                    format!("inode {id} is there twice"),
                ));
            }
        }
        Ok(Self(inodes))
    }
}

#[cfg(test)]
mod tests {
    use criu_image::Memory;
    use criu_kind::testing::{Paper, dumped_on, open_file, restored_with};
    use expect_test::expect;

    use super::*;

    const INFO: &str = "pos:\t7\nflags:\t02\nmnt_id:\t15\nino:\t77\n";

    fn file(link: &str) -> OpenFile {
        let mut file = open_file(link, 0o100_777, INFO);
        file.inode.links = 0;
        file
    }

    fn opening(id: u32, flags: u32, pos: u64) -> pb::MemfdFileEntry {
        pb::MemfdFileEntry {
            id,
            flags,
            pos,
            fown: pb::FownEntry::default(),
            inode_id: 77,
        }
    }

    fn listing(
        entries: &[&pb::MemfdFileEntry],
        change: impl FnOnce(&mut pb::MemfdInodeEntry),
    ) -> Result<String> {
        let mut inode = pb::MemfdInodeEntry {
            name: b"a name".to_vec(),
            size: 4096,
            shmid: 77,
            inode_id: 77,
            mode: Some(0o100_777),
            ..pb::MemfdInodeEntry::default()
        };
        change(&mut inode);
        let images = Memory::new();
        let mut image = images.writer(desc::MEMFD, ()).expect("memory");
        image.write(&inode).expect("memory");
        image.finish().expect("memory");
        images.finish().expect("memory");
        let mut paper = Paper::default();
        paper.images = images;
        restored_with(&Memfd, entries, paper)
    }

    /// Only on the kernel's own file system it is shared memory.
    #[test]
    fn what_is_called_zero() {
        let real = shared_anonymous(page_size().expect("a size"), false, None).expect("made");
        let mut file = open_file("/dev/zero (deleted)", 0o100_777, INFO);
        file.inode.links = 0;
        assert!(!is_memfd(&file));
        file.inode.dev = fstat(&real).expect("open").st_dev;
        assert!(is_memfd(&file));
        file.link = b"/dev/zero".to_vec();
        assert!(!is_memfd(&file));
        let inode = pb::MemfdInodeEntry {
            name: ZERO.into(),
            seals: F_SEAL_SEAL,
            ..pb::MemfdInodeEntry::default()
        };
        assert_eq!(seals(&inode), 0, "it has it already");
        let sealed = pb::MemfdInodeEntry {
            seals: F_SEAL_SEAL | 2,
            ..inode
        };
        assert_eq!(seals(&sealed), 3, "a memfd by that name");
    }

    #[test]
    fn an_inode_is_described_once_and_its_pages_are_taken_in() {
        let mut file = file("/memfd:a (b) (deleted)");
        assert!(FileKind::claims(&Memfd, &file));
        file.fd = memfd_create("x", MFdFlags::MFD_ALLOW_SEALING).expect("a memfd");
        file.inode.size = 5;
        let mut paper = Paper::default();
        let entry = dumped_on(&Memfd, &file, &mut paper).expect("known");
        assert_eq!((entry.inode_id, entry.pos, entry.flags), (77, 7, 2));
        assert_eq!(paper.memory, [(ShmId::new(77), 5)]);
        paper.written.finish().expect("memory");
        let inodes = Inodes::load(&paper.written).expect("written");
        assert_eq!(inodes.0[&77].name, b"a (b)");
        assert!(!FileKind::claims(&Memfd, &self::file("/memfd:a")));
    }

    #[test]
    fn two_openings_and_seals_last() {
        expect![[r#"
            $0 = memfd_create("a name", 19) ?
            $0 = ftruncate(100, 0x1000)
            $0 = fchown(100, 0, 0)
            $1 = fchmod(100, 511)
            $2 = fcntl(100, 4, 0)
            $3 = fcntl(100, 1030, 0)
            $4 = lseek($3, 7, 0)
            $5 = openat(-100, "/proc/self/fd/100", 0x80100, 0)
            $6 = close(100)
            is 105
            last:
            $0 = fcntl(3, 1033, 6)
            is 107
        "#]]
        .assert_eq(
            &listing(&[&opening(1, 2, 7), &opening(2, 0, 0)], |inode| {
                inode.seals = 6;
            })
            .expect("a program"),
        );
    }

    #[test]
    fn sealed_at_once_if_nobody_writes() {
        let listing = listing(&[&opening(1, 0, 0)], |inode| {
            (inode.seals, inode.mode) = (F_SEAL_EXEC | 1, Some(0o100_666));
        })
        .expect("a program");
        assert!(
            listing.contains("memfd_create(\"a name\", 11)"),
            "{listing}"
        );
        assert!(listing.contains("fcntl(100, 1033, 33)"), "{listing}");
        assert!(!listing.contains("last"), "{listing}");
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let error = listing(&[&opening(1, 2, 0)], |inode| inode.inode_id = 78);
        assert_eq!(
            error.expect_err("absent").to_string(),
            "memfd.img: inode 77 is not there"
        );
        listing(&[&opening(1, 2, 0)], |inode| inode.hugetlb_flag = Some(1))
            .expect_err("no such flag");
    }

    #[test]
    fn huge_pages_have_their_size() {
        let listing = listing(&[&opening(1, 2, 0)], |inode| {
            inode.hugetlb_flag = Some(4 | 21 << 26)
        })
        .expect("a program");
        let flags = 4 | 21 << 26 | 19;
        assert!(
            listing.contains(&format!("memfd_create(\"a name\", {flags:#x})")),
            "{listing}"
        );
    }
}
