//! Segments of shared memory: shmget(2).
//!
//! Content is pages, which the driver moves: here a segment is attached for it. One that was removed but still is
//! attached is made without its key, and removed when all have attached it again. Not preserved: the
//! times and pids of the last attachments, which are those of the restore; `SHM_NORESERVE`.

use criu_image::id::ShmId;
use criu_image::{Bytes, pb};
use criu_kind::{Error, Result};
use criu_tracee::{Program, Site};

use crate::perm::{self, Creator, IPC_64, MODE_BITS};
use crate::sysvipc::Shm;

/// It goes with its last user. In images it looks like `IPC_CREAT`, which every segment is made with.
pub(crate) const SHM_DEST: u32 = 0o1000;
const SHM_LOCKED: u32 = 0o2000;
const SHM_LOCK: i32 = 11;
const SHM_HUGETLB: u32 = 0o4000;
const HUGE_SHIFT: u32 = 26;
/// Frees the pages of a range of a shared mapping.
const MADV_REMOVE: i32 = 9;

/// A segment of the images.
#[derive(Clone, Debug)]
pub struct Segment {
    /// CRIU's message.
    pub entry: pb::IpcShmEntry,
    /// The content, where it is not in a pagemap.
    pub raw: Option<Bytes>,
    /// What CRIU loses.
    pub ext: Option<pb::IpcShmExtEntry>,
    /// It is there still, as it was left at the dump.
    pub(crate) there: bool,
}

impl Segment {
    /// The number of its pagemap, which is its id.
    pub fn id(&self) -> ShmId {
        ShmId::new(self.entry.desc.id.into())
    }

    /// Bytes of address space that it takes.
    pub fn span(&self, page: u64) -> u64 {
        let page = self.huge_page().unwrap_or(page);
        self.entry.size.next_multiple_of(page)
    }

    fn huge_page(&self) -> Option<u64> {
        let flag = self
            .entry
            .hugetlb_flag
            .filter(|flag| flag & SHM_HUGETLB != 0)?;
        Some(1 << (flag >> HUGE_SHIFT & 0x3f))
    }

    pub(crate) fn make(&self, site: &mut dyn Site, creator: Creator) -> Result<()> {
        let desc = &self.entry.desc;
        // Who has given up its privilege may have no huge pages.
        let huge = self.entry.hugetlb_flag.unwrap_or(0);
        let may_change = creator.may_change && huge == 0;
        let creator = Creator {
            may_change,
            ..creator
        };
        let key = if desc.mode & SHM_DEST == 0 {
            desc.key
        } else {
            0
        };
        let flags = huge | desc.mode & MODE_BITS;
        let flags = flags | (libc::IPC_CREAT | libc::IPC_EXCL).cast_unsigned();
        perm::make(site, creator, "shm", desc, |program| {
            program.shmget(key, self.entry.size, flags)
        })?;
        let mut program = Program::new();
        let structure = program.bytes(perm::structure(desc));
        program.shmctl(perm::number(desc)?, libc::IPC_SET | IPC_64, structure);
        if desc.mode & SHM_LOCKED != 0 {
            program.shmctl(desc.id, SHM_LOCK, 0);
        }
        site.run(&program)?;
        Ok(())
    }

    /// Attaches it anywhere. A segment that was there already is emptied: its pages may be none of the image's.
    pub fn attach(&self, site: &mut dyn Site, page: u64) -> Result<u64> {
        let mut program = Program::new();
        let at = program.shmat(perm::number(&self.entry.desc)?, 0, 0);
        if self.there {
            program.madvise(at, self.span(page), MADV_REMOVE);
        }
        Ok(site.run(&program)?.word(at))
    }

    /// Lets it go with its last user, if it was to. When all have attached it.
    pub(crate) fn settle(&self, program: &mut Program) {
        if self.entry.desc.mode & SHM_DEST != 0 {
            program.shmctl(self.entry.desc.id, libc::IPC_RMID, 0);
        }
    }

    /// Whether a segment that has the id is this one, as the dump has left it.
    pub(crate) fn is(&self, found: &Shm, of_tree: &dyn Fn(i32) -> bool) -> Result<()> {
        let (desc, perm) = (&self.entry.desc, &found.perm);
        let same = self.ext.as_ref().is_some_and(|ext| {
            ext.ctime == perm.ctime && i64::from(ext.cpid) == i64::from(found.cpid)
        });
        let same = same
            && desc.key == perm.key.cast_unsigned()
            && (desc.cuid, desc.cgid) == (perm.cuid, perm.cgid)
            && self.entry.size == found.size;
        if !same {
            return Err(perm::taken(desc.id));
        }
        if found.nattch > 0 || !(found.lpid == 0 || of_tree(found.lpid)) {
            return Err(Error::unsupported(
                format!("task {} has used it since the dump", found.lpid),
                "end that, then remove the segment with ipcrm",
            ));
        }
        Ok(())
    }
}

/// Detaches what [`Segment::attach`] or [`look`] attached.
pub fn detach(site: &mut dyn Site, at: u64) -> Result<()> {
    let mut program = Program::new();
    program.shmdt(at);
    site.run(&program)?;
    Ok(())
}

/// Attaches a segment for reading: one that is to be dumped and that nobody has attached.
pub fn look(site: &mut dyn Site, id: ShmId) -> Result<u64> {
    const SHM_RDONLY: i32 = 0o10000;
    let mut program = Program::new();
    let at = program.shmat(id.get(), 0, SHM_RDONLY);
    Ok(site.run(&program)?.word(at))
}

/// The messages of a segment. `huge`: the size of its pages, if it is of huge ones.
pub(crate) fn describe(
    shm: &Shm,
    huge: Option<u64>,
    cpid: u32,
) -> (pb::IpcShmEntry, pb::IpcShmExtEntry) {
    let entry = pb::IpcShmEntry {
        desc: perm::entry(&shm.perm),
        size: shm.size,
        in_pagemaps: Some(true),
        hugetlb_flag: huge.map(|size| SHM_HUGETLB | size.trailing_zeros() << HUGE_SHIFT),
    };
    let ext = pb::IpcShmExtEntry {
        id: entry.desc.id,
        ctime: shm.perm.ctime,
        cpid,
    };
    (entry, ext)
}
