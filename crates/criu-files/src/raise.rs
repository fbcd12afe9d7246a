//! Unlinked files, out of the images.
//!
//! Each is made under its old name if that is free, so that `/proc` calls it the same, and unlinked at
//! once; openings go through a descriptor of the inode, one for each name it had. Directories that are missing
//! are made for the while, and unlinked directories stay until their content is made.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use criu_image::id::FileId;
use criu_image::{Bytes, ImageId, StoreExt, desc, pb};
use criu_kind::{Error, Result, Within};
use criu_tracee::{Identity, Name, Names, Program};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;

use crate::files::{Files, Remap};
use crate::make::{dress, make};
use crate::open;

/// The inodes that live only by being open here, and directories that must go again.
#[derive(Default)]
pub(crate) struct Raised {
    /// By ghost and name.
    pub(crate) inodes: HashMap<(u32, PathBuf), OwnedFd>,
    /// Openings that cannot be made through another descriptor.
    pub(crate) ready: HashMap<FileId, OwnedFd>,
    pub(crate) directories: Vec<PathBuf>,
    undressed: Vec<Ghost>,
}

impl Raised {
    /// A path through which an inode can be opened.
    pub(crate) fn path(&self, ghost: u32, name: &Path) -> Option<String> {
        let fd = self.inodes.get(&(ghost, name.to_owned()))?;
        Some(format!("/proc/self/fd/{}", fd.as_raw_fd()))
    }

    /// The opening itself, if it was made with the inode.
    pub(crate) fn take(&mut self, id: FileId) -> Option<i32> {
        self.ready.remove(&id).map(IntoRawFd::into_raw_fd)
    }

    /// When all are open: removes what was made only for the while, and gives directories, whose times that
    /// changed, their own.
    pub(crate) fn end(&mut self, names: &mut Names) -> Result<()> {
        self.remove(names);
        for ghost in self.undressed.drain(..) {
            if let Some(fd) = self.inodes.get(&ghost.key()) {
                dress(&ghost, fd).within(|| open::object(ghost.path()))?;
            }
        }
        self.inodes.clear();
        self.ready.clear();
        Ok(())
    }

    fn remove(&mut self, names: &mut Names) {
        for directory in self.directories.drain(..).rev() {
            match names.remove(&Name::Path(directory.clone())) {
                Ok(()) | Err(Errno::ENOENT | Errno::ENOTEMPTY) => {}
                Err(errno) => {
                    tracing::warn!(path = %directory.display(), %errno, "a directory could not be removed");
                }
            }
        }
    }

    pub(crate) fn make_parents(&mut self, names: &mut Names, directory: &Path) -> Result<()> {
        let missing: Vec<&Path> = directory
            .ancestors()
            .take_while(|path| !path.exists())
            .collect();
        for path in missing.into_iter().rev() {
            let mut program = Program::new();
            let at = program.cstr(path.as_os_str().as_bytes());
            program.mkdirat(libc::AT_FDCWD, at, libc::S_IRWXU);
            match names.make(&Name::Path(path.to_owned()), &program) {
                Ok(()) => self.directories.push(path.to_owned()),
                Err(error) => match error.errno() {
                    Some(Errno::EEXIST) => {}
                    // Read-only: the file will be made elsewhere.
                    Some(Errno::EROFS | Errno::EACCES) => return Ok(()),
                    _ => return Err(error.into()),
                },
            }
        }
        Ok(())
    }
}

/// An unlinked file as the images have it.
pub(crate) struct Ghost {
    pub(crate) id: u32,
    pub(crate) entry: pb::GhostFileEntry,
    pub(crate) ext: pb::GhostExtEntry,
    /// Runs of content: offset and bytes.
    pub(crate) content: Vec<(u64, Bytes)>,
    /// Who has it open: what it was called then, and with which flags. Never empty.
    pub(crate) openings: Vec<Opening>,
}

/// An opening of an unlinked file.
pub(crate) struct Opening {
    pub(crate) file: FileId,
    pub(crate) path: PathBuf,
    pub(crate) flags: u32,
}

impl Ghost {
    pub(crate) fn is(&self, format: u32) -> bool {
        self.entry.mode & libc::S_IFMT == format
    }

    /// Its first name.
    pub(crate) fn path(&self) -> &Path {
        &self.openings[0].path
    }

    fn key(&self) -> (u32, PathBuf) {
        (self.id, self.path().to_owned())
    }
}

/// Makes all unlinked files again.
pub(crate) fn all(files: &mut Files<'_>) -> Result<()> {
    let mut ghosts: HashMap<u32, Ghost> = HashMap::new();
    for (file, remap) in &files.remaps {
        let Remap::Ghost(id) = remap else { continue };
        let Some(entry) = files.paths.get(file) else {
            continue;
        };
        let opening = Opening {
            file: *file,
            path: open::from_root(files, &entry.name),
            flags: entry.flags,
        };
        match ghosts.get_mut(id) {
            Some(known) => known.openings.push(opening),
            None => drop(ghosts.insert(*id, load(files, *id, opening)?)),
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
            !ghost.is(libc::S_IFDIR),
            ghost.path().components().count(),
            ghost.id,
        )
    });
    for ghost in &ghosts {
        make(&mut files.raised, &mut files.names, ghost).within(|| open::object(ghost.path()))?;
    }
    for ghost in ghosts {
        if ghost.is(libc::S_IFDIR) {
            files.raised.undressed.push(ghost);
        } else if let Some(fd) = files.raised.inodes.get(&ghost.key()) {
            dress(&ghost, fd).within(|| open::object(ghost.path()))?;
        }
    }
    Ok(())
}

fn load(files: &Files<'_>, id: u32, opening: Opening) -> Result<Ghost> {
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
    Ok(Ghost {
        id,
        entry,
        ext: pb::GhostExtEntry::default(),
        content,
        openings: vec![opening],
    })
}

/// Gives an unlinked file its old name for the while of an opening; `false` if somebody has that.
pub(crate) fn lend_name(names: &mut Names, from: &Path, to: &Path) -> Result<bool> {
    let link = || linkat(AT_FDCWD, from, AT_FDCWD, to, AtFlags::empty());
    match Identity::at(from).and_then(|identity| names.lend(identity, to, link)) {
        Ok(lent) => Ok(lent),
        Err(Errno::EEXIST | Errno::ENOENT | Errno::EROFS | Errno::EACCES) => Ok(false),
        Err(errno) => Err(Error::Kernel {
            call: "linkat",
            errno,
        }),
    }
}

/// Takes it back.
pub(crate) fn take_name(names: &mut Names, path: &Path) -> Result<()> {
    let taken = names.remove(&Name::Path(path.to_owned()));
    taken.map_err(Error::kernel("unlinkat"))
}
