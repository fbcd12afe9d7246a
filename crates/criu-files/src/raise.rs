//! Unlinked files, out of the images.
//!
//! Each is made under its old name if that is free, so that `/proc` calls it the same, and unlinked at
//! once; openings go through a descriptor of the inode. Directories that are missing are made for the
//! while, and unlinked directories stay until their content is made.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use criu_image::id::FileId;
use criu_image::{Bytes, ImageId, StoreExt, desc, pb};
use criu_kind::{Error, Result, Within};
use criu_tracee::{Local, Program, Site};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, SFlag, mkdirat, mknodat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use crate::files::{Files, Remap};
use crate::{open, xattr};

/// `__O_TMPFILE` of the kernel.
const TMPFILE: u32 = (libc::O_TMPFILE & !libc::O_DIRECTORY).cast_unsigned();

/// The inodes that live only by being open here, and directories that must go again.
#[derive(Default)]
pub(crate) struct Raised {
    inodes: HashMap<u32, OwnedFd>,
    directories: Vec<PathBuf>,
    undressed: Vec<Ghost>,
}

impl Raised {
    /// A path through which an inode can be opened.
    pub(crate) fn path(&self, ghost: u32) -> Option<String> {
        let fd = self.inodes.get(&ghost)?;
        Some(format!("/proc/self/fd/{}", fd.as_raw_fd()))
    }

    /// When all are open: removes what was made only for the while, and gives directories, whose times that
    /// changed, their own.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.remove();
        for ghost in self.undressed.drain(..) {
            if let Some(fd) = self.inodes.get(&ghost.id) {
                dress(&ghost, fd).within(|| open::object(&ghost.path))?;
            }
        }
        self.inodes.clear();
        Ok(())
    }

    fn remove(&mut self) {
        for directory in self.directories.drain(..).rev() {
            match unlinkat(AT_FDCWD, &directory, UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOENT | Errno::ENOTEMPTY) => {}
                Err(errno) => {
                    tracing::warn!(path = %directory.display(), %errno, "a directory could not be removed");
                }
            }
        }
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        self.remove();
    }
}

/// An unlinked file as the images have it.
struct Ghost {
    id: u32,
    entry: pb::GhostFileEntry,
    ext: pb::GhostExtEntry,
    /// Runs of content: offset and bytes.
    content: Vec<(u64, Bytes)>,
    /// What it was called.
    path: PathBuf,
    /// Whether it was born without a name.
    nameless: bool,
}

/// Makes all unlinked files again.
pub(crate) fn all(files: &mut Files<'_>) -> Result<()> {
    let mut ghosts = HashMap::new();
    for (file, remap) in &files.remaps {
        let Remap::Ghost(id) = remap else { continue };
        if !ghosts.contains_key(id) {
            ghosts.insert(*id, load(files, *id, *file)?);
        }
    }
    let exts = files
        .store
        .entries::<pb::FilesExtEntry>(desc::FILES_EXT, ())?
        .unwrap_or_default();
    for ext in exts.into_iter().filter_map(|entry| entry.message.ghost) {
        if let Some(ghost) = ghosts.get_mut(&ext.ghost_id) {
            ghost.ext = ext;
        }
    }
    let mut ghosts: Vec<Ghost> = ghosts.into_values().collect();
    // Directories first, outer ones before inner ones: others may lie in them.
    ghosts.sort_by_key(|ghost| {
        (
            !is(ghost, libc::S_IFDIR),
            ghost.path.components().count(),
            ghost.id,
        )
    });
    for ghost in &ghosts {
        let fd = make(&mut files.raised, ghost).within(|| open::object(&ghost.path))?;
        files.raised.inodes.insert(ghost.id, fd);
    }
    for ghost in ghosts {
        if is(&ghost, libc::S_IFDIR) {
            files.raised.undressed.push(ghost);
        } else {
            let fd = &files.raised.inodes[&ghost.id];
            dress(&ghost, fd).within(|| open::object(&ghost.path))?;
        }
    }
    Ok(())
}

fn is(ghost: &Ghost, format: u32) -> bool {
    ghost.entry.mode & libc::S_IFMT == format
}

fn load(files: &Files<'_>, id: u32, file: FileId) -> Result<Ghost> {
    let name = desc::GHOST_FILE.file_name(id);
    let broken = |why: &str| Error::corrupt(name.clone(), why);
    let mut reader = files
        .store
        .reader(desc::GHOST_FILE, ImageId::from(id))?
        .ok_or_else(|| broken("it is missing"))?;
    let first = reader
        .read::<pb::GhostFileEntry>()?
        .ok_or_else(|| broken("it is empty"))?;
    let entry = first.message;
    let mut content = Vec::new();
    if entry.chunks() {
        while let Some(chunk) = reader.read::<pb::GhostChunkEntry>()? {
            content.push((chunk.off, chunk.extra));
        }
    } else {
        content.push((0, first.extra));
    }
    let path = files
        .paths
        .get(&file)
        .ok_or_else(|| broken("nobody has it open"))?;
    Ok(Ghost {
        id,
        entry,
        ext: pb::GhostExtEntry::default(),
        content,
        path: open::from_root(files, &path.name),
        nameless: path.flags & TMPFILE != 0,
    })
}

fn make(raised: &mut Raised, ghost: &Ghost) -> Result<OwnedFd> {
    let parent = ghost.path.parent().unwrap_or(Path::new("/"));
    make_parents(raised, parent)?;
    if is(ghost, libc::S_IFREG) {
        return regular(ghost, parent);
    }
    for path in names(&ghost.path) {
        let made = match SFlag::from_bits_truncate(ghost.entry.mode & libc::S_IFMT) {
            SFlag::S_IFDIR => mkdirat(AT_FDCWD, &path, Mode::S_IRWXU),
            SFlag::S_IFLNK => symlinkat(ghost.entry.symlnk_target(), AT_FDCWD, &path),
            format => mknodat(
                AT_FDCWD,
                &path,
                format,
                Mode::S_IRUSR | Mode::S_IWUSR,
                ghost.entry.rdev().into(),
            ),
        };
        match made {
            Err(Errno::EEXIST) => continue,
            other => other.map_err(Error::kernel("mknodat"))?,
        }
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(&path, flags, Mode::empty()).map_err(Error::kernel("openat"));
        if is(ghost, libc::S_IFDIR) {
            raised.directories.push(path);
        } else {
            unlink(&path)?;
        }
        return fd;
    }
    Err(Error::Kernel {
        call: "mknodat",
        errno: Errno::EEXIST,
    })
}

/// The old name, and others in case somebody has that by now.
fn names(path: &Path) -> impl Iterator<Item = PathBuf> {
    let other = move |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".criu-rs-{number}"));
        PathBuf::from(name)
    };
    std::iter::once(path.to_owned()).chain((1..1000).map(other))
}

fn unlink(path: &Path) -> Result<()> {
    unlinkat(AT_FDCWD, path, UnlinkatFlags::NoRemoveDir).map_err(Error::kernel("unlinkat"))
}

fn make_parents(raised: &mut Raised, directory: &Path) -> Result<()> {
    let missing: Vec<&Path> = directory
        .ancestors()
        .take_while(|path| !path.exists())
        .collect();
    for path in missing.into_iter().rev() {
        match mkdirat(AT_FDCWD, path, Mode::S_IRWXU) {
            Ok(()) => raised.directories.push(path.to_owned()),
            Err(Errno::EEXIST) => {}
            // Read-only: the file will be made elsewhere.
            Err(Errno::EROFS | Errno::EACCES) => return Ok(()),
            Err(errno) => {
                return Err(Error::Kernel {
                    call: "mkdirat",
                    errno,
                });
            }
        }
    }
    Ok(())
}

fn regular(ghost: &Ghost, parent: &Path) -> Result<OwnedFd> {
    let file = new_file(ghost, parent)?;
    for (offset, bytes) in &ghost.content {
        file.write_all_at(bytes, *offset)
            .map_err(Error::io("pwrite64"))?;
    }
    if ghost.entry.chunks() {
        file.set_len(ghost.entry.size())
            .map_err(Error::io("ftruncate"))?;
    }
    Ok(file.into())
}

fn new_file(ghost: &Ghost, parent: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    // A file that was born nameless may be given a name later; one that was unlinked may not.
    if ghost.nameless
        && let Ok(file) = options.clone().custom_flags(libc::O_TMPFILE).open(parent)
    {
        return Ok(file);
    }
    for path in names(&ghost.path) {
        match options.clone().create_new(true).open(&path) {
            Ok(file) => return unlink(&path).map(|()| file),
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EEXIST) => {}
                Some(Errno::EROFS | Errno::EACCES | Errno::ENOENT) => break,
                _ => return Err(Error::io("openat")(error)),
            },
        }
    }
    // Where it was nothing can be made any more. It never had to be found by name.
    let name = ghost.path.file_name().unwrap_or_default();
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC).map_err(Error::kernel("memfd_create"))?;
    Ok(File::from(fd))
}

/// Owner, attributes, permissions and times, in this order: each undoes some of the ones after it.
fn dress(ghost: &Ghost, fd: &OwnedFd) -> Result<()> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let stat = nix::sys::stat::fstat(fd).map_err(Error::kernel("fstat"))?;
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
        program.call(criu_tracee::Sysno::fchownat, args);
    }
    xattr::write(&path, &ghost.ext.xattrs, &mut program);
    if !is(ghost, libc::S_IFLNK) {
        let at = program.cstr(&path);
        let mode = entry.mode & 0o7777;
        program.call(
            criu_tracee::Sysno::fchmodat,
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
            nix::sys::time::TimeSpec::new(time.tv_sec.cast_signed(), nanos.cast_signed())
        };
        let atime = time(atime, ghost.ext.atim_nsec());
        let mtime = time(mtime, ghost.ext.mtim_nsec());
        nix::sys::stat::utimensat(
            AT_FDCWD,
            path.as_str(),
            &atime,
            &mtime,
            nix::sys::stat::UtimensatFlags::FollowSymlink,
        )
        .map_err(Error::kernel("utimensat"))?;
    }
    Ok(())
}

/// Gives an unlinked file its old name for the while of an opening; `false` if somebody has that.
pub(crate) fn lend_name(from: &Path, to: &Path) -> Result<bool> {
    match nix::unistd::linkat(AT_FDCWD, from, AT_FDCWD, to, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST | Errno::ENOENT | Errno::EROFS | Errno::EACCES) => Ok(false),
        Err(errno) => Err(Error::Kernel {
            call: "linkat",
            errno,
        }),
    }
}
