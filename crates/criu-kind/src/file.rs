//! A kind of open file: eventfd, pipe, regular …
//!
//! One struct file of the kernel is one [`OpenFile`] at dump, one entry in `files.img`, and one
//! [`Opened`] at restore, whatever number of descriptors show it. What is common to all kinds (who has
//! which number, flags, owner, locks) is the walker's; a kind says only what is its own.

use std::any::Any;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use criu_image::id::{FileId, ShmId, VPid};
use criu_image::{Desc, ImageId, ImageWriter, Store, pb};
use criu_proc::Fdinfo;
use criu_tracee::{Name, Names, Program, Ret, Site};
use nix::unistd::Pid;
use prost::Message;

use crate::entry::FileEntry;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::kernel::Kernel;

/// A descriptor of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// The process, as the tracer sees it.
    pub pid: Pid,
    /// The number.
    pub fd: i32,
}

/// An open file as the walker found it.
#[derive(Debug)]
pub struct OpenFile {
    /// Its id in the images.
    pub id: FileId,
    /// A copy of the descriptor: the same struct file, in the tracer.
    pub fd: OwnedFd,
    /// Where its link in `/proc` points.
    pub link: Vec<u8>,
    /// What fstat(2) says.
    pub inode: Inode,
    /// The address family, of a socket.
    pub family: Option<i32>,
    /// What fdinfo says; the flags without `O_CLOEXEC`, which is the descriptor's.
    pub info: Fdinfo,
    /// Who is told when it becomes ready.
    pub owner: pb::FownEntry,
    /// The process in whose view it is read, and its descriptor if it is one.
    pub pid: Pid,
    /// Its first descriptor; `None` for a mapping, an executable, a working directory.
    pub slot: Option<Slot>,
}

impl OpenFile {
    /// Whether it is an anonymous inode of this name: `[eventfd]`.
    pub fn is_anon_inode(&self, name: &str) -> bool {
        self.link.strip_prefix(b"anon_inode:") == Some(name.as_bytes())
    }

    /// The flags of open(2), without `O_CLOEXEC`.
    pub fn flags(&self) -> u32 {
        self.info.flags
    }

    /// Its id as images have it.
    pub fn number(&self) -> u32 {
        self.id.get()
    }

    /// The link as text, for people.
    pub fn link_text(&self) -> String {
        String::from_utf8_lossy(&self.link).into_owned()
    }
}

/// What a kind may ask of the walker at dump.
pub trait DumpCx {
    /// Appends to an image through `write`; images are made when they are first asked for.
    fn with_image(
        &mut self,
        desc: &'static Desc,
        id: ImageId,
        write: &mut dyn FnMut(&mut ImageWriter) -> criu_image::Result<()>,
    ) -> Result<()>;

    /// Makes an image of these bytes, in one go: there may be more of a kind than descriptors.
    fn put_image(&mut self, name: &str, bytes: &[u8]) -> Result<()>;

    /// Whether nobody has asked for this object of this kind before: shared objects are written once.
    fn first(&mut self, kind: &'static str, key: u64) -> bool;

    /// The path of a file as an entry with this id, or the entry's own id: remaps and ghosts are taken care of.
    fn path(&mut self, file: &OpenFile, id: FileId) -> Result<pb::RegFileEntry>;

    /// The file of a descriptor that is on its way through a socket; `fd` is a copy of it.
    fn in_flight(&mut self, fd: OwnedFd) -> Result<FileId>;

    /// Adds an entry that is a part of another file, such as the path of a FIFO. `make` gets its id.
    fn part(
        &mut self,
        make: &mut dyn FnMut(&mut dyn DumpCx, FileId) -> Result<pb::FileEntry>,
    ) -> Result<FileId>;

    /// The file of the first descriptor that fits, likely ones first: those numbered `fd`, then those
    /// of the inode `ino`. Every table is known by then if this is called from [`FileKind::relations`].
    fn find(
        &mut self,
        near: Pid,
        fd: i32,
        ino: Option<u64>,
        fits: &mut dyn FnMut(Slot) -> Result<bool>,
    ) -> Result<Option<(FileId, Slot)>>;

    /// Where a watched file may be searched for that has no path otherwise; `None`: nowhere.
    fn scan_paths(&self) -> Option<Vec<PathBuf>> {
        None
    }

    /// A process or process group as the tree numbers it.
    fn vpid(&self, pid: Pid) -> Pid;

    /// The processes and threads of the tree.
    fn tree(&self) -> &[Pid];

    /// Whether a process or thread is of the tree.
    fn in_tree(&self, pid: Pid) -> bool;

    /// The id of a namespace of the tree: `net` and an inode number.
    fn namespace(&self, kind: &str, inode: u64) -> Option<u32>;

    /// Takes in memory whose pages are written when all others are; `object` has a position of its own.
    fn memory(&mut self, id: ShmId, object: OwnedFd, size: u64);

    /// Whether the user leaves this object outside: `unix[4711]`, in the words of `--external`.
    fn is_external(&self, key: &str) -> bool;

    /// The slot of the cache for values of one type.
    fn cache(&mut self) -> &mut Cache;
}

impl dyn DumpCx + '_ {
    /// Appends an entry to an image.
    pub fn append<M: Message + prost::Name>(
        &mut self,
        desc: &'static Desc,
        id: impl Into<ImageId>,
        entry: &M,
        extra: &[u8],
    ) -> Result<()> {
        self.with_image(desc, id.into(), &mut |image| {
            image.write_with_extra(entry, extra)
        })
    }

    /// Makes an image of one entry.
    pub fn put<M: Message + prost::Name>(
        &mut self,
        desc: &'static Desc,
        id: impl Into<ImageId>,
        entry: &M,
        extra: &[u8],
    ) -> Result<()> {
        let name = desc.file_name(id);
        let mut image = ImageWriter::new(desc, &*name, Vec::new())?;
        image.write_with_extra(entry, extra)?;
        self.put_image(&name, &image.finish()?)
    }

    /// What `make` gives, made on the first call for its type: an answer of the kernel about all sockets, usually.
    pub fn cached<T: 'static>(&mut self, make: impl FnOnce() -> Result<T>) -> Result<Rc<T>> {
        cached(self, |cx| cx.cache(), |_| make())
    }
}

/// The value of type `T` in a cache of `cx`, made on the first call.
fn cached<C: ?Sized, T: 'static>(
    cx: &mut C,
    cache: impl Fn(&mut C) -> &mut Cache,
    make: impl FnOnce(&mut C) -> Result<T>,
) -> Result<Rc<T>> {
    let key = std::any::TypeId::of::<T>();
    if let Some(known) = cache(cx).get(&key).cloned() {
        return Ok(known.downcast().expect("the key is the type"));
    }
    let made = Rc::new(make(cx)?);
    cache(cx).insert(key, made.clone());
    Ok(made)
}

/// What a kind may ask of the walker at restore.
pub trait RestoreCx {
    /// The tracer as a site.
    fn here(&mut self) -> &mut dyn Site;

    /// Opens the path of the regular entry `id` here, with other flags if given. Ghosts are alive.
    fn open_path(&mut self, id: FileId, flags: Option<u32>) -> Result<i32>;

    /// The descriptor of another file: one that [`FileKind::after`] named, or any in later stages.
    /// `None` if it is to be opened in a task.
    fn file(&self, id: FileId) -> Result<Option<i32>>;

    /// The file that a table which has `id` open has as descriptor `fd`.
    fn beside(&self, id: FileId, fd: i32) -> Option<FileId>;

    /// The descriptor that the user gave for an external object: `pipe:[4711]`.
    fn inherited(&self, key: &[u8]) -> Option<i32>;

    /// Whether a path leads into the `/proc` directory of a process that is being restored.
    fn is_of_task(&self, path: &[u8]) -> bool;

    /// Brings in the pages of memory that is open here as `object`, of `size` bytes.
    fn memory(&mut self, id: ShmId, object: i32, size: u64) -> Result<()>;

    /// Whether the user lets this object stay outside: `unix[4711]`, in the words of `--external`.
    fn is_external(&self, key: &str) -> bool;

    /// The process that is the first to have a file, by the pid it has; `None` of one that nobody has as a
    /// descriptor.
    fn home(&self, id: FileId) -> Option<VPid>;

    /// A process of the tree, by the pid it has, or one that is made for the while; `None`: there is none.
    /// For kinds that are [`FileKind::LATE`].
    fn at(&mut self, pid: VPid) -> Option<&mut dyn Site>;

    /// A copy here of descriptor `fd` of the process [`RestoreCx::at`] gave. Those of the process go by
    /// themselves.
    fn fetch(&mut self, pid: VPid, fd: i32) -> Result<i32>;

    /// The root of the tree.
    fn root(&self) -> VPid;

    /// How far the clocks of the tree are ahead of ours.
    fn shift(&self) -> Shift;

    /// Runs calls here of which the last makes something with a name, which goes again if the restore fails, however that ends.
    /// Descriptors that they open do not stay.
    fn make_name(&mut self, name: &Name, program: &Program) -> Result<()>;

    /// What has a name already, or is to have one for the while.
    fn names(&mut self) -> &mut Names;

    /// The images.
    fn store(&self) -> &dyn Store;

    /// The slot of the cache for values of one type.
    fn cache(&mut self) -> &mut Cache;
}

/// Values computed once per restore, by type.
pub type Cache = std::collections::HashMap<std::any::TypeId, Rc<dyn Any>>;

impl dyn RestoreCx + '_ {
    /// What `make` gives, made on the first call for its type: an index of an image, usually.
    pub fn cached<T: 'static>(
        &mut self,
        make: impl FnOnce(&dyn Store) -> Result<T>,
    ) -> Result<Rc<T>> {
        cached(self, |cx| cx.cache(), |cx| make(cx.store()))
    }
}

/// How far clocks are ahead of others, in nanoseconds: those of one time namespace, of those of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shift {
    /// `CLOCK_MONOTONIC` and its like.
    pub monotonic: i64,
    /// `CLOCK_BOOTTIME` and its like.
    pub boottime: i64,
}

/// Where a file was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// In the tracer, under this number.
    Here(i32),
    /// The same, but it was given by the user: its flags and its position are not ours to set.
    Given(i32),
    /// Not yet: [`FileKind::open_there`] does it in a task.
    There,
}

/// A file that another one is tied to, and the number under which it is.
pub type Tie = (FileId, Option<i32>);

/// A kind of open file.
pub trait FileKind: Sync {
    /// Its message.
    type Entry: FileEntry;
    /// Its name in errors, logs and tests.
    const NAME: &'static str;
    /// The first kernel that can do it.
    const SINCE: Kernel;

    /// Whether the file is of this kind, by link, mode and fdinfo.
    fn claims(&self, file: &OpenFile) -> bool;

    /// Describes it.
    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry>;

    /// Whether [`FileKind::relations`] has something to say.
    const RELATES: bool = false;

    /// Whether it is made when all processes are there, as the kernel remembers who made it.
    const LATE: bool = false;
    /// Nobody needs its descriptor here after [`FileKind::last`]: there may be very many.
    const LEAVES: bool = false;

    /// Whether the kernel lets it be sent from process to process, in a message of a unix socket.
    const SENT: bool = true;

    /// Adds what refers to other files, when all files of all tasks are known.
    fn relations(
        &self,
        cx: &mut dyn DumpCx,
        file: &OpenFile,
        entry: &mut Self::Entry,
    ) -> Result<()> {
        let _nothing = (cx, file, entry);
        Ok(())
    }

    /// What its twins have in common: both ends of a pipe are made at once.
    fn twins(&self, entry: &Self::Entry) -> Option<u64> {
        let _nothing = entry;
        None
    }

    /// Entries that are parts of this one and not files of their own.
    fn parts(&self, entry: &Self::Entry) -> Vec<FileId> {
        let _nothing = entry;
        Vec::new()
    }

    /// Files that must be open before this one.
    fn after(&self, entry: &Self::Entry) -> Vec<FileId> {
        let _nothing = entry;
        Vec::new()
    }

    /// Descriptor numbers that [`FileKind::relate`] needs in a task.
    fn numbers(&self, entry: &Self::Entry) -> Vec<i32> {
        let _nothing = entry;
        Vec::new()
    }

    /// Makes it.
    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened>;

    /// Whether something in a file system gets a name when it is made, for good or for the while.
    fn is_named(&self, entry: &Self::Entry) -> bool {
        let _nothing = entry;
        false
    }

    /// How many bytes it has when it is mapped, which can only be done as a whole; `None`: it cannot be mapped, or it
    /// is a file like others. Of sockets.
    fn mapped(&self, entry: &Self::Entry) -> Option<u64> {
        let _nothing = entry;
        None
    }

    /// Makes twins, in the order of the entries.
    fn open_twins(&self, cx: &mut dyn RestoreCx, entries: &[&Self::Entry]) -> Result<Vec<Opened>> {
        entries.iter().map(|entry| self.open(cx, entry)).collect()
    }

    /// Makes in a task what [`FileKind::open`] left.
    fn open_there(&self, entry: &Self::Entry, program: &mut Program) -> Result<Ret> {
        let _nothing = (entry, program);
        Err(Error::corrupt(
            "files.img",
            format!("a file of kind {} cannot be opened in a task", Self::NAME),
        ))
    }

    /// The files that [`FileKind::relate`] needs in a task, itself among them; none if it has nothing to do. Each with
    /// the number that it is to have, if that matters: where it can be, it has that number already.
    fn ties(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Vec<Tie>> {
        let _nothing = (cx, entry);
        Ok(Vec::new())
    }

    /// Ties it to other files. Runs in one task, where those of [`FileKind::ties`] are open under their numbers of
    /// [`RestoreCx::file`] and all other numbers of the task itself are still free for use.
    fn relate(
        &self,
        cx: &mut dyn RestoreCx,
        entry: &Self::Entry,
        program: &mut Program,
    ) -> Result<()> {
        let _nothing = (cx, entry, program);
        Ok(())
    }

    /// The last moment before tasks go on: clocks start. Runs in a task that has it as `fd`.
    fn arm(
        &self,
        cx: &mut dyn RestoreCx,
        entry: &Self::Entry,
        fd: i32,
        program: &mut Program,
    ) -> Result<()> {
        let _nothing = (cx, entry, fd, program);
        Ok(())
    }

    /// The process in which [`FileKind::arm`] is to run, if that may be no other.
    fn armed_by(&self, entry: &Self::Entry) -> Option<VPid> {
        let _nothing = entry;
        None
    }

    /// What is left to do here with the file, open as `fd`, when tasks have all they had and everything else
    /// that was opened here is closed again. The program closes what this opens for it.
    fn last(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry, fd: i32) -> Result<Program> {
        let _nothing = (cx, entry, fd);
        Ok(Program::new())
    }
}

/// A kind without its type, for tables: see [`FileKind`] for the meaning of each.
#[allow(missing_docs, reason = "each is that of FileKind")]
pub trait AnyFileKind: Sync {
    fn name(&self) -> &'static str;
    fn since(&self) -> Kernel;
    fn tag(&self) -> pb::FdTypes;
    fn claims(&self, file: &OpenFile) -> bool;
    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<pb::FileEntry>;
    fn relates(&self) -> bool;
    fn late(&self) -> bool;
    fn sent(&self) -> bool;
    fn leaves(&self) -> bool;
    fn relations(
        &self,
        cx: &mut dyn DumpCx,
        file: &OpenFile,
        entry: &mut pb::FileEntry,
    ) -> Result<()>;
    fn twins(&self, entry: &pb::FileEntry) -> Option<u64>;
    fn parts(&self, entry: &pb::FileEntry) -> Vec<FileId>;
    fn after(&self, entry: &pb::FileEntry) -> Vec<FileId>;
    fn numbers(&self, entry: &pb::FileEntry) -> Vec<i32>;
    fn is_named(&self, entry: &pb::FileEntry) -> bool;
    fn mapped(&self, entry: &pb::FileEntry) -> Option<u64>;
    fn open(&self, cx: &mut dyn RestoreCx, entries: &[&pb::FileEntry]) -> Result<Vec<Opened>>;
    fn open_there(&self, entry: &pb::FileEntry, program: &mut Program) -> Result<Ret>;
    fn ties(&self, cx: &mut dyn RestoreCx, entry: &pb::FileEntry) -> Result<Vec<Tie>>;
    fn relate(
        &self,
        cx: &mut dyn RestoreCx,
        entry: &pb::FileEntry,
        program: &mut Program,
    ) -> Result<()>;
    fn arm(
        &self,
        cx: &mut dyn RestoreCx,
        entry: &pb::FileEntry,
        fd: i32,
        program: &mut Program,
    ) -> Result<()>;
    fn armed_by(&self, entry: &pb::FileEntry) -> Option<VPid>;
    fn last(&self, cx: &mut dyn RestoreCx, entry: &pb::FileEntry, fd: i32) -> Result<Program>;
    fn flags(&self, entry: &pb::FileEntry) -> Option<u32>;
    fn owner(&self, entry: &pb::FileEntry) -> Option<pb::FownEntry>;
}

/// The member that an entry of this type must have.
fn member<E: FileEntry>(file: &pb::FileEntry) -> Result<&E> {
    match E::of(file) {
        Some(entry) if entry.id().get() == file.id => Ok(entry),
        Some(entry) => {
            let why = format!("entry {} holds a {} of id {}", file.id, E::NAME, entry.id());
            Err(Error::corrupt("files.img", why))
        }
        None => Err(Error::corrupt(
            "files.img",
            format!("entry {} has no {}", file.id, E::NAME),
        )),
    }
}

impl<K: FileKind> AnyFileKind for K {
    fn name(&self) -> &'static str {
        K::NAME
    }
    fn since(&self) -> Kernel {
        K::SINCE
    }
    fn tag(&self) -> pb::FdTypes {
        K::Entry::TYPE
    }
    fn claims(&self, file: &OpenFile) -> bool {
        FileKind::claims(self, file)
    }
    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<pb::FileEntry> {
        FileKind::dump(self, cx, file).map(FileEntry::into_file)
    }
    fn relates(&self) -> bool {
        K::RELATES
    }
    fn leaves(&self) -> bool {
        K::LEAVES
    }
    fn late(&self) -> bool {
        K::LATE
    }
    fn sent(&self) -> bool {
        K::SENT
    }
    fn relations(
        &self,
        cx: &mut dyn DumpCx,
        file: &OpenFile,
        entry: &mut pb::FileEntry,
    ) -> Result<()> {
        let mut own: K::Entry = member::<K::Entry>(entry)?.clone();
        FileKind::relations(self, cx, file, &mut own)?;
        *entry = own.into_file();
        Ok(())
    }
    fn twins(&self, entry: &pb::FileEntry) -> Option<u64> {
        K::Entry::of(entry).and_then(|entry| FileKind::twins(self, entry))
    }
    fn parts(&self, entry: &pb::FileEntry) -> Vec<FileId> {
        K::Entry::of(entry)
            .map(|entry| FileKind::parts(self, entry))
            .unwrap_or_default()
    }
    fn after(&self, entry: &pb::FileEntry) -> Vec<FileId> {
        K::Entry::of(entry)
            .map(|entry| FileKind::after(self, entry))
            .unwrap_or_default()
    }
    fn numbers(&self, entry: &pb::FileEntry) -> Vec<i32> {
        K::Entry::of(entry)
            .map(|entry| FileKind::numbers(self, entry))
            .unwrap_or_default()
    }
    fn is_named(&self, entry: &pb::FileEntry) -> bool {
        K::Entry::of(entry).is_some_and(|entry| FileKind::is_named(self, entry))
    }
    fn mapped(&self, entry: &pb::FileEntry) -> Option<u64> {
        K::Entry::of(entry).and_then(|entry| FileKind::mapped(self, entry))
    }
    fn open(&self, cx: &mut dyn RestoreCx, entries: &[&pb::FileEntry]) -> Result<Vec<Opened>> {
        let own = entries
            .iter()
            .map(|entry| member(entry))
            .collect::<Result<Vec<&K::Entry>>>()?;
        self.open_twins(cx, &own)
    }
    fn open_there(&self, entry: &pb::FileEntry, program: &mut Program) -> Result<Ret> {
        FileKind::open_there(self, member(entry)?, program)
    }
    fn ties(&self, cx: &mut dyn RestoreCx, entry: &pb::FileEntry) -> Result<Vec<Tie>> {
        FileKind::ties(self, cx, member(entry)?)
    }
    fn relate(
        &self,
        cx: &mut dyn RestoreCx,
        entry: &pb::FileEntry,
        program: &mut Program,
    ) -> Result<()> {
        FileKind::relate(self, cx, member(entry)?, program)
    }
    fn arm(
        &self,
        cx: &mut dyn RestoreCx,
        entry: &pb::FileEntry,
        fd: i32,
        program: &mut Program,
    ) -> Result<()> {
        FileKind::arm(self, cx, member(entry)?, fd, program)
    }
    fn armed_by(&self, entry: &pb::FileEntry) -> Option<VPid> {
        K::Entry::of(entry).and_then(|entry| FileKind::armed_by(self, entry))
    }
    fn last(&self, cx: &mut dyn RestoreCx, entry: &pb::FileEntry, fd: i32) -> Result<Program> {
        FileKind::last(self, cx, member(entry)?, fd)
    }
    fn flags(&self, entry: &pb::FileEntry) -> Option<u32> {
        K::Entry::of(entry).and_then(FileEntry::flags)
    }
    fn owner(&self, entry: &pb::FileEntry) -> Option<pb::FownEntry> {
        K::Entry::of(entry).and_then(FileEntry::owner).copied()
    }
}
