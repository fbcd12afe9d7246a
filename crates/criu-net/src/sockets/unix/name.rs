//! Names of sockets on their way back: where a socket is bound, and how others reach it.
//!
//! A name whose file has gone, or belongs to somebody else, is taken below a directory of our own, with that
//! as the root: nobody else sees it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use criu_image::pb;
use criu_kind::{Error, RestoreCx, Result};
use criu_tracee::{Arg, Name, Names, Program};
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, lstat, mkdirat};

use crate::sockets::message::address;

const DIRECTORY: i32 = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
/// Where directories of our own can be.
const PLACES: &[&str] = &["/run", "/tmp", "/dev/shm", "/var/tmp"];

/// How to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// By this name, from anywhere.
    Name(Vec<u8>),
    /// By this name in this directory: a whole path may be too long for an address.
    In(Vec<u8>, Vec<u8>),
}

impl Reach {
    /// Adds the calls that connect `fd` there, in a process.
    pub(crate) fn connect(&self, fd: impl Into<Arg>, program: &mut Program) {
        let name = match self {
            Self::Name(name) => name,
            Self::In(dir, name) => {
                let dir = program.cstr(dir);
                let dir = program.openat(libc::AT_FDCWD, dir, DIRECTORY, 0);
                program.fchdir(dir);
                program.close(dir);
                name
            }
        };
        let address = address(name);
        let length = address.len();
        let address = program.bytes(address);
        program.connect(fd, address, length);
    }

    fn at(path: &[u8]) -> Self {
        let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let dir: &[u8] = if slash == 0 { b"/" } else { &path[..slash] };
        Self::In(dir.to_vec(), [&path[slash + 1..], &[0]].concat())
    }

    /// The address by which a process here reaches it, if that is not too long.
    pub(crate) fn name(&self) -> Option<Vec<u8>> {
        const SUN_PATH: usize = 108;
        match self {
            Self::Name(name) => Some(name.clone()),
            Self::In(dir, base) => {
                let path = [&dir[..], b"/", base].concat();
                (path.len() <= SUN_PATH).then_some(path)
            }
        }
    }
}

/// Whether it is the name of a file.
pub(crate) fn is_path(name: &[u8]) -> bool {
    name.first().is_some_and(|first| *first != 0)
}

fn text(name: &[u8]) -> &[u8] {
    name.strip_suffix(&[0]).unwrap_or(name)
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

/// Directories of our own.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    base: Option<PathBuf>,
    count: u32,
}

impl Scratch {
    /// A new one.
    fn next(&mut self, names: &mut Names) -> Result<PathBuf> {
        let base = match self.base.take() {
            Some(base) => base,
            None => base(names)?,
        };
        self.count += 1;
        let path = self.base.insert(base).join(self.count.to_string());
        mkdirat(AT_FDCWD, &path, Mode::S_IRWXU).map_err(Error::kernel("mkdirat"))?;
        Ok(path)
    }

    /// Removes them.
    pub(crate) fn end(&mut self, names: &mut Names) -> Result<()> {
        let Some(base) = self.base.take() else {
            return Ok(());
        };
        std::fs::remove_dir_all(&base).map_err(Error::io("unlinkat"))?;
        let forgotten = names.forget(&Name::Path(base));
        forgotten.map_err(Error::kernel("pwrite64"))
    }
}

/// The first place where a directory can be made.
fn base(names: &mut Names) -> Result<PathBuf> {
    for place in PLACES {
        let path = names.scratch(Path::new(place))?;
        if mkdirat(AT_FDCWD, &path, Mode::S_IRWXU).is_ok() {
            return Ok(path);
        }
        let forgotten = names.forget(&Name::Path(path));
        forgotten.map_err(Error::kernel("pwrite64"))?;
    }
    Err(Error::unsupported(
        format!("no directory of {} is writable", PLACES.join(", ")),
        "make one of them writable: sockets whose names have gone are made there for a moment",
    ))
}

/// Whether a socket gets a name that others see, and that is there when it has gone.
pub(crate) fn is_seen(entry: &pb::UnixSkEntry) -> bool {
    is_path(&entry.name) && !entry.deleted()
}

/// Binds a socket, open here as `fd`, to a name that others see; says how to reach it. The process that is to be
/// remembered for the socket has made it; nobody is remembered for the name.
pub(crate) fn bind_here(cx: &mut dyn RestoreCx, fd: i32, entry: &pb::UnixSkEntry) -> Result<Reach> {
    let name = text(&entry.name);
    let mut program = Program::new();
    let full = match (name.starts_with(b"/"), &entry.name_dir) {
        (true, _) => name.to_vec(),
        (false, Some(dir)) => {
            enter(dir, &mut program);
            let separator: &[u8] = if dir == b"/" { b"" } else { b"/" };
            [&dir[..], separator, name].concat()
        }
        (false, None) => {
            return Err(Error::corrupt(
                "files.img",
                format!("the relative name {} has no directory", name.escape_ascii()),
            ));
        }
    };
    make_way(cx.names(), &full)?;
    let address = address(&entry.name);
    let length = address.len();
    let address = program.bytes(address);
    program.bind(fd, address, length);
    cx.make_name(&Name::path(full.clone()), &program)?;
    let mut program = Program::new();
    dress(entry, &full, &mut program);
    cx.here().run(&program)?;
    Ok(Reach::at(&full))
}

/// Adds the calls that bind `fd` to the name of an entry, in a process with our root; says how to reach it. A name that
/// is a path is taken in a directory of our own.
pub(crate) fn bind(
    fd: impl Into<Arg>,
    entry: &pb::UnixSkEntry,
    scratch: &mut Scratch,
    names: &mut Names,
    program: &mut Program,
) -> Result<Reach> {
    let fd = fd.into();
    let address = address(&entry.name);
    let length = address.len();
    if !is_path(&entry.name) {
        let address = program.bytes(address);
        program.bind(fd, address, length);
        return Ok(Reach::Name(entry.name.clone()));
    }
    let name = text(&entry.name);
    let below = name.strip_prefix(b"/").unwrap_or(name);
    let top = scratch.next(names)?;
    let parent = path_of(below.to_vec());
    let parent = parent.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(top.join(parent)).map_err(Error::io("mkdirat"))?;
    let top = top.into_os_string().into_encoded_bytes();
    let full = [&top[..], b"/", below].concat();
    let address = program.bytes(address);
    if name.starts_with(b"/") {
        let root = program.cstr("/");
        let root = program.openat(libc::AT_FDCWD, root, DIRECTORY, 0);
        enter(&top, program);
        let here = program.cstr(".");
        program.chroot(here);
        program.bind(fd, address, length);
        program.fchdir(root);
        let here = program.cstr(".");
        program.chroot(here);
        program.close(root);
    } else {
        enter(&top, program);
        program.bind(fd, address, length);
    }
    dress(entry, &full, program);
    Ok(Reach::at(&full))
}

/// Owner and mode of the file of a socket.
fn dress(entry: &pb::UnixSkEntry, full: &[u8], program: &mut Program) {
    if let Some(permissions) = &entry.file_perms {
        let path = program.cstr(full);
        let (uid, gid) = (permissions.uid, permissions.gid);
        program.fchownat(libc::AT_FDCWD, path, uid, gid, 0);
        program.fchmodat(libc::AT_FDCWD, path, permissions.mode & 0o7777);
    }
}

fn enter(dir: &[u8], program: &mut Program) {
    let dir = program.cstr(dir);
    let dir = program.openat(libc::AT_FDCWD, dir, DIRECTORY, 0);
    program.fchdir(dir);
    program.close(dir);
}

/// The file of a socket stays when the socket is gone, and keeps others from taking its name.
fn make_way(names: &mut Names, path: &[u8]) -> Result<()> {
    let path = path_of(path.to_vec());
    #[allow(
        clippy::unnecessary_cast,
        reason = "the mode has other widths on other machines"
    )]
    let is_socket = |mode: nix::libc::mode_t| mode & SFlag::S_IFMT.bits() == SFlag::S_IFSOCK.bits();
    match lstat(&path) {
        Ok(stat) if is_socket(stat.st_mode) => {
            names.move_away(&path).map_err(Error::kernel("renameat2"))
        }
        Ok(_) => Err(Error::unsupported(
            format!("{} is not a socket any more", path.display()),
            "move it away",
        )),
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(Error::Kernel {
            call: "lstat",
            errno,
        }),
    }
}

#[cfg(test)]
mod tests {
    use criu_kind::testing::Paper;

    use super::*;

    fn entry(name: &[u8], dir: Option<&[u8]>) -> pb::UnixSkEntry {
        pb::UnixSkEntry {
            name: name.to_vec(),
            name_dir: dir.map(<[u8]>::to_vec),
            file_perms: Some(pb::FilePermsEntry {
                mode: 0o140_755,
                uid: 1,
                gid: 2,
            }),
            ..pb::UnixSkEntry::default()
        }
    }

    #[test]
    fn names_of_three_sorts() {
        let mut program = Program::new();
        let (mut scratch, mut names) = (Scratch::default(), Names::default());
        let hidden = bind(
            7,
            &entry(b"\0a", None),
            &mut scratch,
            &mut names,
            &mut program,
        );
        assert_eq!(hidden.expect("bound"), Reach::Name(b"\0a".to_vec()));
        let mut paper = Paper::default();
        let mut reach = |entry| bind_here(&mut paper, 7, &entry).expect("bound");
        let full = reach(entry(b"/no/such/x\0", None));
        assert_eq!(full, Reach::In(b"/no/such".to_vec(), b"x\0".to_vec()));
        let relative = reach(entry(b"b/x\0", Some(b"/no/such")));
        assert_eq!(relative, Reach::In(b"/no/such/b".to_vec(), b"x\0".to_vec()));
        let listing = paper.listing();
        assert!(listing.contains("fchownat(-100, \"/no/such/b/x\", 1, 2, 0)"));
        assert!(listing.contains("fchmodat(-100, \"/no/such/b/x\", 493)"));
        assert!(listing.contains("openat(-100, \"/no/such\""));
    }
}
