//! All files of all tasks, at dump.
//!
//! Nothing runs in a task: descriptors come by pidfd_getfd(2). Each struct file gets one id however
//! many descriptors, processes and mappings show it, and one kind describes it. What cannot be kept
//! is refused all at once, each with its descriptor.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use criu_image::id::{FdTableId, FileId};
use criu_image::{Desc, ImageId, ImageWriter, Store, StoreExt, desc, pb};
use criu_kind::{AnyFileKind, DumpCx, Error, Inode, OpenFile, Result, Slot, Subject, Within};
use criu_proc::{Fdinfo, ProcDir};
use criu_tracee::{fetch_fd, pidfd_open};
use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::unistd::Pid;

use crate::identity::{self, Identities};
use crate::locks::Locks;
use crate::options::DumpOptions;
use crate::{ghost, link, owner, path};

/// A descriptor table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdTable {
    /// Its id, `files_id` of the task.
    pub id: FdTableId,
    /// Whether a process met earlier has it too.
    pub shared: bool,
}

/// Takes in descriptor tables and single files, and writes the images of all of them.
///
/// Dropping it removes the names it gave to files ([`DumpOptions::link_remap`]), unless
/// [`Collector::finish`] said to keep them.
pub struct Collector<'s> {
    pub(crate) options: DumpOptions,
    store: &'s dyn Store,
    kinds: Vec<&'static dyn AnyFileKind>,
    images: BTreeMap<String, ImageWriter>,
    identities: Identities,
    tables: BTreeMap<FdTableId, Table>,
    /// Descriptors by inode: candidates where a number does not help.
    inodes: HashMap<u64, Vec<(FileId, Slot)>>,
    entries: Vec<pb::FileEntry>,
    types: HashMap<FileId, i32>,
    /// Files that have more to say when all are known, with their kind and their place in `entries`.
    related: Vec<(OpenFile, &'static dyn AnyFileKind, usize)>,
    /// Mappings, executables and directories, by what tells them apart.
    singles: HashMap<(u64, u64, Vec<u8>, u32), FileId>,
    seen: HashSet<(&'static str, u64)>,
    pub(crate) ghosts: HashMap<(u64, u64), u32>,
    pub(crate) links: link::Links,
    locks: Locks,
    last: u32,
}

#[derive(Debug)]
struct Table {
    pid: Pid,
    files: BTreeMap<i32, FileId>,
}

impl std::fmt::Debug for Collector<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector").field("tables", &self.tables).finish_non_exhaustive()
    }
}

impl<'s> Collector<'s> {
    /// A collector that writes to `store` and knows these kinds, usually [`crate::KINDS`] and those of
    /// other crates.
    pub fn new(
        options: DumpOptions,
        store: &'s dyn Store,
        kinds: impl IntoIterator<Item = &'static dyn AnyFileKind>,
    ) -> Self {
        Self {
            options,
            store,
            kinds: kinds.into_iter().collect(),
            images: BTreeMap::new(),
            identities: Identities::default(),
            tables: BTreeMap::new(),
            inodes: HashMap::new(),
            entries: Vec::new(),
            types: HashMap::new(),
            related: Vec::new(),
            singles: HashMap::new(),
            seen: HashSet::new(),
            ghosts: HashMap::new(),
            links: link::Links::default(),
            locks: Locks::default(),
            last: 0,
        }
    }

    /// Takes in all descriptors of a stopped process and writes `fdinfo-ID.img`. All refusals are in
    /// one error.
    pub fn table(&mut self, pid: Pid, proc: &ProcDir) -> Result<FdTable> {
        let id = FdTableId::new(u32::try_from(self.tables.len()).unwrap_or(u32::MAX) + 1);
        if let Some(id) = self.identities.table(pid, id)? {
            return Ok(FdTable { id, shared: true });
        }
        self.tables.insert(id, Table { pid, files: BTreeMap::new() });
        for tid in proc.threads()? {
            if tid != pid && !identity::share_descriptors(pid, tid)? {
                let remedy = "let the thread end before the dump";
                let error = Error::unsupported("the thread has a descriptor table of its own", remedy);
                return Err(error).within(|| Subject::Thread(tid.as_raw()));
            }
        }
        let pidfd = pidfd_open(pid)?;
        let mut slots = Vec::new();
        let mut refused = Vec::new();
        for fd in proc.fds()? {
            match self.slot(proc, &pidfd, Slot { pid, fd }, id) {
                Ok(Some(entry)) => slots.push(entry),
                Ok(None) => {}
                Err(error) => {
                    let link = proc.readlink(&format!("fd/{fd}")).unwrap_or_default();
                    let subject = Subject::Fd { fd, link: link.to_string_lossy().into_owned() };
                    refused.push(Error::Within { subject, source: Box::new(error) });
                }
            }
        }
        Error::all(refused)?;
        let mut image = self.store.writer(desc::FDINFO, id)?;
        for entry in &slots {
            image.write(entry)?;
        }
        image.finish()?;
        Ok(FdTable { id, shared: false })
    }

    fn slot(
        &mut self,
        proc: &ProcDir,
        pidfd: &OwnedFd,
        slot: Slot,
        table: FdTableId,
    ) -> Result<Option<pb::FdinfoEntry>> {
        let fd = slot.fd;
        let mut info = proc.fdinfo(fd)?;
        let cloexec = libc::O_CLOEXEC.cast_unsigned();
        let closes = info.flags & cloexec != 0;
        info.flags &= !cloexec;
        let link = || Ok(proc.readlink(&format!("fd/{fd}"))?.into_vec());
        let next = FileId::new(self.last + 1);
        let known = self.identities.file(slot, &info, link, next)?;
        let id = match known {
            Some(id) => id,
            None => {
                self.last = next.get();
                let Some(copy) = fetch_fd(pidfd, fd)? else {
                    return Ok(None);
                };
                let inode = Inode::from(&fstat(&copy).map_err(Error::kernel("fstat"))?);
                let file = OpenFile {
                    id: next,
                    link: link()?,
                    inode,
                    owner: owner_of(&copy, &info, &*self)?,
                    fd: copy,
                    info: info.clone(),
                    pid: slot.pid,
                    slot: Some(slot),
                };
                self.inodes.entry(inode.ino).or_default().push((next, slot));
                self.describe(file)?;
                next
            }
        };
        if !info.locks.is_empty() {
            self.locks.take(&self.options, slot, id.get(), &info, proc)?;
        }
        if let Some(table) = self.tables.get_mut(&table) {
            table.files.insert(fd, id);
        }
        Ok(Some(pb::FdinfoEntry {
            id: id.get(),
            flags: u32::from(closes),
            r#type: self.types.get(&id).copied().unwrap_or(0),
            fd: fd.cast_unsigned(),
            xattr_security_selinux: None,
        }))
    }

    /// Lets exactly one kind claim the file, and describe it.
    fn describe(&mut self, file: OpenFile) -> Result<()> {
        let mut claims = self.kinds.iter().copied().filter(|kind| kind.claims(&file));
        let kind = match (claims.next(), claims.next()) {
            (Some(kind), None) => kind,
            (None, _) => return Err(unknown(&file)),
            (Some(one), Some(other)) => {
                let fact = format!("both {} and {} take it for theirs", one.name(), other.name());
                return Err(Error::unsupported(fact, "this is a mistake in criu-rs; please report it"));
            }
        };
        let _span = tracing::debug_span!("file", id = file.number(), kind = kind.name()).entered();
        let entry = kind.dump(self, &file)?;
        self.types.insert(file.id, entry.r#type);
        if kind.relates() {
            self.related.push((file, kind, self.entries.len()));
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Takes in a file that is open, but not as a descriptor: `link` is what `/proc` calls it.
    fn single(&mut self, pid: Pid, fd: OwnedFd, link: Vec<u8>, flags: u32) -> Result<FileId> {
        let inode = Inode::from(&fstat(&fd).map_err(Error::kernel("fstat"))?);
        let key = (inode.dev, inode.ino, link, flags);
        if let Some(id) = self.singles.get(&key) {
            return Ok(*id);
        }
        let me = ProcDir::open(Pid::this())?;
        let mut info = me.fdinfo(fd.as_raw_fd())?;
        info.flags = flags;
        self.last += 1;
        let id = FileId::new(self.last);
        let file = OpenFile {
            id,
            fd,
            link: key.2.clone(),
            inode,
            info,
            owner: pb::FownEntry::default(),
            pid,
            slot: None,
        };
        let entry = self.path(&file, id)?;
        self.add(criu_kind::FileEntry::into_file(entry));
        self.singles.insert(key, id);
        Ok(id)
    }

    fn add(&mut self, entry: pb::FileEntry) {
        self.types.insert(FileId::new(entry.id), entry.r#type);
        self.entries.push(entry);
    }

    /// The working directory, the root and the umask of a process.
    pub fn fs(&mut self, pid: Pid, proc: &ProcDir) -> Result<pb::FsEntry> {
        for tid in proc.threads()? {
            if tid != pid && !identity::share_fs(pid, tid)? {
                let remedy = "let the thread end before the dump";
                let error = Error::unsupported("the thread has a working directory of its own", remedy);
                return Err(error).within(|| Subject::Thread(tid.as_raw()));
            }
        }
        let umask = proc.status()?.umask;
        let cwd_id = self.magic_link(pid, proc, "cwd")?.get();
        let root_id = self.magic_link(pid, proc, "root")?.get();
        Ok(pb::FsEntry { cwd_id, root_id, umask })
    }

    fn magic_link(&mut self, pid: Pid, proc: &ProcDir, name: &'static str) -> Result<FileId> {
        let link = proc.readlink(name)?.into_vec();
        let text = String::from_utf8_lossy(&link).into_owned();
        let fd = proc.open_file(name, nix::fcntl::OFlag::O_PATH)?;
        self.single(pid, fd, link, 0).within(|| Subject::Object(format!("{name} ({text})")))
    }

    /// Resolves what refers from file to file, writes all that is left, and closes the images.
    /// `keep_names`: the tasks end here, so names given to files stay for the restore.
    pub fn finish(mut self, keep_names: bool) -> Result<()> {
        let mut refused = Vec::new();
        for (file, kind, index) in std::mem::take(&mut self.related) {
            let mut entry = self.entries[index].clone();
            let slot = file.slot;
            match kind.relations(&mut self, &file, &mut entry) {
                Ok(()) => self.entries[index] = entry,
                Err(error) => {
                    let subject = Subject::Fd { fd: slot.map_or(-1, |slot| slot.fd), link: file.link_text() };
                    refused.push(Error::Within { subject, source: Box::new(error) });
                }
            }
        }
        Error::all(refused)?;
        let mut image = self.store.writer(desc::FILES, ())?;
        for entry in &self.entries {
            image.write(entry)?;
        }
        image.finish()?;
        let locks = std::mem::take(&mut self.locks).into_entries();
        if !locks.is_empty() {
            let mut image = self.store.writer(desc::FILE_LOCKS, ())?;
            for lock in &locks {
                image.write(lock)?;
            }
            image.finish()?;
        }
        for (_, image) in std::mem::take(&mut self.images) {
            image.finish()?;
        }
        if keep_names {
            self.links.keep();
        }
        Ok(())
    }
}

/// What to say of a file that no kind knows.
fn unknown(file: &OpenFile) -> Error {
    let link = file.link_text();
    let format = file.inode.format();
    let number = criu_proc::Dev::from_st_dev(file.inode.rdev);
    let (what, remedy) = if link.starts_with("socket:") {
        ("a socket of a family that cannot be kept yet".to_owned(), "close the connection before the dump")
    } else if format == libc::S_IFCHR && matches!(number.major, 4 | 5 | 136..=143) {
        ("a terminal".to_owned(), "redirect the task's input and output, as in `setsid … < /dev/null > log 2>&1`")
    } else if format == libc::S_IFCHR {
        let (major, minor) = (number.major, number.minor);
        (format!("character device {major}:{minor}"), "let the task close the device before the dump")
    } else if format == libc::S_IFBLK {
        ("a block device".to_owned(), "let the task close the device before the dump")
    } else {
        ("a kind of file that cannot be kept yet".to_owned(), "let the task close it before the dump")
    };
    Error::unsupported(what, remedy)
}

fn owner_of(fd: &OwnedFd, info: &Fdinfo, cx: &dyn DumpCx) -> Result<pb::FownEntry> {
    if info.flags & libc::O_PATH.cast_unsigned() != 0 {
        return Ok(pb::FownEntry::default());
    }
    owner::read(fd.as_raw_fd(), |pid| cx.vpid(pid))
}

impl DumpCx for Collector<'_> {
    fn with_image(
        &mut self,
        desc: &'static Desc,
        id: ImageId,
        write: &mut dyn FnMut(&mut ImageWriter) -> criu_image::Result<()>,
    ) -> Result<()> {
        use std::collections::btree_map::Entry;
        let image = match self.images.entry(desc.file_name(id.clone())) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(self.store.writer(desc, id)?),
        };
        Ok(write(image)?)
    }

    fn first(&mut self, kind: &'static str, key: u64) -> bool {
        self.seen.insert((kind, key))
    }

    fn path(&mut self, file: &OpenFile, id: FileId) -> Result<pb::RegFileEntry> {
        let mount = file.info.mount.map_or(-1, |mount| mount.0);
        if self.options.external.contains(&(mount, file.inode.ino)) {
            let mut entry = entry_of(file, id, format!("file[{mount:x}:{:x}]", file.inode.ino));
            entry.ext = Some(true);
            return Ok(entry);
        }
        let named = path::name(file)?;
        let mut entry = entry_of(file, id, named.path.clone());
        match named.found {
            path::Found::Here => entry.build_id = crate::build_id::of(file, self.options.validation)?,
            path::Found::Unlinked => {
                entry.size = None;
                let ghost = ghost::keep(self, file)?;
                self.remap(id, ghost, pb::RemapType::Ghost)?;
            }
            path::Found::OtherNames => {
                let linked = link::give_name(self, file, &named)?;
                self.remap(id, linked, pb::RemapType::Linked)?;
            }
            path::Found::DeadProcess(pid) => self.remap(id, pid, pb::RemapType::Procfs)?,
        }
        Ok(entry)
    }

    fn part(
        &mut self,
        make: &mut dyn FnMut(&mut dyn DumpCx, FileId) -> Result<pb::FileEntry>,
    ) -> Result<FileId> {
        self.last += 1;
        let id = FileId::new(self.last);
        let entry = make(self, id)?;
        self.add(entry);
        Ok(id)
    }

    fn find(
        &mut self,
        near: Pid,
        fd: i32,
        ino: Option<u64>,
        fits: &mut dyn FnMut(Slot) -> Result<bool>,
    ) -> Result<Option<(FileId, Slot)>> {
        let numbered = |table: &Table| table.files.get(&fd).map(|id| (*id, Slot { pid: table.pid, fd }));
        let own = self.tables.values().filter(|table| table.pid == near);
        let others = self.tables.values().filter(|table| table.pid != near);
        let alike = ino.and_then(|ino| self.inodes.get(&ino)).into_iter().flatten().copied();
        for (id, slot) in own.chain(others).filter_map(numbered).chain(alike) {
            if fits(slot)? {
                return Ok(Some((id, slot)));
            }
        }
        Ok(None)
    }

    fn vpid(&self, pid: Pid) -> Pid {
        let inner = ProcDir::open(pid).and_then(|proc| proc.status()).ok();
        inner.and_then(|status| status.ns_pid?.last().copied()).unwrap_or(pid)
    }
}

impl Collector<'_> {
    fn remap(&mut self, file: FileId, to: u32, kind: pb::RemapType) -> Result<()> {
        let remap = pb::RemapFilePathEntry {
            orig_id: file.get(),
            remap_id: to,
            remap_type: Some(kind.into()),
        };
        let cx: &mut dyn DumpCx = self;
        cx.append(desc::REMAP_FPATH, (), &remap, &[])
    }

    /// A new file id for an entry that is not an open file.
    pub(crate) fn link_entry(&mut self, path: String, mount: Option<i32>) -> u32 {
        self.last += 1;
        let entry = pb::RegFileEntry {
            id: self.last,
            name: path.into(),
            mnt_id: mount,
            ..pb::RegFileEntry::default()
        };
        self.add(criu_kind::FileEntry::into_file(entry));
        self.last
    }
}

/// The entry of a path, without what depends on where the path leads.
fn entry_of(file: &OpenFile, id: FileId, name: String) -> pb::RegFileEntry {
    let flags = file.flags();
    let only_appends = flags & libc::O_APPEND.cast_unsigned() != 0
        && flags & libc::O_ACCMODE.cast_unsigned() == libc::O_WRONLY.cast_unsigned();
    let has_size = file.inode.format() == libc::S_IFREG && !only_appends;
    pb::RegFileEntry {
        id: id.get(),
        flags,
        pos: file.info.pos.cast_unsigned(),
        fown: file.owner,
        name: name.into(),
        mnt_id: Some(file.info.mount.map_or(-1, |mount| mount.0)),
        // A file that is only appended to may have grown: a log.
        size: has_size.then_some(file.inode.size),
        mode: Some(file.inode.mode),
        ..pb::RegFileEntry::default()
    }
}

impl criu_kind::MappedFiles for Collector<'_> {
    fn mapped(&mut self, pid: Pid, range: std::ops::Range<u64>, writable: bool) -> Result<FileId> {
        let proc = ProcDir::open(pid)?;
        let name = format!("map_files/{:x}-{:x}", range.start, range.end);
        let link = proc.readlink(&name)?.into_vec();
        let fd = proc.open_file(&name, nix::fcntl::OFlag::O_PATH)?;
        let flags = if writable { libc::O_RDWR } else { libc::O_RDONLY };
        self.single(pid, fd, link, flags.cast_unsigned())
    }

    fn exe(&mut self, pid: Pid) -> Result<FileId> {
        let proc = ProcDir::open(pid)?;
        self.magic_link(pid, &proc, "exe")
    }
}

/// A second opening of a file through its copy, for what the copy itself cannot do.
pub(crate) fn reopen(fd: impl AsFd, flags: nix::fcntl::OFlag) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    nix::fcntl::open(path.as_str(), flags | nix::fcntl::OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
}
