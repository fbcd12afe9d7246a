//! What has a name in a file system: which inode it is, and names that are taken away or moved.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::unistd::{UnlinkatFlags, unlinkat};
use syscalls::Sysno;

use crate::error::{Context, Result};
use crate::local::Local;
use crate::program::Program;
use crate::site::{Outcome, Site};

/// `RENAME_NOREPLACE` of renameat2(2).
const NOREPLACE: u32 = 1;

/// What a name is one of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// A path.
    Path(PathBuf),
    /// A POSIX message queue, without the slash.
    Queue(Vec<u8>),
}

impl Name {
    /// A path in bytes.
    pub fn path(path: impl Into<Vec<u8>>) -> Self {
        Self::Path(PathBuf::from(std::ffi::OsString::from_vec(path.into())))
    }
}

/// Which inode. Numbers are used again; one with the same time of birth is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    /// Nanoseconds, or 0 where the file system does not say.
    pub(crate) born: u64,
}

impl Identity {
    /// Of what is open.
    pub fn of(file: &File) -> Result<Self> {
        let data = file.metadata().map_err(errno).call("fstat")?;
        Ok(Self::new(&data))
    }

    /// Of what has a path.
    pub fn at(path: &Path) -> Result<Self, Errno> {
        let data = std::fs::symlink_metadata(path).map_err(errno)?;
        Ok(Self::new(&data))
    }

    pub(crate) fn new(data: &Metadata) -> Self {
        let born = data.created().ok();
        let born = born.and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        Self {
            dev: data.dev(),
            ino: data.ino(),
            born: born.map_or(0, |born| u64::try_from(born.as_nanos()).unwrap_or(u64::MAX)),
        }
    }

    /// Of what has a name now.
    pub(crate) fn named(name: &Name) -> Result<Self, Errno> {
        match name {
            Name::Path(path) => Identity::at(path),
            Name::Queue(name) => {
                let mut program = Program::new();
                let name = program.cstr(name);
                let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC;
                let fd = program.mq_open(name, flags, 0, 0);
                let fd = run(&program)?.fd(fd);
                let found = std::fs::metadata(format!("/proc/self/fd/{fd}")).map_err(errno);
                let mut program = Program::new();
                program.close(fd);
                run(&program)?;
                found.map(|data| Self::new(&data))
            }
        }
    }
}

fn run(program: &Program) -> Result<Outcome, Errno> {
    let done = Local.run(program);
    done.map_err(|error| error.errno().unwrap_or(Errno::EIO))
}

pub(crate) fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

pub(crate) fn remove_if(path: &Path, wanted: Identity) -> Result<(), Errno> {
    match Identity::at(path) {
        Ok(found) if found == wanted => remove(&Name::Path(path.to_owned())),
        Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

pub(crate) fn remove(name: &Name) -> Result<(), Errno> {
    match name {
        Name::Path(path) => match unlinkat(AT_FDCWD, path, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR | Errno::EPERM) if path.is_dir() => {
                unlinkat(AT_FDCWD, path, UnlinkatFlags::RemoveDir)
            }
            other => other,
        },
        Name::Queue(name) => {
            let mut program = Program::new();
            let name = program.cstr(name);
            program.mq_unlink(name);
            run(&program).map(drop)
        }
    }
}

/// Renames, and replaces nothing.
pub(crate) fn move_to(from: &Path, to: &Path) -> Result<(), Errno> {
    let rename = |flags: u32| {
        let mut program = Program::new();
        let old = program.cstr(from.as_os_str().as_bytes());
        let new = program.cstr(to.as_os_str().as_bytes());
        let here = libc::AT_FDCWD;
        let args = [
            here.into(),
            old.into(),
            here.into(),
            new.into(),
            flags.into(),
        ];
        program.call(Sysno::renameat2, args);
        run(&program).map(drop)
    };
    match rename(NOREPLACE) {
        // A file system that cannot promise it.
        Err(Errno::EINVAL) => match Identity::at(to) {
            Err(Errno::ENOENT) => rename(0),
            _ => Err(Errno::EEXIST),
        },
        other => other,
    }
}
