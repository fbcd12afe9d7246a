//! Names in file systems that a restore makes, until it is sure.
//!
//! What a process has open goes with it; a name stays. So each is noted together with its inode, in memory that a process
//! which outlives the tracer shares ([`crate::Heir`]): whoever gives up, [`Names::undo`] removes what is noted and
//! still is that inode. An inode that exists already is noted before it gets the name. One that comes into being with its
//! name is made and noted in one go, by a process that is not killed with the tracer ([`crate::sheltered`]).

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::error::{CallError, Context, Error, Result};
use crate::local::{Local, Passing};
use crate::name::{Identity, Name, errno, move_to, remove};
use crate::note::{Care, DONE, Note, OVER, PLANNED, next, write};
use crate::program::Program;
use crate::shelter::sheltered;
use crate::site::Site;

/// The names of a restore. Dropped before [`Names::finish`], it undoes them.
#[derive(Debug, Default)]
pub struct Names {
    /// Shared with whoever was forked since [`Names::begin`].
    notes: Option<File>,
    end: u64,
    /// Where the note of a name is that we may remove ourselves.
    places: HashMap<Name, u64>,
    held: Vec<(PathBuf, OwnedFd)>,
    finished: bool,
}

impl Names {
    /// Makes the memory for notes. Who is forked from here on shares it, and can [undo](Names::undo) what others note in it.
    pub fn begin(&mut self) -> Result<()> {
        if self.notes.is_none() {
            let notes = memfd_create(c"criu-rs-names", MFdFlags::MFD_CLOEXEC);
            self.notes = Some(notes.call("memfd_create")?.into());
        }
        Ok(())
    }

    /// Makes something that comes into being with its name, which the last call does. Descriptors that it opens are gone again.
    pub fn make(&mut self, name: &Name, program: &Program) -> Result<()> {
        let (care, text) = match name {
            Name::Path(path) => (Care::Made, path.as_os_str().as_bytes()),
            Name::Queue(name) => (Care::Queue, name.as_slice()),
        };
        let mut note = self.note(PLANNED, care, Identity::default(), text.to_vec())?;
        self.places.insert(name.clone(), note.at);
        let notes = self.notes.as_ref();
        let answer = sheltered(|| {
            let made = Passing.run(program);
            match made {
                Ok(_) => {}
                Err(Error::Call(CallError { errno, index, .. })) => {
                    let index = u32::try_from(index).unwrap_or(u32::MAX);
                    return [index.to_ne_bytes(), (errno as i32).to_ne_bytes()].concat();
                }
                Err(_) => return vec![0],
            }
            let noted = Identity::named(name).and_then(|identity| {
                note.identity = identity;
                note.state = DONE;
                notes.map_or(Ok(()), |notes| write(notes, &note))
            });
            match noted {
                Ok(()) => Vec::new(),
                Err(errno) => {
                    // Nobody would later. Why it failed is told in any case.
                    let _ = remove(name);
                    [u32::MAX.to_ne_bytes(), (errno as i32).to_ne_bytes()].concat()
                }
            }
        })?;
        let word = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
        match (answer.is_empty(), word(0), word(4)) {
            (true, ..) => Ok(()),
            (false, Some(index), Some(errno)) => {
                let errno = Errno::from_raw(errno.cast_signed());
                let index = index as usize;
                Err(match program.calls().get(index) {
                    Some(call) => Error::Call(CallError {
                        sysno: call.sysno,
                        errno,
                        index,
                        text: program.text(index),
                    }),
                    None => Error::Kernel {
                        call: "statx",
                        errno,
                    },
                })
            }
            // A call that is not for here; this says so too.
            _ => Local.run(program).map(drop),
        }
    }

    /// Gives a name to an inode; `false` if the name is taken.
    pub fn lend(
        &mut self,
        identity: Identity,
        path: &Path,
        link: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<bool, Errno> {
        // It may be the same inode that has it.
        match Identity::at(path) {
            Ok(_) => return Ok(false),
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
        let text = path.as_os_str().as_bytes().to_vec();
        let note = self.note(DONE, Care::Made, identity, text);
        let note = note.map_err(|error| error.errno().unwrap_or(Errno::EIO))?;
        let name = Name::Path(path.to_owned());
        match link() {
            Ok(()) => {
                self.places.insert(name, note.at);
                Ok(true)
            }
            Err(errno) => {
                self.over(note)?;
                match errno {
                    Errno::EEXIST => Ok(false),
                    errno => Err(errno),
                }
            }
        }
    }

    /// Removes a name that was only made for the while.
    pub fn remove(&mut self, name: &Name) -> Result<(), Errno> {
        remove(name)?;
        self.forget(name)
    }

    /// Somebody has removed a name, or will.
    pub fn forget(&mut self, name: &Name) -> Result<(), Errno> {
        match (self.places.remove(name), &self.notes) {
            (Some(at), Some(notes)) => notes.write_all_at(&[OVER], at).map_err(errno),
            _ => Ok(()),
        }
    }

    /// A path for a directory, to be made below `place`, that nobody else makes; it is removed in any case, with all that is in it.
    pub fn scratch(&mut self, place: &Path) -> Result<PathBuf> {
        let path = place.join(unlike_others());
        let text = path.as_os_str().as_bytes().to_vec();
        let note = self.note(DONE, Care::Scratch, Identity::default(), text)?;
        self.places.insert(Name::Path(path.clone()), note.at);
        Ok(path)
    }

    /// Moves out of the way what has a name. It is put back if the restore fails, and removed when it is sure.
    pub fn move_away(&mut self, path: &Path) -> Result<(), Errno> {
        let identity = Identity::at(path)?;
        let old = path.as_os_str().as_bytes();
        let aside = [old, unlike_others().as_bytes()].concat();
        let text = [old, &[0], &aside].concat();
        let note = self.note(DONE, Care::Moved, identity, text);
        let note = note.map_err(|error| error.errno().unwrap_or(Errno::EIO))?;
        let moved = move_to(path, Path::new(std::ffi::OsStr::from_bytes(&aside)));
        if moved.is_err() {
            self.over(note)?;
        }
        moved
    }

    /// Holds what has a name that [`Names::part`] will remove. Before whoever could have to give it again is forked.
    pub fn hold(&mut self, path: &Path) -> Result<()> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match open(path, flags, Mode::empty()) {
            Ok(fd) => self.held.push((path.to_owned(), fd)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => return Err(errno).call("openat"),
        }
        Ok(())
    }

    /// Removes a name that is given again if the restore fails. If it is the only one of its inode it is removed when the
    /// restore is sure.
    pub fn part(&mut self, path: &Path) -> Result<(), Errno> {
        let known = |names: &Self| names.held.iter().position(|(known, _)| known == path);
        if known(self).is_none() {
            let held = self.hold(path);
            held.map_err(|error| error.errno().unwrap_or(Errno::EIO))?;
        }
        let index = known(self);
        let data = match std::fs::symlink_metadata(path).map_err(errno) {
            Err(Errno::ENOENT) => return Ok(()),
            other => other?,
        };
        let text = path.as_os_str().as_bytes().to_vec();
        let (care, held) = match index.map(u16::try_from) {
            Some(Ok(index)) if data.nlink() > 1 => (Care::Held, index),
            _ => (Care::Last, 0),
        };
        let mut note = Note {
            at: 0,
            state: DONE,
            care,
            held,
            identity: Identity::new(&data),
            text,
        };
        let noted = self.add(&mut note);
        noted.map_err(|error| error.errno().unwrap_or(Errno::EIO))?;
        match care {
            Care::Held => unlinkat(AT_FDCWD, path, UnlinkatFlags::NoRemoveDir),
            _ => Ok(()),
        }
    }

    /// The restore has come to nothing: whatever was noted is undone, the last first, once.
    pub fn undo(&self) {
        self.settle(|note| note.undo(&self.held));
    }

    /// It is sure; also to be said by whoever was forked, if the tracer does not come to it.
    pub fn finish(&self) {
        self.settle(Note::finish);
    }

    /// Nothing is undone when this is dropped.
    pub fn keep(&mut self) {
        self.finished = true;
    }

    fn settle(&self, settle: impl Fn(&Note) -> Result<(), Errno>) {
        let Some(notes) = &self.notes else { return };
        let bytes = match whole(notes) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(%error, "what names were made is not known any more");
                return;
            }
        };
        let mut all = Vec::new();
        let mut at = 0;
        while let Some(note) = Note::read(&bytes, at) {
            at = next(at as u64, note.text.len())
                .try_into()
                .unwrap_or(usize::MAX);
            all.push(note);
        }
        for note in all.iter().rev().filter(|note| note.state == DONE) {
            if let Err(errno) = settle(note) {
                let path = String::from_utf8_lossy(&note.text);
                tracing::error!(%path, %errno, "a name could not be put right");
            }
            if let Err(error) = notes.write_all_at(&[OVER], note.at) {
                tracing::error!(%error, "a note of a name could not be struck out");
            }
        }
    }

    fn note(&mut self, state: u8, care: Care, identity: Identity, text: Vec<u8>) -> Result<Note> {
        let mut note = Note {
            at: 0,
            state,
            care,
            held: 0,
            identity,
            text,
        };
        self.add(&mut note)?;
        Ok(note)
    }

    fn add(&mut self, note: &mut Note) -> Result<()> {
        self.begin()?;
        note.at = self.end;
        let bytes = [&note.head()[..], &note.text].concat();
        if let Some(notes) = &self.notes {
            notes
                .write_all_at(&bytes, self.end)
                .map_err(errno)
                .call("pwrite64")?;
        }
        self.end = next(self.end, note.text.len());
        Ok(())
    }

    fn over(&self, mut note: Note) -> Result<(), Errno> {
        note.state = OVER;
        self.notes
            .as_ref()
            .map_or(Ok(()), |notes| write(notes, &note))
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        if !self.finished {
            self.undo();
        }
    }
}

/// The end of a name that nobody else chooses.
fn unlike_others() -> String {
    let random = RandomState::new().hash_one(std::process::id());
    format!(".criu-rs-{random:016x}")
}

/// Everything, wherever the position is: that is shared.
fn whole(notes: &File) -> io::Result<Vec<u8>> {
    let length = usize::try_from(notes.metadata()?.len()).unwrap_or(0);
    let mut bytes = vec![0; length];
    notes.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use nix::fcntl::AtFlags;
    use nix::unistd::linkat;

    use super::*;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir();
            let path = path.join(format!("criu-rs-names-{}-{name}", std::process::id()));
            std::fs::create_dir(&path).expect("it is ours");
            Self(path)
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(&self.0).expect("it is there");
            let name = |entry: io::Result<std::fs::DirEntry>| entry.expect("one").file_name();
            let mut names: Vec<_> = entries
                .map(|entry| name(entry).into_string().expect("text"))
                .collect();
            names.sort();
            names
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).expect("it is ours");
        }
    }

    fn fifo(names: &mut Names, path: &Path) -> Result<()> {
        let mut program = Program::new();
        let at = program.cstr(path.as_os_str().as_bytes());
        program.mknodat(libc::AT_FDCWD, at, libc::S_IFIFO | 0o600, 0);
        names.make(&Name::Path(path.to_owned()), &program)
    }

    #[test]
    fn what_is_made_goes_and_what_was_there_stays() {
        let dir = Directory::new("made");
        std::fs::write(dir.at("there"), "x").expect("written");
        let mut names = Names::default();
        fifo(&mut names, &dir.at("a")).expect("made");
        let error = fifo(&mut names, &dir.at("there")).expect_err("it is taken");
        assert_eq!(error.errno(), Some(Errno::EEXIST));
        fifo(&mut names, &dir.at("b")).expect("made");
        std::fs::rename(dir.at("b"), dir.at("moved")).expect("moved");
        std::fs::write(dir.at("b"), "of somebody else").expect("written");
        drop(names);
        assert_eq!(dir.names(), ["b", "moved", "there"]);
    }

    #[test]
    fn what_is_sure_stays() {
        let dir = Directory::new("sure");
        std::fs::write(dir.at("old"), "x").expect("written");
        let mut names = Names::default();
        names.move_away(&dir.at("old")).expect("moved");
        fifo(&mut names, &dir.at("old")).expect("made");
        assert_eq!(dir.names().len(), 2);
        names.keep();
        names.finish();
        drop(names);
        assert_eq!(dir.names(), ["old"]);
        assert_eq!(std::fs::read_link(dir.at("old")).ok(), None);
        assert!(!dir.at("old").is_file(), "it is the FIFO");
    }

    #[test]
    fn what_was_in_the_way_comes_back() {
        let dir = Directory::new("way");
        std::fs::write(dir.at("old"), "x").expect("written");
        let mut names = Names::default();
        names.move_away(&dir.at("old")).expect("moved");
        fifo(&mut names, &dir.at("old")).expect("made");
        names.undo();
        assert_eq!(dir.names(), ["old"]);
        assert_eq!(std::fs::read(dir.at("old")).expect("a file"), b"x");
        // Once is enough.
        std::fs::rename(dir.at("old"), dir.at("new")).expect("moved");
        names.undo();
        assert_eq!(dir.names(), ["new"]);
    }

    #[test]
    fn a_name_that_is_lent() {
        let dir = Directory::new("lent");
        let (one, other) = (dir.at("one"), dir.at("other"));
        std::fs::write(&one, "x").expect("written");
        let identity = Identity::at(&one).expect("there");
        let link = || linkat(AT_FDCWD, &one, AT_FDCWD, &other, AtFlags::empty());
        let mut names = Names::default();
        assert_eq!(names.lend(identity, &other, link), Ok(true));
        // It has it already, and not from us.
        std::fs::hard_link(&one, dir.at("third")).expect("linked");
        let third = || linkat(AT_FDCWD, &one, AT_FDCWD, &dir.at("third"), AtFlags::empty());
        assert_eq!(names.lend(identity, &dir.at("third"), third), Ok(false));
        names.undo();
        assert_eq!(dir.names(), ["one", "third"]);
        assert_eq!(names.lend(identity, &other, link), Ok(true));
        names.remove(&Name::Path(other.clone())).expect("removed");
        link().expect("by somebody else");
        names.undo();
        assert_eq!(dir.names(), ["one", "other", "third"]);
    }

    #[test]
    fn a_name_that_is_taken_away() {
        let dir = Directory::new("part");
        let (first, only) = (dir.at("first"), dir.at("only"));
        for path in [&first, &only] {
            std::fs::write(path, "x").expect("written");
        }
        std::fs::hard_link(&first, dir.at("second")).expect("linked");
        let mut names = Names::default();
        for path in [&first, &only] {
            names.hold(path).expect("there");
            names.part(path).expect("removed");
        }
        assert_eq!(
            dir.names(),
            ["only", "second"],
            "nobody could give it again"
        );
        names.undo();
        assert_eq!(dir.names(), ["first", "only", "second"]);
        for path in [&first, &only] {
            names.part(path).expect("removed");
        }
        names.keep();
        names.finish();
        assert_eq!(dir.names(), ["second"]);
    }

    #[test]
    fn who_was_forked_before_knows_what_was_made_after() {
        let dir = Directory::new("forked");
        let mut names = Names::default();
        names.begin().expect("memory");
        let heir = crate::Heir::appoint(&[], || names.undo(), || ()).expect("a process");
        let mut ours = Names::default();
        let notes = names.notes.as_ref().expect("they have begun");
        ours.notes = Some(notes.try_clone().expect("a copy"));
        fifo(&mut ours, &dir.at("a")).expect("made");
        let scratch = ours.scratch(&dir.0).expect("noted");
        std::fs::create_dir_all(scratch.join("1/2")).expect("made");
        assert_eq!(dir.names().len(), 2);
        drop(heir);
        assert!(dir.names().is_empty(), "{:?}", dir.names());
    }
}
