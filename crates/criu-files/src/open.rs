//! Everything opened in the tracer, under numbers that no task needs.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use criu_image::id::FileId;
use criu_image::pb;
use criu_kind::{Error, Opened, RestoreCx, Result, Subject, Within};
use criu_tracee::{Local, Program, Site};

use crate::files::{Files, Remap};
use crate::numbers::Numbers;
use crate::passage::Passage;
use crate::{owner, raise};

const O_PATH: u32 = libc::O_PATH.cast_unsigned();
const O_NOFOLLOW: u32 = libc::O_NOFOLLOW.cast_unsigned();
/// Flags that act when a file is opened and are no state of it.
const ONE_TIME: u32 =
    (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ASYNC).cast_unsigned();
const ALWAYS: u32 = (libc::O_CLOEXEC | libc::O_NOCTTY).cast_unsigned();
/// What `F_SETFL` can set; `O_ASYNC` needs the number the task knows, so it comes later.
const SETTABLE: u32 =
    (libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME).cast_unsigned();

impl Files<'_> {
    /// Opens or makes every file here. The first task has them all until [`Files::leave`]; what it keeps is inherited, under
    /// the number that [`criu_kind::FileFds::fd`] gives.
    pub fn open_all(&mut self) -> Result<()> {
        let mut numbers = Numbers::new(self.numbers(), self.all.len() + self.shared.len())?;
        (self.floor, self.limit) = (numbers.floor(), numbers.limit());
        self.cut()?;
        self.passage = Some(Passage::open(&mut numbers, self.tables.len())?);
        raise::all(self)?;
        for group in self.groups()? {
            if self.all[&group[0]].kind.late() {
                self.late.push(group);
                continue;
            }
            let opened = self.open_group(&group);
            let opened = opened.within(|| self.subject(group[0]))?;
            for (id, opened) in group.into_iter().zip(opened) {
                let opened = self.keep(id, opened)?;
                self.opened.insert(id, opened);
            }
        }
        for (id, writable, flags) in self.other_openings() {
            let fd = match self.opened.get(&id) {
                // It has no path.
                Some(Opened::Here(fd)) if !self.paths.contains_key(&id) => {
                    let path = format!("/proc/self/fd/{fd}");
                    openat(Path::new(&path), flags & !O_NOFOLLOW)
                }
                _ => path(self, id, Some(flags)),
            };
            let fd = fd.within(|| self.subject(id))?;
            self.shared_fds.insert((id, writable), fd);
        }
        self.raised.end(&mut self.names)
    }

    /// Gives what was opened all that it has of its own.
    pub(crate) fn keep(&mut self, id: FileId, opened: Opened) -> Result<Opened> {
        if let Opened::Here(fd) = opened {
            self.settle_here(id, fd)?;
        }
        Ok(opened)
    }

    /// The path that the user gave for an external device: `dev[NAME]`.
    pub(crate) fn device(&self, name: &[u8]) -> Option<&std::path::Path> {
        let name = name.strip_prefix(b"dev[")?.strip_suffix(b"]")?;
        let mut given = self.options.devices.iter();
        let found = given.find(|(known, _)| known.as_bytes() == name);
        found.map(|(_, path)| path.as_path())
    }

    fn open_group(&mut self, group: &[FileId]) -> Result<Vec<Opened>> {
        let kind = self.all[&group[0]].kind;
        let entries: Vec<Rc<pb::FileEntry>> =
            group.iter().map(|id| self.all[id].entry.clone()).collect();
        let _span = tracing::debug_span!("file", id = group[0].get(), kind = kind.name()).entered();
        kind.open(
            self,
            &entries.iter().map(|entry| &**entry).collect::<Vec<_>>(),
        )
    }

    /// Files in the order of opening, twins together.
    pub(crate) fn groups(&self) -> Result<Vec<Vec<FileId>>> {
        let mut twins: BTreeMap<(i32, u64), Vec<FileId>> = BTreeMap::new();
        let mut groups: BTreeMap<FileId, Vec<FileId>> = BTreeMap::new();
        let mut leader: BTreeMap<FileId, FileId> = BTreeMap::new();
        for (id, saved) in self.all.iter().filter(|(_, saved)| !saved.part) {
            match saved.kind.twins(&saved.entry) {
                Some(key) => twins
                    .entry((saved.entry.r#type, key))
                    .or_default()
                    .push(*id),
                None => drop(groups.insert(*id, vec![*id])),
            }
        }
        groups.extend(twins.into_values().map(|group| (group[0], group)));
        for (first, group) in &groups {
            leader.extend(group.iter().map(|id| (*id, *first)));
        }
        let mut order = Order {
            files: self,
            groups: &groups,
            leader: &leader,
            done: BTreeMap::new(),
            list: Vec::new(),
        };
        for first in groups.keys() {
            order.visit(*first)?;
        }
        Ok(order.list)
    }

    /// What all kinds have: flags, the signal.
    fn settle_here(&mut self, id: FileId, fd: i32) -> Result<()> {
        let saved = &self.all[&id];
        let flags = saved.kind.flags(&saved.entry).unwrap_or(0);
        let is_path = flags & O_PATH != 0;
        let mut program = Program::new();
        if saved.entry.reg.is_none() && saved.kind.flags(&saved.entry).is_some() && !is_path {
            program.fcntl(fd, libc::F_SETFL, flags & SETTABLE);
        }
        if let Some(owner) = saved.kind.owner(&saved.entry)
            && !is_path
        {
            owner::set_signal(&owner, fd, &mut program);
        }
        if !program.is_empty() {
            self.here().run(&program)?;
        }
        Ok(())
    }
}

/// Puts files after those they need.
struct Order<'a, 's> {
    files: &'a Files<'s>,
    groups: &'a BTreeMap<FileId, Vec<FileId>>,
    leader: &'a BTreeMap<FileId, FileId>,
    /// `false` while it is being visited.
    done: BTreeMap<FileId, bool>,
    list: Vec<Vec<FileId>>,
}

impl Order<'_, '_> {
    fn visit(&mut self, first: FileId) -> Result<()> {
        match self.done.insert(first, false) {
            Some(true) => {
                self.done.insert(first, true);
                return Ok(());
            }
            Some(false) => {
                return Err(Error::corrupt(
                    "files.img",
                    format!("file {first} needs itself"),
                ));
            }
            None => {}
        }
        let group = &self.groups[&first];
        for id in group {
            let saved = &self.files.all[id];
            for needed in saved.kind.after(&saved.entry) {
                let missing = || {
                    Error::corrupt(
                        "files.img",
                        format!("file {id} needs {needed}, which is not there"),
                    )
                };
                let needed = *self.leader.get(&needed).ok_or_else(missing)?;
                if needed != first {
                    self.visit(needed)?;
                }
            }
        }
        self.done.insert(first, true);
        self.list.push(group.clone());
        Ok(())
    }
}

/// Opens the path of an entry here.
pub(crate) fn path(files: &mut Files<'_>, id: FileId, flags: Option<u32>) -> Result<i32> {
    let entry = files
        .paths
        .get(&id)
        .ok_or_else(|| Error::corrupt("files.img", format!("file {id} has no path")))?;
    let flags = flags.unwrap_or(entry.flags);
    let name = entry.name.clone();
    if let Some(given) = files.inherited(&name) {
        let mut program = Program::new();
        let fd = program.fcntl(given, libc::F_DUPFD_CLOEXEC, 0);
        return Ok(Local.run(&program)?.fd(fd)); // A part of another file, such as a FIFO.
    }
    if let Some(device) = files.device(&name) {
        return openat(device, flags & !ONE_TIME | ALWAYS);
    }
    if entry.ext() {
        return Err(Error::unsupported(
            format!("{} was declared external", name.escape_ascii()),
            format!("give it with --inherit-fd fd[N]:{}", name.escape_ascii()),
        ));
    }
    let path = from_root(files, &name);
    match files.remaps.get(&id) {
        Some(Remap::Ghost(ghost)) => {
            let ghost = *ghost;
            if let Some(fd) = files.raised.take(id) {
                return Ok(fd);
            }
            let missing =
                || Error::corrupt("remap-fpath.img", format!("ghost {ghost} was not made"));
            let through = files.raised.path(ghost, &path).ok_or_else(missing)?;
            // The link in /proc must be followed, and the inode is the one.
            let born = (libc::O_TMPFILE & !libc::O_DIRECTORY).cast_unsigned();
            let flags = match flags & born {
                0 => flags & !O_NOFOLLOW,
                _ => flags & !(libc::O_TMPFILE.cast_unsigned() | O_NOFOLLOW),
            };
            openat(Path::new(&through), flags & !libc::O_NOCTTY.cast_unsigned())
        }
        Some(Remap::Linked(at)) => {
            let at = files
                .paths
                .get(at)
                .ok_or_else(|| Error::corrupt("files.img", format!("file {at} has no path")))?;
            let at = from_root(files, &at.name);
            let lent = raise::lend_name(&mut files.names, &at, &path)?;
            let fd = openat(if lent { &path } else { &at }, flags);
            if lent {
                raise::take_name(&mut files.names, &path)?;
            }
            fd
        }
        _ => openat(&path, flags),
    }
}

fn openat(path: &Path, flags: u32) -> Result<i32> {
    let mut program = Program::new();
    let path = program.cstr(path.as_os_str().as_bytes());
    let fd = program.openat(libc::AT_FDCWD, path, flags & !ONE_TIME | ALWAYS, 0);
    Ok(Local.run(&program)?.fd(fd))
}

/// A path of a task as it is reached from here.
pub(crate) fn from_root(files: &Files<'_>, path: &[u8]) -> PathBuf {
    let below = path.strip_prefix(b"/").unwrap_or(path);
    let root = match files.options.root {
        Some(root) => format!("/proc/self/fd/{root}/"),
        None => "/".to_owned(),
    };
    PathBuf::from(OsString::from_vec([root.as_bytes(), below].concat()))
}

/// A path as the subject of a failure.
pub(crate) fn object(path: &Path) -> Subject {
    Subject::Object(path.display().to_string())
}

impl Files<'_> {
    /// The names that a dump gave to files ([`crate::DumpOptions::link_remap`]).
    pub(crate) fn given_names(&self) -> BTreeSet<PathBuf> {
        let linked = self.remaps.values().filter_map(|remap| match remap {
            Remap::Linked(at) => self.paths.get(at),
            _ => None,
        });
        linked.map(|path| from_root(self, &path.name)).collect()
    }

    /// Removes the names that a dump gave to files. A restore that fails after all gives them again.
    pub fn remove_names(&mut self) -> Result<()> {
        for path in self.given_names() {
            let removed = self.names.part(&path).map_err(Error::kernel("unlinkat"));
            removed.within(|| object(&path))?;
        }
        Ok(())
    }
}
