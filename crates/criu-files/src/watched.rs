//! Files that a task watches, and need not have open: inotify(7), fanotify(7).
//!
//! The kernel tells the device, the inode and a handle. Images have the path beside them, as that of a file
//! of its own: so a file that lost its name is found again.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};

use criu_image::id::FileId;
use criu_image::pb;
use criu_kind::{DumpCx, Error, FileEntry, Inode, OpenFile, RestoreCx, Result, Slot};
use criu_proc::{Dev, ProcDir};
use criu_tracee::stat::{fstat, lstat};
use criu_tracee::{Local, Program, Site};
use nix::fcntl::{OFlag, open as openat, readlink};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::handle;

const O_PATH: u32 = libc::O_PATH.cast_unsigned();
const O_NOFOLLOW: u32 = libc::O_NOFOLLOW.cast_unsigned();
const O_CLOEXEC: u32 = libc::O_CLOEXEC.cast_unsigned();

/// What the kernel tells of a watched file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'e> {
    /// The device, as the kernel numbers it inside.
    pub(crate) dev: u32,
    pub(crate) inode: u64,
    pub(crate) handle: &'e pb::FhEntry,
}

impl Place<'_> {
    fn is(&self, inode: &Inode) -> bool {
        inode.ino == self.inode && Dev::from_st_dev(inode.dev).to_kernel() == Some(self.dev)
    }

    fn unknown(&self) -> Error {
        let dev = Dev::from_kernel(self.dev);
        Error::unsupported(
            format!(
                "it watches inode {} of device {dev}, of which the kernel does not tell the path",
                self.inode
            ),
            "give --irmap-scan-path DIRECTORY with one that it is in, or let the task have it open too",
        )
    }
}

/// Bytes that wait to be read: those of events.
pub(crate) fn bytes_wait(file: &OpenFile) -> Result<u32> {
    let mut program = Program::new();
    let bytes = program.room(4);
    program.ioctl(file.fd.as_raw_fd(), libc::FIONREAD, bytes);
    program.tolerate();
    let outcome = Local.run(&program)?;
    let mut count = [0; 4];
    count.copy_from_slice(&outcome.bytes(bytes)[..4]);
    Ok(u32::from_ne_bytes(count))
}

/// Adds the watched file as a part: its id and its path.
pub(crate) fn describe(
    cx: &mut dyn DumpCx,
    pid: Pid,
    place: &Place<'_>,
) -> Result<(FileId, Vec<u8>)> {
    let target = target(cx, pid, place)?;
    let mut path = Vec::new();
    let id = cx.part(&mut |cx, id| {
        let target = opened(&target, id, pid)?;
        let mut entry = cx.path(&target, id)?;
        entry.flags = O_PATH | O_NOFOLLOW;
        // It may change while it is watched: that is the point.
        entry.size = None;
        path.clone_from(&entry.name);
        Ok(entry.into_file())
    })?;
    Ok((id, path))
}

/// The watched inode: by its handle, or from among the files of the tasks, or by a search for it.
fn target(cx: &mut dyn DumpCx, pid: Pid, place: &Place<'_>) -> Result<OwnedFd> {
    let proc = ProcDir::open(pid)?;
    let by_handle = handle::inode(&proc, place.dev, place.handle)?;
    if let Some(found) = by_handle.filter(|found| cx.scan_paths().is_none() || has_name(found)) {
        return Ok(found);
    }
    let through = |slot: Slot| {
        let path = format!("/proc/{}/fd/{}", slot.pid, slot.fd);
        openat(
            path.as_str(),
            OFlag::O_PATH | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .ok()
    };
    let same = |fd: &OwnedFd| fstat(fd).is_ok_and(|stat| place.is(&Inode::from(&stat)));
    let mut found = None;
    cx.find(pid, -1, Some(place.inode), &mut |slot| {
        found = through(slot).filter(same);
        Ok(found.is_some())
    })?;
    if found.is_none() {
        let roots = cx.scan_paths().unwrap_or_default();
        found = roots.iter().find_map(|root| scan(root, place));
    }
    found.ok_or_else(|| place.unknown())
}

/// Whether what a link calls the file leads to it.
fn has_name(fd: &OwnedFd) -> bool {
    let Ok(link) = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str()) else {
        return false;
    };
    let same = |one: &Inode, other: &Inode| one.is(other);
    match (lstat(Path::new(&link)), fstat(fd)) {
        (Ok(named), Ok(open)) => same(&Inode::from(&named), &Inode::from(&open)),
        _ => false,
    }
}

/// Looks for the file in a directory and all that are in it, on its file system.
fn scan(root: &Path, place: &Place<'_>) -> Option<OwnedFd> {
    let open = |path: &Path| {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(path, flags, Mode::empty()).ok()?;
        fstat(&fd)
            .is_ok_and(|stat| place.is(&Inode::from(&stat)))
            .then_some(fd)
    };
    if let Some(found) = open(root) {
        return Some(found);
    }
    let mut directories: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        // What may not be read is not searched.
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.ino() == place.inode
                && let Some(found) = open(&entry.path())
            {
                return Some(found);
            }
            let inside = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let device = || lstat(&entry.path()).map(|stat| Inode::from(&stat).dev).ok();
            if inside
                && device().and_then(|dev| Dev::from_st_dev(dev).to_kernel()) == Some(place.dev)
            {
                directories.push(entry.path());
            }
        }
    }
    None
}

/// The target as a file of its own.
fn opened(target: &OwnedFd, id: FileId, pid: Pid) -> Result<OpenFile> {
    let fd = target.try_clone().map_err(Error::io("fcntl"))?;
    let number = fd.as_raw_fd();
    let link = readlink(format!("/proc/self/fd/{number}").as_str());
    let mut info = ProcDir::open(Pid::this())?.fdinfo(number)?;
    info.flags = O_PATH | O_NOFOLLOW;
    Ok(OpenFile {
        id,
        link: link.map_err(Error::kernel("readlinkat"))?.into_vec(),
        inode: Inode::from(&fstat(&fd).map_err(Error::kernel("fstat"))?),
        fd,
        family: None,
        info,
        owner: pb::FownEntry::default(),
        pid,
        slot: None,
    })
}

/// Opens a watched file here, as a place: that of the images, or what its path or its handle leads to.
pub(crate) fn open(cx: &mut dyn RestoreCx, file: Option<FileId>, place: &Place<'_>) -> Result<i32> {
    let mut opening = Program::new();
    let by_handle;
    let target = match (file, &place.handle.path) {
        (Some(file), _) => {
            let missing = || Error::corrupt("files.img", "a watched file is not open");
            let file = cx.file(file)?.ok_or_else(missing)?;
            opening.fcntl(file, libc::F_DUPFD_CLOEXEC, 0)
        }
        (None, Some(path)) => {
            let path = opening.cstr(path);
            let flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
            opening.openat(libc::AT_FDCWD, path, flags, 0)
        }
        (None, None) => {
            let me = ProcDir::open(Pid::this())?;
            let found = handle::inode(&me, place.dev, place.handle)?;
            by_handle = found.ok_or_else(|| place.unknown())?;
            opening.fcntl(by_handle.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0)
        }
    };
    Ok(cx.here().run(&opening)?.fd(target))
}
