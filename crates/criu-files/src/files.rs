//! All files of a dump, on the way back.
//!
//! Stages: [`Files::load`] reads and checks references, [`Files::check`] looks at the file system,
//! [`Files::open_all`] makes everything in the tracer, [`Files::place`] puts it under its numbers in a task,
//! [`Files::settle`] and [`Files::arm`] do what needs all of it in place.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use criu_image::id::{FdTableId, FileId, ShmId, VPid};
use criu_image::{Desc, ImageId, Store, StoreExt, desc, pb};
use criu_kind::{
    AnyFileKind, Cache, Error, FileFds, Opened, RestoreCx, Result, Shift, Subject, Within,
};
use criu_tracee::{Local, Names, Program, Site};

use prost::{Message, Name};

use crate::options::RestoreOptions;
use crate::passage::Passage;
use crate::raise::Raised;
use crate::{legacy, open, path};

/// An open file of the images.
pub(crate) struct Saved {
    pub(crate) entry: Rc<pb::FileEntry>,
    pub(crate) kind: &'static dyn AnyFileKind,
    /// Belongs to another entry, or is a name only.
    pub(crate) part: bool,
}

/// `REMAP_GHOST` of images without a remap type.
const OLD_GHOST: u32 = 1 << 31;

/// Where the path of an unlinked file leads instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remap {
    Linked(FileId),
    Ghost(u32),
    Process,
}

/// The files of a dump.
///
/// Dropping it closes what it opened here; tasks keep what they inherited.
pub struct Files<'s> {
    pub(crate) store: &'s dyn Store,
    pub(crate) options: RestoreOptions,
    pub(crate) all: BTreeMap<FileId, Saved>,
    pub(crate) paths: BTreeMap<FileId, pb::RegFileEntry>,
    pub(crate) remaps: BTreeMap<FileId, Remap>,
    pub(crate) tables: BTreeMap<FdTableId, Vec<pb::FdinfoEntry>>,
    /// The first table that has each file, and its number there; and the other way round.
    pub(crate) homes: BTreeMap<FileId, (FdTableId, i32)>,
    pub(crate) residents: BTreeMap<FdTableId, Vec<FileId>>,
    pub(crate) locks: Vec<pb::FileLockEntry>,
    /// Numbers that watched files had when they were added to their epoll sets.
    former: Vec<i32>,
    /// Processes and threads that there will be, helpers among them.
    pids: BTreeSet<u32>,
    helpers: BTreeSet<u32>,
    /// Files that may have grown, and whether they are cut again.
    pub(crate) growing: BTreeMap<FileId, bool>,
    pub(crate) tasks: BTreeMap<FdTableId, VPid>,
    pub(crate) shift: Shift,
    pub(crate) opened: BTreeMap<FileId, Opened>,
    /// Shared mappings that need a file open in a way that its entry does not say.
    pub(crate) shared: BTreeSet<(FileId, bool)>,
    /// Files that tasks need before they are sent their own.
    pub(crate) inherited: BTreeSet<FileId>,
    /// Numbers in a task of those that are tied to each other right now.
    pub(crate) tied: Option<HashMap<FileId, i32>>,
    pub(crate) shared_fds: BTreeMap<(FileId, bool), i32>,
    pub(crate) raised: Raised,
    pub(crate) names: Names,
    pub(crate) floor: i32,
    /// The first descriptor number that is too large.
    pub(crate) limit: i32,
    pub(crate) passage: Option<Passage>,
    /// What is to be made later, in order.
    pub(crate) late: Vec<Vec<FileId>>,
    /// Pids that made files, whether or not they are of the tree.
    makers: BTreeSet<u32>,
    pub(crate) cache: Cache,
    here: Local,
}

impl std::fmt::Debug for Files<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files")
            .field("files", &self.all.len())
            .field("opened", &self.opened)
            .finish_non_exhaustive()
    }
}

impl<'s> Files<'s> {
    /// Reads all images of files and checks that what they refer to is there. Makes nothing.
    pub fn load(
        store: &'s dyn Store,
        options: RestoreOptions,
        kinds: impl IntoIterator<Item = &'static dyn AnyFileKind>,
    ) -> Result<Self> {
        let kinds: HashMap<i32, &'static dyn AnyFileKind> = kinds
            .into_iter()
            .map(|kind| (kind.tag().into(), kind))
            .collect();
        let mut entries = legacy::entries(store)?;
        let mut files = Self {
            store,
            options,
            all: BTreeMap::new(),
            paths: BTreeMap::new(),
            remaps: BTreeMap::new(),
            tables: BTreeMap::new(),
            homes: BTreeMap::new(),
            residents: BTreeMap::new(),
            locks: messages(store, desc::FILE_LOCKS)?,
            former: Vec::new(),
            pids: BTreeSet::new(),
            helpers: BTreeSet::new(),
            growing: BTreeMap::new(),
            tasks: BTreeMap::new(),
            shift: Shift::default(),
            opened: BTreeMap::new(),
            shared: BTreeSet::new(),
            inherited: BTreeSet::new(),
            tied: None,
            shared_fds: BTreeMap::new(),
            raised: Raised::default(),
            names: Names::default(),
            floor: 0,
            limit: 0,
            passage: None,
            late: Vec::new(),
            makers: BTreeSet::new(),
            cache: Cache::new(),
            here: Local,
        };
        for ext in messages::<pb::FilesExtEntry>(store, desc::FILES_EXT)? {
            let former = ext.epoll.and_then(|epoll| epoll.tfd);
            files.former.extend(former.map(u32::cast_signed));
            files.makers.extend(crate::late::makers(&ext));
        }
        // That is memory, and no task has it as a file.
        let memory = criu_image::shmem::anonymous(store)?;
        entries.retain(|entry| !memory.contains_key(&FileId::new(entry.id)));
        files.take_entries(entries, &kinds)?;
        files.take_tables()?;
        files.take_remaps()?;
        files.apply_policies();
        files.take_leave();
        Ok(files)
    }

    fn take_entries(
        &mut self,
        entries: Vec<Rc<pb::FileEntry>>,
        kinds: &HashMap<i32, &'static dyn AnyFileKind>,
    ) -> Result<()> {
        let mut refused = Vec::new();
        for entry in entries {
            let id = FileId::new(entry.id);
            if let Some(path) = &entry.reg {
                if path.id != entry.id || self.paths.insert(id, (**path).clone()).is_some() {
                    refused.push(Error::corrupt(
                        "files.img",
                        format!("the path of file {id} is there twice"),
                    ));
                }
                if self.all.contains_key(&id) {
                    continue; // Before 3.6 a FIFO and its path had one id.
                }
            }
            let Some(kind) = kinds.get(&entry.r#type) else {
                let kind = pb::FdTypes::try_from(entry.r#type)
                    .map_or("unknown", |kind| kind.as_str_name());
                let error = Error::unsupported(
                    format!("file {id} is of kind {kind}, which cannot be restored yet"),
                    "restore these images with the program that wrote them",
                );
                refused.push(error);
                continue;
            };
            let saved = Saved {
                entry,
                kind: *kind,
                part: false,
            };
            let before = self.all.insert(id, saved);
            if before.is_some_and(|before| before.entry.reg.is_none()) {
                refused.push(Error::corrupt(
                    "files.img",
                    format!("file {id} is there twice"),
                ));
            }
        }
        let parts: Vec<FileId> = self
            .all
            .values()
            .flat_map(|file| file.kind.parts(&file.entry))
            .collect();
        for part in parts {
            match self.all.get_mut(&part) {
                Some(saved) => saved.part = saved.entry.reg.is_some(),
                None => refused.push(Error::corrupt(
                    "files.img",
                    format!("the path {part} of a file is not there"),
                )),
            }
        }
        Error::all(refused)
    }

    fn take_tables(&mut self) -> Result<()> {
        for name in self.store.names()? {
            let Some((kind, ImageId::Number(number))) = Desc::of_file(&name) else {
                continue;
            };
            if kind.stem != desc::FDINFO.stem {
                continue;
            }
            let broken = |why: String| Error::corrupt(name.as_str(), why);
            let id = u32::try_from(number).map_err(|_| broken("its number is too large".into()))?;
            let mut entries: Vec<pb::FdinfoEntry> = match self.store.entries(desc::FDINFO, id)? {
                Some(entries) => entries.into_iter().map(|entry| entry.message).collect(),
                None => continue,
            };
            entries.sort_by_key(|entry| entry.fd);
            let id = FdTableId::new(id);
            for (index, entry) in entries.iter().enumerate() {
                let file = FileId::new(entry.id);
                let known = self.all.get(&file);
                let known = known.ok_or_else(|| {
                    broken(format!(
                        "fd {} is file {file}, which is not there",
                        entry.fd
                    ))
                })?;
                let number = i32::try_from(entry.fd)
                    .map_err(|_| broken(format!("fd {} is no number", entry.fd)))?;
                if known.entry.r#type != entry.r#type {
                    return Err(broken(format!(
                        "fd {} and file {file} are of different kinds",
                        entry.fd
                    )));
                }
                if index > 0 && entries[index - 1].fd == entry.fd {
                    return Err(broken(format!("fd {} is there twice", entry.fd)));
                }
                self.homes.entry(file).or_insert((id, number));
            }
            self.tables.insert(id, entries);
        }
        self.residents = self.find_residents();
        Ok(())
    }

    fn take_remaps(&mut self) -> Result<()> {
        for tree in messages::<pb::PstreeEntry>(self.store, desc::PSTREE)? {
            self.pids.insert(tree.pid);
            self.pids.extend(tree.threads);
        }
        for remap in messages::<pb::RemapFilePathEntry>(self.store, desc::REMAP_FPATH)? {
            let broken = |why: String| Err(Error::corrupt("remap-fpath.img", why));
            let file = FileId::new(remap.orig_id);
            if !self.paths.contains_key(&file) {
                return broken(format!("file {file} has no path"));
            }
            // The first versions had a bit of the id instead of a type.
            let (kind, to) = match remap.remap_type {
                Some(kind) => (kind, remap.remap_id),
                None if remap.remap_id & OLD_GHOST != 0 => {
                    (pb::RemapType::Ghost.into(), remap.remap_id & !OLD_GHOST)
                }
                None => (pb::RemapType::Linked.into(), remap.remap_id),
            };
            let Ok(kind) = pb::RemapType::try_from(kind) else {
                return broken(format!(
                    "file {file} is to be found in a way {kind} that is not known"
                ));
            };
            let to = match kind {
                pb::RemapType::Linked => {
                    let name = FileId::new(to);
                    let saved = self.all.get_mut(&name);
                    let Some(saved) = saved.filter(|saved| saved.entry.reg.is_some()) else {
                        return broken(format!(
                            "file {file} is to be found at {name}, which is not there"
                        ));
                    };
                    saved.part = true;
                    Remap::Linked(name)
                }
                pb::RemapType::Ghost => Remap::Ghost(to),
                pb::RemapType::Procfs => {
                    if self.pids.insert(to) {
                        self.helpers.insert(to);
                    }
                    Remap::Process
                }
            };
            if self
                .remaps
                .insert(file, to)
                .is_some_and(|before| before != to)
            {
                return broken(format!("file {file} is there twice"));
            }
        }
        Ok(())
    }

    /// Who was outside of the tree at dump and has ended since is as dead as who had ended before: ps(1) has files of
    /// everybody open, for a moment.
    fn take_leave(&mut self) {
        for entry in self.paths.values() {
            let Some(pid) = path::process_of(&entry.name) else {
                continue;
            };
            let given = entry.ext() || RestoreCx::inherited(self, &entry.name).is_some();
            if given || self.pids.contains(&pid) || path::is_alive(pid) {
                continue;
            }
            self.pids.insert(pid);
            self.helpers.insert(pid);
        }
    }

    /// Processes that have gone, but whose `/proc` directory a task has open: they must exist, under these
    /// pids, from before [`Files::place`] until after it.
    pub fn helper_pids(&self) -> impl Iterator<Item = VPid> {
        self.helpers.iter().map(|pid| VPid::new(*pid))
    }

    /// Processes that have gone, but are remembered by sockets and messages: if their pids are free, they are
    /// made for the while too.
    pub fn maker_pids(&self) -> impl Iterator<Item = VPid> {
        let gone = self.makers.difference(&self.pids);
        gone.map(|pid| VPid::new(*pid))
    }

    /// The ids of all descriptor tables.
    pub fn tables(&self) -> impl Iterator<Item = FdTableId> {
        self.tables.keys().copied()
    }

    /// The descriptor numbers that tasks will have, and those that are needed on the way, ascending.
    pub fn numbers(&self) -> BTreeSet<i32> {
        let entries = self.tables.values().flatten();
        let placed = entries.map(|entry| entry.fd.cast_signed());
        placed.chain(self.passing()).collect()
    }

    /// Numbers that are needed on the way.
    pub(crate) fn passing(&self) -> impl Iterator<Item = i32> {
        let files = self.all.values();
        let passing = files.flat_map(|file| file.kind.numbers(&file.entry));
        passing.chain(self.former.iter().copied())
    }

    /// Gives kinds what their crate shares with the driver: they find it by [`RestoreCx::cache`].
    pub fn lend<T: 'static>(&mut self, value: Rc<T>) {
        self.cache.insert(std::any::TypeId::of::<T>(), value);
    }

    /// Says which process has which table. Needed before [`Files::place`]: some files are opened in one
    /// task and fetched by others, and locks belong to processes.
    pub fn set_tasks(&mut self, tasks: impl IntoIterator<Item = (FdTableId, VPid)>) {
        self.tasks.extend(tasks);
    }

    /// Says which files are mapped, executed, or somebody's directory: only these are inherited, under the numbers that
    /// [`FileFds::fd`] gives. Needed before [`Files::leave`].
    pub fn inherit(&mut self, files: impl IntoIterator<Item = FileId>) {
        self.inherited.extend(files);
    }

    /// Says which files have shared mappings, and whether those must be open for writing. Needed before
    /// [`Files::open_all`].
    pub fn share(&mut self, mappings: impl IntoIterator<Item = (FileId, bool)>) {
        self.shared.extend(mappings);
    }

    /// Of those that are shared the ones whose entry is open in another way, with the flags they need.
    pub(crate) fn other_openings(&self) -> Vec<(FileId, bool, u32)> {
        const MODE: u32 = libc::O_ACCMODE.cast_unsigned();
        let openings = self.shared.iter().filter_map(|(id, writable)| {
            let Some(Opened::Here(_)) = self.opened.get(id) else {
                return None;
            };
            let saved = self.all.get(id)?;
            let flags = saved.kind.flags(&saved.entry)?;
            let mode = if *writable {
                libc::O_RDWR
            } else {
                libc::O_RDONLY
            };
            let wanted = flags & !MODE | mode.cast_unsigned();
            (wanted != flags).then_some((*id, *writable, wanted))
        });
        openings.collect()
    }

    /// Whether names in file systems are made, be it for the while; and if so, what that needs. Before [`Files::open_all`].
    pub fn begin_names(&mut self) -> Result<bool> {
        let kept = |remap: &Remap| matches!(remap, Remap::Ghost(_) | Remap::Linked(_));
        let is_named = |saved: &Saved| saved.kind.is_named(&saved.entry);
        let any = self.remaps.values().any(kept) || self.all.values().any(is_named);
        if any {
            for path in self.given_names() {
                let held = self.names.hold(&path);
                held.within(|| open::object(&path))?;
            }
            self.names.begin()?;
        }
        Ok(any)
    }

    /// The names that are made.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The same, to add to them.
    pub fn names_mut(&mut self) -> &mut Names {
        &mut self.names
    }

    /// A path for people.
    pub(crate) fn subject(&self, id: FileId) -> Subject {
        let name = match (self.paths.get(&id), self.all.get(&id)) {
            (Some(path), _) => String::from_utf8_lossy(&path.name).into_owned(),
            (None, Some(saved)) => format!("{} {id}", saved.kind.name()),
            (None, None) => format!("file {id}"),
        };
        Subject::Object(name)
    }
}

/// All messages of an image that may be absent.
fn messages<M: Message + Default + Name>(store: &dyn Store, desc: &'static Desc) -> Result<Vec<M>> {
    let entries = store.entries::<M>(desc, ())?.unwrap_or_default();
    Ok(entries.into_iter().map(|entry| entry.message).collect())
}

impl FileFds for Files<'_> {
    fn fd(&self, id: FileId) -> Result<i32> {
        match self.opened.get(&id) {
            Some(Opened::Here(fd) | Opened::Given(fd)) => Ok(*fd),
            Some(Opened::There) => Err(Error::unsupported(
                "a file of a restored process is used otherwise than as a descriptor",
                "restore the process without it",
            )),
            None => Err(Error::corrupt(
                "files.img",
                format!("file {id} is not there"),
            )),
        }
    }

    fn fd_to_map(&self, id: FileId, writable: bool) -> Result<i32> {
        match self.shared_fds.get(&(id, writable)) {
            Some(fd) => Ok(*fd),
            None => self.fd(id),
        }
    }
}

impl RestoreCx for Files<'_> {
    fn here(&mut self) -> &mut dyn Site {
        &mut self.here
    }

    fn open_path(&mut self, id: FileId, flags: Option<u32>) -> Result<i32> {
        crate::open::path(self, id, flags)
    }

    fn file(&self, id: FileId) -> Result<Option<i32>> {
        if let Some(tied) = &self.tied {
            return Ok(tied.get(&id).copied());
        }
        self.opened_here(id)
    }

    fn beside(&self, id: FileId, fd: i32) -> Option<FileId> {
        // What is only in flight has no home.
        let home = self.homes.get(&id).map(|(home, _)| *home);
        let home = home.or_else(|| self.tables.keys().next().copied())?;
        let entries = self.tables.get(&home)?;
        let at = entries
            .binary_search_by_key(&fd.cast_unsigned(), |entry| entry.fd)
            .ok()?;
        Some(FileId::new(entries[at].id))
    }

    fn inherited(&self, key: &[u8]) -> Option<i32> {
        let key = key.strip_prefix(b"/").unwrap_or(key);
        let mut all = self.options.inherited.iter();
        let given = all.find(|(known, _)| known.trim_start_matches('/').as_bytes() == key);
        given.map(|(_, fd)| *fd)
    }

    fn is_of_task(&self, name: &[u8]) -> bool {
        path::process_of(name).is_some_and(|pid| self.pids.contains(&pid))
    }

    fn memory(&mut self, id: ShmId, object: i32, size: u64) -> Result<()> {
        let path = format!("/proc/self/fd/{object}");
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path);
        (self.options.memory)(
            self.store,
            id,
            &file.map_err(Error::io("openat(memfd)"))?,
            size,
        )
    }

    fn is_external(&self, key: &str) -> bool {
        self.options.external.iter().any(|known| known == key)
    }

    fn home(&self, id: FileId) -> Option<VPid> {
        let (table, _) = self.homes.get(&id)?;
        self.tasks.get(table).copied()
    }

    fn at(&mut self, _: VPid) -> Option<&mut dyn Site> {
        None // There is none yet.
    }

    fn fetch(&mut self, pid: VPid, _: i32) -> Result<i32> {
        Err(Error::Gone(nix::unistd::Pid::from_raw(
            pid.get().cast_signed(),
        )))
    }

    fn root(&self) -> VPid {
        self.tasks
            .values()
            .next()
            .copied()
            .unwrap_or_else(|| VPid::new(0))
    }

    fn shift(&self) -> Shift {
        self.shift
    }

    fn make_name(&mut self, name: &criu_tracee::Name, program: &Program) -> Result<()> {
        Ok(self.names.make(name, program)?)
    }

    fn names(&mut self) -> &mut Names {
        &mut self.names
    }

    fn store(&self) -> &dyn Store {
        self.store
    }

    fn cache(&mut self) -> &mut Cache {
        &mut self.cache
    }
}
