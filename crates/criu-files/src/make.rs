//! One unlinked file: its inode, its names for the while, its attributes.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use criu_image::pb;
use criu_kind::{Error, Result};
use criu_tracee::{Identity, Local, Name, Names, Program, Site, Sysno};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::linkat;

use crate::describe::reopen;
use crate::raise::{Ghost, Raised, lend_name, take_name};
use crate::xattr;

/// `__O_TMPFILE` of the kernel.
const TMPFILE: u32 = (libc::O_TMPFILE & !libc::O_DIRECTORY).cast_unsigned();

/// Makes the inode, and holds it open under each name it had.
pub(crate) fn make(raised: &mut Raised, names: &mut Names, ghost: &Ghost) -> Result<()> {
    let parent = ghost.path().parent().unwrap_or(Path::new("/"));
    raised.make_parents(names, parent)?;
    let (fd, path) = if ghost.is(libc::S_IFREG) {
        regular(raised, names, ghost, parent)?
    } else {
        special(names, ghost)?
    };
    if let Some(path) = path {
        if ghost.is(libc::S_IFDIR) {
            raised.directories.push(path);
        } else {
            hold_other_names(raised, names, ghost, &path)?;
            take_name(names, &path)?;
        }
    }
    for opening in &ghost.openings {
        let key = (ghost.id, opening.path.clone());
        if opening.path != ghost.path() && !raised.inodes.contains_key(&key) {
            let copy = fd.try_clone().map_err(Error::io("fcntl"))?;
            raised.inodes.insert(key, copy);
        }
    }
    raised
        .inodes
        .insert((ghost.id, ghost.path().to_owned()), fd);
    Ok(())
}

/// Opens the inode, which now is at `path`, under its other names; and symlinks, which nothing opens but
/// by name, for everybody.
fn hold_other_names(
    raised: &mut Raised,
    names: &mut Names,
    ghost: &Ghost,
    path: &Path,
) -> Result<()> {
    for opening in &ghost.openings {
        let key = (ghost.id, opening.path.clone());
        let is_symlink = ghost.is(libc::S_IFLNK);
        let is_first = opening.path == ghost.path();
        if !is_symlink && (is_first || raised.inodes.contains_key(&key)) {
            continue;
        }
        let parent = opening.path.parent().unwrap_or(Path::new("/"));
        raised.make_parents(names, parent)?;
        let lent = !is_first && lend_name(names, path, &opening.path)?;
        let at = if lent { &opening.path } else { path };
        if lent {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
            raised.inodes.insert(key, open(at, flags)?);
        }
        if is_symlink {
            let flags = OFlag::from_bits_retain(opening.flags.cast_signed());
            raised.ready.insert(opening.file, open(at, flags)?);
        }
        if lent {
            take_name(names, &opening.path)?;
        }
    }
    Ok(())
}

fn open(path: &Path, flags: OFlag) -> Result<OwnedFd> {
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, mode).map_err(Error::kernel("openat"))
}

/// Directories, symlinks, FIFOs, sockets, devices.
fn special(names: &mut Names, ghost: &Ghost) -> Result<(OwnedFd, Option<PathBuf>)> {
    for path in candidates(ghost.path()) {
        let mut program = Program::new();
        let at = program.cstr(path.as_os_str().as_bytes());
        let here = libc::AT_FDCWD;
        match ghost.entry.mode & libc::S_IFMT {
            libc::S_IFDIR => program.mkdirat(here, at, libc::S_IRWXU),
            libc::S_IFLNK => {
                let target = program.cstr(ghost.entry.symlnk_target());
                program.symlinkat(target, here, at)
            }
            format => {
                let mode = format | libc::S_IRUSR | libc::S_IWUSR;
                program.mknodat(here, at, mode, ghost.entry.rdev())
            }
        };
        match names.make(&Name::Path(path.clone()), &program) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => continue,
            other => other?,
        }
        let fd = open(&path, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
        return Ok((fd, Some(path)));
    }
    Err(Error::Kernel {
        call: "mknodat",
        errno: Errno::EEXIST,
    })
}

/// The old name, and others in case somebody has that by now.
fn candidates(path: &Path) -> impl Iterator<Item = PathBuf> {
    let other = move |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".criu-rs-{number}"));
        PathBuf::from(name)
    };
    std::iter::once(path.to_owned()).chain((1..1000).map(other))
}

fn regular(
    raised: &mut Raised,
    names: &mut Names,
    ghost: &Ghost,
    parent: &Path,
) -> Result<(OwnedFd, Option<PathBuf>)> {
    let (file, path) = match nameless(raised, ghost, parent)? {
        Some(file) => (file, None),
        None => new_file(names, ghost, parent)?,
    };
    for (offset, bytes) in &ghost.content {
        file.write_all_at(bytes, *offset)
            .map_err(Error::io("pwrite64"))?;
    }
    if ghost.entry.chunks() {
        file.set_len(ghost.entry.size())
            .map_err(Error::io("ftruncate"))?;
    }
    Ok((file.into(), path))
}

/// A file that was born without a name may be given one later, unlike one that was unlinked; and the opening
/// that made it says so in its flags.
fn nameless(raised: &mut Raised, ghost: &Ghost, parent: &Path) -> Result<Option<File>> {
    let Some(birth) = ghost
        .openings
        .iter()
        .find(|opening| opening.flags & TMPFILE != 0)
    else {
        return Ok(None);
    };
    let Ok(fd) = open(parent, OFlag::from_bits_retain(birth.flags.cast_signed())) else {
        return Ok(None); // Not on this file system.
    };
    let file = reopen(&fd, OFlag::O_RDWR).map_err(Error::kernel("openat"))?;
    raised.ready.insert(birth.file, fd);
    Ok(Some(file.into()))
}

fn new_file(names: &mut Names, ghost: &Ghost, parent: &Path) -> Result<(File, Option<PathBuf>)> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR;
    let born = open(parent, flags).ok().map(File::from);
    for path in candidates(ghost.path()) {
        let named = match &born {
            Some(file) => give_name(names, file, &path),
            None => {
                let mut program = Program::new();
                let at = program.cstr(path.as_os_str().as_bytes());
                let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
                program.openat(libc::AT_FDCWD, at, flags, libc::S_IRUSR | libc::S_IWUSR);
                names.make(&Name::Path(path.clone()), &program)
            }
        };
        match named {
            // By name: what was opened before has another one.
            Ok(()) => return Ok((open(&path, OFlag::O_RDWR)?.into(), Some(path))),
            Err(error) => match error.errno() {
                Some(Errno::EEXIST) => {}
                Some(Errno::EROFS | Errno::EACCES | Errno::ENOENT) => break,
                _ => return Err(error.into()),
            },
        }
    }
    // Where it was nothing can be made any more. It never had to be found by name.
    let name = ghost.path().file_name().unwrap_or_default();
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC).map_err(Error::kernel("memfd_create"))?;
    Ok((File::from(fd), None))
}

/// Gives a name to a file that was born without.
fn give_name(names: &mut Names, file: &File, path: &Path) -> Result<(), criu_tracee::Error> {
    let inode = format!("/proc/self/fd/{}", file.as_raw_fd());
    let follow = AtFlags::AT_SYMLINK_FOLLOW;
    let link = || linkat(AT_FDCWD, inode.as_str(), AT_FDCWD, path, follow);
    let given = names.lend(Identity::of(file)?, path, link);
    let given = given.and_then(|given| if given { Ok(()) } else { Err(Errno::EEXIST) });
    given.map_err(|errno| criu_tracee::Error::Kernel {
        call: "linkat",
        errno,
    })
}

/// Owner, attributes, permissions and times, in this order: each undoes some of the ones after it.
pub(crate) fn dress(ghost: &Ghost, fd: &OwnedFd) -> Result<()> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let stat = criu_tracee::stat::fstat(fd).map_err(Error::kernel("fstat"))?;
    let entry = &ghost.entry;
    let mut program = Program::new();
    if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
        let at = program.cstr(&path);
        let args = [
            libc::AT_FDCWD.into(),
            at.into(),
            entry.uid.into(),
            entry.gid.into(),
            0.into(),
        ];
        program.call(Sysno::fchownat, args);
    }
    xattr::write(&path, &ghost.ext.xattrs, &mut program);
    if !ghost.is(libc::S_IFLNK) {
        let at = program.cstr(&path);
        let mode = entry.mode & 0o7777;
        program.call(
            Sysno::fchmodat,
            [libc::AT_FDCWD.into(), at.into(), mode.into()],
        );
    }
    Local.run(&program)?;
    if let (Some(atime), Some(mtime)) = (&entry.atim, &entry.mtim) {
        let time = |time: &pb::Timeval, below: u32| {
            let nanos = time
                .tv_usec
                .saturating_mul(1000)
                .saturating_add(below.into());
            [time.tv_sec, nanos].map(u64::to_ne_bytes).concat()
        };
        let atime = time(atime, ghost.ext.atim_nsec());
        let mtime = time(mtime, ghost.ext.mtim_nsec());
        let mut program = Program::new();
        let at = program.cstr(&path);
        let times = program.bytes([atime, mtime].concat());
        program.utimensat(libc::AT_FDCWD, at, times, 0);
        Local.run(&program)?;
    }
    Ok(())
}
