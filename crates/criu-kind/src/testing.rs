//! Kinds on paper: for their tests, on any machine, without privilege.

use std::fs::File;
use std::os::fd::OwnedFd;

use criu_image::id::{FileId, ShmId, VPid};
use criu_image::{Desc, ImageId, ImageWriter, Memory, Store, StoreExt, pb};
use criu_proc::Fdinfo;
use criu_tracee::{Dry, Name, Names, Program, Site};
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::file::{Cache, DumpCx, FileKind, OpenFile, Opened, RestoreCx, Shift, Slot};
use crate::inode::Inode;

/// An open file that is nothing but this link, this mode and this fdinfo.
///
/// # Panics
///
/// If the fdinfo is not well formed: it is part of a test.
pub fn open_file(link: &str, mode: u32, fdinfo: &str) -> OpenFile {
    let info = Fdinfo::parse(fdinfo.as_bytes()).expect("the fdinfo of a test is well formed");
    let fd = File::open("/dev/null").expect("every machine has /dev/null");
    let pid = Pid::from_raw(42);
    OpenFile {
        id: FileId::new(1),
        fd: fd.into(),
        link: link.into(),
        family: None,
        inode: Inode {
            ino: info.inode.unwrap_or(0),
            mode,
            links: 1,
            ..Inode::default()
        },
        info,
        owner: pb::FownEntry::default(),
        pid,
        slot: Some(Slot { pid, fd: 3 }),
    }
}

/// What a kind writes of a file, which it must claim.
///
/// # Panics
///
/// If the kind does not claim the file.
pub fn dumped<K: FileKind>(kind: &K, file: &OpenFile) -> Result<K::Entry> {
    assert!(
        kind.claims(file),
        "{} does not claim {}",
        K::NAME,
        file.link_text()
    );
    dumped_on(kind, file, &mut Paper::default())
}

/// The same, with what it writes.
pub fn dumped_on<K: FileKind>(kind: &K, file: &OpenFile, paper: &mut Paper) -> Result<K::Entry> {
    let mut entry = kind.dump(paper, file)?;
    if K::RELATES {
        kind.relations(paper, file, &mut entry)?;
    }
    Ok(entry)
}

/// The calls that make an entry's file again, tie it to others, and start it, as its task has it at 3.
/// The kernel answers descriptors from 100 on.
pub fn restored<K: FileKind>(kind: &K, entry: &K::Entry) -> Result<String> {
    restored_with(kind, &[entry], Paper::default())
}

/// The same for twins, with images.
pub fn restored_with<K: FileKind>(
    kind: &K,
    entries: &[&K::Entry],
    mut paper: Paper,
) -> Result<String> {
    paper.here = Dry::returning(100..200);
    let opened = kind.open_twins(&mut paper, entries)?;
    let mut listing = paper.here.listing().to_owned();
    for (entry, opened) in entries.iter().zip(opened) {
        match opened {
            Opened::Here(fd) | Opened::Given(fd) => listing += &format!("is {fd}\n"),
            Opened::There => {
                let mut program = Program::new();
                let fd = kind.open_there(entry, &mut program)?;
                listing += &format!("there:\n{program}is {fd:?}\n");
            }
        }
        let mut program = Program::new();
        kind.relate(&mut paper, entry, &mut program)?;
        kind.arm(&mut paper, entry, 3, &mut program)?;
        if !program.is_empty() {
            listing += &format!("later:\n{program}");
        }
        let before = paper.here.listing().len();
        let last = kind.last(&mut paper, entry, 3)?;
        let prepared = &paper.here.listing()[before..];
        if !last.is_empty() {
            listing += &format!("last:\n{prepared}{last}");
        }
    }
    Ok(listing)
}

/// A walker on paper: knows no other files, opens every path as the next descriptor, and holds images.
#[derive(Debug)]
pub struct Paper {
    here: Dry,
    /// Images to restore from.
    pub images: Memory,
    /// Images written.
    pub written: Memory,
    /// Memory whose pages are to be written: id and size.
    pub memory: Vec<(ShmId, u64)>,
    /// What the user leaves outside.
    pub external: Vec<String>,
    /// How far the clocks of the tree are ahead.
    pub shift: Shift,
    last: u32,
    names: Names,
    cache: Cache,
}

impl Paper {
    /// The calls that were made here.
    pub fn listing(&self) -> &str {
        self.here.listing()
    }
}

impl Default for Paper {
    fn default() -> Self {
        Self {
            here: Dry::new(),
            images: Memory::new(),
            written: Memory::new(),
            memory: Vec::new(),
            external: Vec::new(),
            shift: Shift::default(),
            last: 1,
            names: Names::default(),
            cache: Cache::new(),
        }
    }
}

impl DumpCx for Paper {
    fn with_image(
        &mut self,
        desc: &'static Desc,
        id: ImageId,
        write: &mut dyn FnMut(&mut ImageWriter) -> criu_image::Result<()>,
    ) -> Result<()> {
        let mut image = self.written.writer(desc, id)?;
        write(&mut image)?;
        image.finish()?;
        Ok(())
    }

    fn put_image(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        Ok(self.written.put(name, bytes)?)
    }

    fn first(&mut self, _: &'static str, _: u64) -> bool {
        true
    }

    fn path(&mut self, file: &OpenFile, id: FileId) -> Result<pb::RegFileEntry> {
        Ok(pb::RegFileEntry {
            id: id.get(),
            flags: file.flags(),
            name: file.link.clone(),
            ..pb::RegFileEntry::default()
        })
    }

    fn in_flight(&mut self, _: OwnedFd) -> Result<FileId> {
        self.last += 1;
        Ok(FileId::new(self.last))
    }

    fn part(
        &mut self,
        make: &mut dyn FnMut(&mut dyn DumpCx, FileId) -> Result<pb::FileEntry>,
    ) -> Result<FileId> {
        self.last += 1;
        let id = FileId::new(self.last);
        make(self, id)?;
        Ok(id)
    }

    fn find(
        &mut self,
        near: Pid,
        fd: i32,
        _: Option<u64>,
        _: &mut dyn FnMut(Slot) -> Result<bool>,
    ) -> Result<Option<(FileId, Slot)>> {
        Ok(Some((
            FileId::new(fd.cast_unsigned()),
            Slot { pid: near, fd },
        )))
    }

    fn vpid(&self, pid: Pid) -> Pid {
        pid
    }

    fn tree(&self) -> &[Pid] {
        &[]
    }

    fn in_tree(&self, pid: Pid) -> bool {
        pid.as_raw() < 100
    }

    fn namespace(&self, _: &str, inode: u64) -> Option<u32> {
        u32::try_from(inode).ok().filter(|inode| *inode < 100)
    }

    fn memory(&mut self, id: ShmId, _: OwnedFd, size: u64) {
        self.memory.push((id, size));
    }

    fn is_external(&self, key: &str) -> bool {
        self.external.iter().any(|known| known == key)
    }

    fn cache(&mut self) -> &mut Cache {
        &mut self.cache
    }
}

impl RestoreCx for Paper {
    fn here(&mut self) -> &mut dyn Site {
        &mut self.here
    }

    fn open_path(&mut self, id: FileId, flags: Option<u32>) -> Result<i32> {
        let mut program = Program::new();
        let path = program.cstr(format!("path of {id}"));
        let fd = program.openat(-100, path, flags.unwrap_or(0), 0);
        Ok(self.here.run(&program)?.fd(fd))
    }

    fn file(&self, id: FileId) -> Result<Option<i32>> {
        i32::try_from(id.get())
            .map(|id| Some(1000 + id))
            .map_err(|_| Error::corrupt("files.img", "no such file"))
    }

    fn beside(&self, _: FileId, fd: i32) -> Option<FileId> {
        u32::try_from(fd).ok().map(FileId::new)
    }

    fn inherited(&self, _: &[u8]) -> Option<i32> {
        None
    }

    fn is_of_task(&self, path: &[u8]) -> bool {
        path.starts_with(b"/proc/42/")
    }

    fn memory(&mut self, _: ShmId, _: i32, _: u64) -> Result<()> {
        Ok(())
    }

    fn is_external(&self, key: &str) -> bool {
        self.external.iter().any(|known| known == key)
    }

    fn home(&self, _: FileId) -> Option<VPid> {
        Some(VPid::new(42))
    }

    fn at(&mut self, _: VPid) -> Option<&mut dyn Site> {
        Some(&mut self.here)
    }

    fn fetch(&mut self, _: VPid, fd: i32) -> Result<i32> {
        Ok(fd)
    }

    fn root(&self) -> VPid {
        VPid::new(42)
    }

    fn shift(&self) -> Shift {
        self.shift
    }

    fn make_name(&mut self, _: &Name, program: &Program) -> Result<()> {
        self.here.run(program)?;
        Ok(())
    }

    fn names(&mut self) -> &mut Names {
        &mut self.names
    }

    fn store(&self) -> &dyn Store {
        &self.images
    }

    fn cache(&mut self) -> &mut Cache {
        &mut self.cache
    }
}
