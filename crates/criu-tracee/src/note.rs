//! One note of a name: what it is, and what is done about it in the end.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;

use crate::name::{Identity, Name, errno, move_to, remove, remove_if};

/// What is to be done about a name. The first one of each is what is done when the restore fails, the other one when it
/// is sure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Care {
    /// Ours: removed; kept.
    Made = 1,
    /// A queue of ours: the same.
    Queue,
    /// A directory that nobody else can have: removed with all that is in it; the same.
    Scratch,
    /// Somebody else's, moved out of the way: put back; removed.
    Moved,
    /// Removed, and of an inode that is held open: given again; nothing.
    Held,
    /// To be removed when the restore is sure: nothing; removed.
    Last,
}

const CARES: [Care; 6] = [
    Care::Made,
    Care::Queue,
    Care::Scratch,
    Care::Moved,
    Care::Held,
    Care::Last,
];

/// How far it is.
pub(crate) const PLANNED: u8 = 0;
pub(crate) const DONE: u8 = 1;
pub(crate) const OVER: u8 = 2;

/// The fixed part of a note: state, care, which one is held, bytes of text, identity.
const HEAD: usize = 32;
/// Notes begin at multiples of this, so that no fixed part lies on two pages.
const STEP: u64 = 32;

#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) at: u64,
    pub(crate) state: u8,
    pub(crate) care: Care,
    pub(crate) held: u16,
    pub(crate) identity: Identity,
    /// A path or the name of a queue; of what was moved, a zero and the other path follow.
    pub(crate) text: Vec<u8>,
}

impl Note {
    pub(crate) fn head(&self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[0] = self.state;
        head[1] = self.care as u8;
        head[2..4].copy_from_slice(&self.held.to_ne_bytes());
        let length = u32::try_from(self.text.len()).unwrap_or(u32::MAX);
        head[4..8].copy_from_slice(&length.to_ne_bytes());
        head[8..16].copy_from_slice(&self.identity.dev.to_ne_bytes());
        head[16..24].copy_from_slice(&self.identity.ino.to_ne_bytes());
        head[24..32].copy_from_slice(&self.identity.born.to_ne_bytes());
        head
    }

    /// The note at `at`; `None` behind the last one. A tracer that was killed while it wrote one has done nothing about it yet.
    pub(crate) fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let head = bytes.get(at..at + HEAD)?;
        let word = |from: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&head[from..from + 8]);
            u64::from_ne_bytes(word)
        };
        let length = u32::from_ne_bytes([head[4], head[5], head[6], head[7]]) as usize;
        Some(Self {
            at: at as u64,
            state: head[0],
            care: *CARES.iter().find(|care| **care as u8 == head[1])?,
            held: u16::from_ne_bytes([head[2], head[3]]),
            identity: Identity {
                dev: word(8),
                ino: word(16),
                born: word(24),
            },
            text: bytes.get(at + HEAD..at + HEAD + length)?.to_vec(),
        })
    }

    fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(
            self.text.split(|byte| *byte == 0).next().unwrap_or(&[]),
        ))
    }

    /// Where something was moved to.
    fn aside(&self) -> &Path {
        let mut parts = self.text.splitn(2, |byte| *byte == 0);
        Path::new(OsStr::from_bytes(parts.nth(1).unwrap_or(&[])))
    }

    /// What is done when the restore fails.
    pub(crate) fn undo(&self, held: &[(PathBuf, OwnedFd)]) -> Result<(), Errno> {
        match self.care {
            Care::Made => remove_if(self.path(), self.identity),
            Care::Queue => {
                let name = Name::Queue(self.text.clone());
                match Identity::named(&name) {
                    Ok(found) if found == self.identity => remove(&name),
                    Ok(_) | Err(Errno::ENOENT) => Ok(()),
                    Err(errno) => Err(errno),
                }
            }
            Care::Scratch => match std::fs::remove_dir_all(self.path()).map_err(errno) {
                Err(Errno::ENOENT) => Ok(()),
                other => other,
            },
            Care::Moved => match Identity::at(self.aside()) {
                Ok(found) if found == self.identity => move_to(self.aside(), self.path()),
                Ok(_) | Err(Errno::ENOENT) => Ok(()),
                Err(errno) => Err(errno),
            },
            Care::Held => {
                let Some((_, fd)) = held.get(usize::from(self.held)) else {
                    return Err(Errno::EBADF);
                };
                let inode = format!("/proc/self/fd/{}", fd.as_raw_fd());
                let follow = AtFlags::AT_SYMLINK_FOLLOW;
                match linkat(AT_FDCWD, inode.as_str(), AT_FDCWD, self.path(), follow) {
                    // The tracer had not come to removing it.
                    Err(Errno::EEXIST) => Ok(()),
                    other => other,
                }
            }
            Care::Last => Ok(()),
        }
    }

    /// What is done when it is sure.
    pub(crate) fn finish(&self) -> Result<(), Errno> {
        match self.care {
            Care::Made | Care::Queue | Care::Held => Ok(()),
            Care::Scratch => self.undo(&[]),
            Care::Moved => remove_if(self.aside(), self.identity),
            Care::Last => remove_if(self.path(), self.identity),
        }
    }
}

/// Where the note behind one begins.
pub(crate) fn next(at: u64, text: usize) -> u64 {
    (at + HEAD as u64 + text as u64).next_multiple_of(STEP)
}

/// Writes the fixed part again.
pub(crate) fn write(notes: &File, note: &Note) -> Result<(), Errno> {
    notes.write_all_at(&note.head(), note.at).map_err(errno)
}
