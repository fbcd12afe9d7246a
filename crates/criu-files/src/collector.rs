//! All files of all tasks, at dump.
//!
//! Nothing runs in a task: descriptors come by pidfd_getfd(2). Each struct file gets one id however
//! many descriptors, processes and mappings show it, and one kind describes it. What cannot be kept
//! is refused all at once, each with its descriptor.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use criu_image::id::{FdTableId, FileId, ShmId};
use criu_image::{ImageWriter, Store, StoreExt, desc, pb};
use criu_kind::{
    AnyFileKind, Cache, DumpCx, Error, FileEntry, FileKind, Inode, OpenFile, Result, Slot, Subject,
    Within,
};
use criu_proc::{Fdinfo, ProcDir};
use criu_tracee::stat::fstat;
use criu_tracee::{fetch_fd, pidfd_open, socket_option};
use nix::unistd::Pid;

use crate::identity::{self, Identities};
use crate::kinds::{Memfd, Regular, io_uring, memfd};
use crate::link::Names;
use crate::locks::Locks;
use crate::look::{self, Copied, Descriptor, Looked, look};
use crate::options::DumpOptions;
use crate::{link, map_files, owner};

/// A file that has more to say when all are known, its kind, and its place among the entries.
type Related = (OpenFile, &'static dyn AnyFileKind, usize);

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
/// Dropping it removes the names it gave to files ([`DumpOptions::link_remap`]).
pub struct Collector<'s> {
    pub(crate) options: DumpOptions,
    pub(crate) store: &'s dyn Store,
    pub(crate) kinds: Vec<&'static dyn AnyFileKind>,
    pub(crate) images: BTreeMap<String, ImageWriter>,
    identities: Identities,
    pub(crate) tables: BTreeMap<FdTableId, Table>,
    /// Descriptors by inode: candidates where a number does not help.
    pub(crate) inodes: HashMap<u64, Vec<(FileId, Slot)>>,
    pub(crate) entries: Vec<pb::FileEntry>,
    types: HashMap<FileId, i32>,
    /// Files that have more to say when all are known, with their kind and their place in `entries`.
    related: Vec<Related>,
    /// Mappings, executables and directories, by what tells them apart.
    singles: HashMap<(u64, u64, Vec<u8>, u32), FileId>,
    pub(crate) seen: HashSet<(&'static str, u64)>,
    pub(crate) ghosts: HashMap<(u64, u64), u32>,
    pub(crate) links: link::Links,
    locks: Locks,
    pub(crate) last: u32,
    /// Descriptors that were in flight: they keep their numbers.
    pub(crate) kept: Vec<OwnedFd>,
    pub(crate) memory: Vec<Memory>,
    pub(crate) cache: Cache,
    /// What processes are to themselves: the makers of many sockets are few.
    pub(crate) vpids: RefCell<HashMap<Pid, Pid>>,
    /// The directory of this process.
    own: OnceCell<ProcDir>,
}

/// Memory that files hold: whoever writes pages writes its pages too.
#[derive(Debug)]
pub struct Memory {
    /// Its id.
    pub id: ShmId,
    /// The object, open for reading.
    pub object: std::fs::File,
    /// Its size in bytes.
    pub size: u64,
}

#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) pid: Pid,
    pub(crate) files: BTreeMap<i32, FileId>,
}

/// The flag that fdinfo has among those of the file, though it is the descriptor's.
pub(crate) const O_CLOEXEC: u32 = libc::O_CLOEXEC.cast_unsigned();

impl std::fmt::Debug for Collector<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector")
            .field("tables", &self.tables)
            .finish_non_exhaustive()
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
            kept: Vec::new(),
            memory: Vec::new(),
            cache: Cache::new(),
            vpids: RefCell::default(),
            own: OnceCell::new(),
        }
    }

    /// Gives kinds what their crate shares with the driver: they find it by [`DumpCx::cache`].
    pub fn lend<T: 'static>(&mut self, value: std::rc::Rc<T>) {
        self.cache.insert(std::any::TypeId::of::<T>(), value);
    }

    /// The memory that files hold, all of it when all tables and address spaces are taken in.
    pub fn memory(&self) -> &[Memory] {
        &self.memory
    }

    /// Takes in all descriptors of a stopped process with these threads and writes `fdinfo-ID.img`. All
    /// refusals are in one error.
    pub fn table(&mut self, pid: Pid, proc: &ProcDir, threads: &[Pid]) -> Result<FdTable> {
        self.table_of(pid, proc, threads, || look(proc))
    }

    /// The same, with what [`look`] said of the process: that may have been done beside other work.
    pub fn table_of(
        &mut self,
        pid: Pid,
        proc: &ProcDir,
        threads: &[Pid],
        looked: impl FnOnce() -> Result<Looked>,
    ) -> Result<FdTable> {
        let id = FdTableId::new(u32::try_from(self.tables.len()).unwrap_or(u32::MAX) + 1);
        if let Some(id) = self.identities.table(pid, id)? {
            return Ok(FdTable { id, shared: true });
        }
        self.tables.insert(
            id,
            Table {
                pid,
                files: BTreeMap::new(),
            },
        );
        for &tid in threads {
            if tid != pid && !identity::share_descriptors(pid, tid)? {
                let remedy = "let the thread end before the dump";
                let error =
                    Error::unsupported("the thread has a descriptor table of its own", remedy);
                return Err(error).within(|| Subject::Thread(tid.as_raw()));
            }
        }
        let pidfd = pidfd_open(pid)?;
        let mut slots = Vec::new();
        let mut refused = Vec::new();
        for Descriptor { fd, told, copy } in looked()?.0 {
            let slot = Slot { pid, fd };
            let entry = told.map_err(Error::from);
            match entry.and_then(|info| self.slot(proc, &pidfd, slot, (info, copy), id)) {
                Ok(Some(entry)) => slots.push(entry),
                Ok(None) => {}
                Err(error) => {
                    let link = proc.readlink(&format!("fd/{fd}")).unwrap_or_default();
                    let subject = Subject::Fd {
                        fd,
                        link: link.to_string_lossy().into_owned(),
                    };
                    refused.push(Error::Within {
                        subject,
                        source: Box::new(error),
                    });
                }
            }
        }
        Error::all(refused)?;
        self.store.write_entries(desc::FDINFO, id, &slots)?;
        Ok(FdTable { id, shared: false })
    }

    fn slot(
        &mut self,
        proc: &ProcDir,
        pidfd: &OwnedFd,
        slot: Slot,
        (mut info, copy): (Fdinfo, Option<Copied>),
        table: FdTableId,
    ) -> Result<Option<pb::FdinfoEntry>> {
        let closes = info.flags & O_CLOEXEC != 0;
        info.flags &= !O_CLOEXEC;
        let fetch = || match copy {
            Some(copy) => Ok(Some(copy)),
            None => Ok(fetch_fd(pidfd, slot.fd)?.map(Copied::from)),
        };
        let Some((id, _)) = self.identify(proc, slot, &info, fetch)? else {
            return Ok(None);
        };
        if !info.locks.is_empty() {
            self.locks
                .take(&self.options, slot, id.get(), &info, proc)?;
        }
        if let Some(table) = self.tables.get_mut(&table) {
            table.files.insert(slot.fd, id);
        }
        Ok(Some(pb::FdinfoEntry {
            id: id.get(),
            flags: u32::from(closes),
            r#type: self.types.get(&id).copied().unwrap_or(0),
            fd: slot.fd.cast_unsigned(),
            xattr_security_selinux: None,
        }))
    }

    /// The file of a descriptor, and whether it is new; then it is described. `None`: it was closed.
    pub(crate) fn identify(
        &mut self,
        proc: &ProcDir,
        slot: Slot,
        info: &Fdinfo,
        fetch: impl FnOnce() -> Result<Option<Copied>>,
    ) -> Result<Option<(FileId, bool)>> {
        let link = || Ok(proc.readlink(&format!("fd/{}", slot.fd))?.into_vec());
        let id = FileId::new(self.last + 1);
        if let Some(known) = self.identities.file(slot, info, link, id)? {
            return Ok(Some((known, false)));
        }
        self.last = id.get();
        let Some(Copied { fd, seen }) = fetch()? else {
            return Ok(None);
        };
        let (inode, link) = match seen {
            Some(seen) => seen,
            None => look::see(self.own()?, &fd, info)?,
        };
        let (mut owner, mut family) = (pb::FownEntry::default(), None);
        if info.flags & libc::O_PATH.cast_unsigned() == 0 {
            owner = owner::read(&fd, |pid| self.vpid(pid))?;
            family = address_family(&fd, &link)?;
        }
        self.inodes.entry(inode.ino).or_default().push((id, slot));
        self.describe(OpenFile {
            id,
            link,
            family,
            inode,
            owner,
            fd,
            info: info.clone(),
            pid: slot.pid,
            slot: Some(slot),
        })?;
        Ok(Some((id, true)))
    }

    fn own(&self) -> Result<&ProcDir> {
        if self.own.get().is_none() {
            // Nobody else sets it.
            let _ = self.own.set(ProcDir::open(Pid::this())?);
        }
        let own = self.own.get();
        own.ok_or_else(|| Error::Gone(Pid::this()))
    }

    /// Lets exactly one kind claim the file, and describe it.
    fn describe(&mut self, file: OpenFile) -> Result<()> {
        let mut claims = self.kinds.iter().copied().filter(|kind| kind.claims(&file));
        let given = self.device(&file).is_some();
        let kind = match (claims.next(), claims.next()) {
            _ if given => &Regular,
            (Some(kind), None) => kind,
            (None, _) => return Err(unknown(&file)),
            (Some(one), Some(other)) => {
                let fact = format!(
                    "both {} and {} take it for theirs",
                    one.name(),
                    other.name()
                );
                return Err(Error::unsupported(
                    fact,
                    "this is a mistake in criu-rs; please report it",
                ));
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
            family: None,
            inode,
            info,
            owner: pb::FownEntry::default(),
            pid,
            slot: None,
        };
        let entry = if memfd::is_memfd(&file) {
            FileKind::dump(&Memfd, self, &file)?.into_file()
        } else if memfd::is_segment(&file) {
            return Err(Error::unsupported(
                "System V shared memory mapped privately, as a file",
                "unmap it before the dump",
            ));
        } else {
            self.path(&file, id)?.into_file()
        };
        self.add(entry);
        self.singles.insert(key, id);
        Ok(id)
    }

    pub(crate) fn add(&mut self, entry: pb::FileEntry) {
        self.types.insert(FileId::new(entry.id), entry.r#type);
        self.entries.push(entry);
    }

    /// The working directory, the root and the umask of a process.
    pub fn fs(&mut self, pid: Pid, proc: &ProcDir, threads: &[Pid]) -> Result<pb::FsEntry> {
        for &tid in threads {
            if tid != pid && !identity::share_fs(pid, tid)? {
                let remedy = "let the thread end before the dump";
                let error =
                    Error::unsupported("the thread has a working directory of its own", remedy);
                return Err(error).within(|| Subject::Thread(tid.as_raw()));
            }
        }
        let umask = proc.status()?.umask;
        let cwd_id = self.magic_link(pid, proc, "cwd")?.get();
        let root_id = self.magic_link(pid, proc, "root")?.get();
        Ok(pb::FsEntry {
            cwd_id,
            root_id,
            umask,
        })
    }

    fn magic_link(&mut self, pid: Pid, proc: &ProcDir, name: &'static str) -> Result<FileId> {
        let link = proc.readlink(name)?.into_vec();
        let text = String::from_utf8_lossy(&link).into_owned();
        let fd = proc.open_file(name, nix::fcntl::OFlag::O_PATH)?;
        self.single(pid, fd, link, 0)
            .within(|| Subject::Object(format!("{name} ({text})")))
    }

    /// Resolves what one file says of others, if it can be kept.
    fn relate(&mut self, (file, kind, index): Related) -> Option<Error> {
        let mut entry = self.entries[index].clone();
        match kind.relations(self, &file, &mut entry) {
            Ok(()) => self.entries[index] = entry,
            Err(error) => {
                let subject = Subject::Fd {
                    fd: file.slot.map_or(-1, |slot| slot.fd),
                    link: file.link_text(),
                };
                return Some(Error::Within {
                    subject,
                    source: Box::new(error),
                });
            }
        }
        None
    }

    /// Resolves what refers from file to file, writes all that is left, and closes the images. Names given to
    /// files go again with what is returned, unless [`Names::keep`] is called.
    pub fn finish(mut self) -> Result<Names> {
        let mut refused = Vec::new();
        // Relations may bring in files that were on their way.
        while !self.related.is_empty() {
            let related = std::mem::take(&mut self.related);
            refused.extend(related.into_iter().filter_map(|one| self.relate(one)));
        }
        Error::all(refused)?;
        self.store
            .write_entries(desc::FILES, (), peers_first(&self.entries))?;
        let locks = std::mem::take(&mut self.locks).into_entries();
        if !locks.is_empty() {
            self.store.write_entries(desc::FILE_LOCKS, (), &locks)?;
        }
        for (_, image) in std::mem::take(&mut self.images) {
            image.finish()?;
        }
        Ok(std::mem::take(&mut self.links).into_names())
    }
}

impl criu_kind::MappedFiles for Collector<'_> {
    fn mapped(&mut self, pid: Pid, range: std::ops::Range<u64>, writable: bool) -> Result<FileId> {
        let proc = ProcDir::open(pid)?;
        let name = format!("map_files/{:x}-{:x}", range.start, range.end);
        let link = proc.readlink(&name)?.into_vec();
        if io_uring::is_ring(&link) {
            return self.ring(pid, &proc, &name);
        }
        if link.starts_with(b"socket:[") {
            return self.socket_memory(pid, &range, &link);
        }
        let fd = map_files::open_path(&proc, &range, &link)?;
        let flags = if writable {
            libc::O_RDWR
        } else {
            libc::O_RDONLY
        };
        self.single(pid, fd, link, flags.cast_unsigned())
    }

    fn keeps_as_file(&self, ino: u64) -> bool {
        self.seen.contains(&(Memfd::NAME, ino))
    }

    fn exe(&mut self, pid: Pid) -> Result<FileId> {
        let proc = ProcDir::open(pid)?;
        self.magic_link(pid, &proc, "exe")
    }
}

/// `AF_UNIX`, `AF_INET` …, of a socket.
fn address_family(fd: &OwnedFd, link: &[u8]) -> Result<Option<i32>> {
    if !link.starts_with(b"socket:[") {
        return Ok(None);
    }
    let mut family = [0; 4];
    socket_option(fd, (libc::SOL_SOCKET, libc::SO_DOMAIN), &mut family, 4)
        .map_err(Error::kernel("getsockopt(SO_DOMAIN)"))?;
    Ok(Some(i32::from_ne_bytes(family)))
}

/// The entries, each socket behind the one it is connected to: CRIU looks for that when it reads the socket.
fn peers_first(entries: &[pb::FileEntry]) -> Vec<&pb::FileEntry> {
    let places = entries.iter().enumerate();
    let places: HashMap<u32, usize> = places
        .filter_map(|(place, entry)| Some((entry.usk.as_ref()?.ino, place)))
        .collect();
    let mut written = vec![false; entries.len()];
    let mut order = Vec::with_capacity(entries.len());
    for first in 0..entries.len() {
        let mut chain = Vec::new();
        let mut next = Some(first);
        while let Some(place) = next.filter(|place| !written[*place]) {
            written[place] = true;
            chain.push(&entries[place]);
            let peer = entries[place].usk.as_ref().map(|socket| socket.peer);
            next = peer.and_then(|peer| places.get(&peer).copied());
        }
        order.extend(chain.into_iter().rev());
    }
    order
}

/// What to say of a file that no kind knows.
fn unknown(file: &OpenFile) -> Error {
    const CLOSE: &str = "let the task close it before the dump";
    let link = file.link_text();
    let format = file.inode.format();
    let number = criu_proc::Dev::from_st_dev(file.inode.rdev);
    let (major, minor) = (number.major, number.minor);
    if link.starts_with("socket:") {
        return Error::unsupported(
            "a socket of a family that cannot be kept yet",
            "close the connection before the dump",
        );
    }
    if memfd::is_secret(file) {
        return Error::unsupported(
            "memory of memfd_secret(2), which nobody but the process may read",
            CLOSE,
        );
    }
    if let Some(name) = link.strip_prefix("anon_inode:") {
        return match name.trim_matches(['[', ']']) {
            "userfaultfd" => Error::unsupported(
                "a userfaultfd(2), of which the kernel does not tell what memory it supplies",
                "let the task close it when all its memory is there",
            ),
            name => Error::unsupported(format!("an object of the kernel, {name}"), CLOSE),
        };
    }
    match format {
        libc::S_IFCHR if (major, minor) == TUN => Error::unsupported(
            "a network device of the task's own making, tun or tap",
            "let the task close it before the dump, and make it again",
        ),
        libc::S_IFCHR | libc::S_IFBLK => {
            let what = if format == libc::S_IFCHR {
                "character"
            } else {
                "block"
            };
            Error::unsupported(
                format!("{what} device {major}:{minor}"),
                format!(
                    "let the task close it, or give it one again: dump with --external \
                     dev[{major}/{minor}]:NAME, restore with --external dev[NAME]:PATH"
                ),
            )
        }
        _ => Error::unsupported("a kind of file that cannot be kept yet", CLOSE),
    }
}

/// `/dev/net/tun`: `TUN_MINOR` of `include/uapi/linux/miscdevice.h`.
const TUN: (u32, u32) = (10, 200);
