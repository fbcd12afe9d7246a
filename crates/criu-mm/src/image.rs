//! An address space in images, checked before anything is made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use criu_image::id::{FileId, ShmId, VPid};
use criu_image::shmem::Object;
use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{Error, Result, Subject, Within};

use crate::bits::{map, prot, status};
use crate::page_size;
use crate::pages::Pages;

/// No machine's address space is larger.
const HIGHEST: u64 = 1 << 56;
/// The largest private mapping that is made writable only to be filled: a larger one would count as
/// memory in use, and may be more than there is.
const WRITABLE_WHILE_FILLED: u64 = 1 << 30;
/// More than any kernel keeps.
const MOST_AUXV: usize = 4096;

/// An address space to be restored.
#[derive(Debug)]
pub struct SpaceImage {
    /// The process as images number it.
    pub id: VPid,
    /// `mm-P.img`.
    pub mm: pb::MmEntry,
    /// What that has no field for.
    pub ext: Option<pb::MmExtEntry>,
    /// Its pages.
    pub pages: Pages,
    /// How many of the mappings are real; regions of guard pages follow.
    real: usize,
    /// Sizes of shared memory, where the images say more than the mappings.
    pub(crate) sizes: BTreeMap<ShmId, u64>,
}

/// How a mapping comes to be at restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Private memory.
    Anonymous,
    /// A file, or a memfd; private or shared.
    File,
    /// Anonymous shared memory.
    Shared,
    /// A System V segment.
    Segment,
    /// `[vdso]`.
    Vdso,
    /// `[vvar]`.
    Vvar,
    /// A ring of io_setup(2).
    Aio,
    /// A ring of io_uring_setup(2): a file that is mapped where the kernel chooses.
    Ring,
    /// The ring of a packet socket: a file that is mapped as a whole.
    Socket,
    /// The kernel's, in every process.
    Kernel,
}

impl SpaceImage {
    /// Reads and checks the images of a process.
    pub fn load(store: &dyn Store, id: VPid) -> Result<Self> {
        let mm = store.entry::<pb::MmEntry>(desc::MM, id)?.message;
        let ext = match store.entries::<pb::MmExtEntry>(desc::MM_EXT, id)? {
            Some(entries) => entries.into_iter().next().map(|entry| entry.message),
            None => None,
        };
        let pages = Pages::load(store, desc::PAGEMAP, id)?.unwrap_or_default();
        Self::check(id, mm, ext, pages)
    }

    /// Checks that the parts hold together.
    fn check(id: VPid, mm: pb::MmEntry, ext: Option<pb::MmExtEntry>, pages: Pages) -> Result<Self> {
        let image = desc::MM.file_name(id);
        let corrupt = |why: String| Error::corrupt(&image, why);
        let real = mm
            .vmas
            .iter()
            .take_while(|vma| vma.status & status::GUARD == 0)
            .count();
        let (vmas, guards) = mm.vmas.split_at(real);
        let mut end = 0;
        for vma in vmas {
            let at = |why: &str| corrupt(format!("mapping {:#x}-{:#x}: {why}", vma.start, vma.end));
            check_vma(vma, at)?;
            if vma.start < end {
                return Err(at("overlaps or precedes the one before it"));
            }
            end = vma.end;
        }
        for guard in guards {
            let at =
                |why: &str| corrupt(format!("guard {:#x}-{:#x}: {why}", guard.start, guard.end));
            if guard.status != status::GUARD {
                return Err(at("a mapping follows the guards"));
            }
            check_range(guard, at)?;
            if !covered(vmas, guard.start..guard.end, |vma| {
                backing(vma) != Backing::Kernel
            }) {
                return Err(at("outside of the mappings"));
            }
        }
        for run in pages.runs() {
            if !covered(vmas, run.start..run.end, holds_pages) {
                let why = format!("pages {:#x}-{:#x} belong to no mapping", run.start, run.end);
                return Err(Error::corrupt(desc::PAGEMAP.file_name(id), why));
            }
        }
        for ring in &mm.aios {
            let place = |vma: &&pb::VmaEntry| {
                backing(vma) == Backing::Aio
                    && vma.start == ring.id
                    && vma.end - vma.start == u64::from(ring.ring_len)
            };
            if !vmas.iter().any(|vma| place(&vma)) {
                return Err(corrupt(format!(
                    "no mapping of the AIO ring {:#x}",
                    ring.id
                )));
            }
        }
        if mm.mm_saved_auxv.len() > MOST_AUXV {
            return Err(corrupt("the auxiliary vector is too long".to_owned()));
        }
        Ok(Self {
            id,
            mm,
            ext,
            pages,
            real,
            sizes: BTreeMap::new(),
        })
    }

    /// Makes mappings of these files what they were: CRIU keeps anonymous shared memory as memfds.
    pub fn name_objects(&mut self, objects: &BTreeMap<FileId, Object>) {
        for vma in &mut self.mm.vmas {
            let of_memfd = status::MEMFD | status::FILE_SHARED;
            let file = u32::try_from(vma.shmid).map(FileId::new);
            let object = file.ok().and_then(|file| objects.get(&file));
            if let Some(object) = object.filter(|_| vma.status & of_memfd == of_memfd) {
                vma.status = vma.status & !of_memfd | status::ANON_SHARED;
                vma.flags |= map::ANONYMOUS;
                vma.shmid = object.id.get();
                vma.fdflags = None;
                self.sizes.insert(object.id, object.size);
            }
        }
    }

    /// The executable, and all that is mapped and may be a file.
    pub fn files(&self) -> BTreeSet<FileId> {
        let mapped = self.vmas().iter().map(|vma| vma.shmid);
        let all = mapped.chain([self.mm.exe_file_id.into()]);
        all.filter_map(|id| Some(FileId::new(u32::try_from(id).ok()?)))
            .collect()
    }

    /// Files of shared mappings, and whether they must be open for writing. Images of CRIU do not say it
    /// with the file: one entry of it may serve mappings of both kinds.
    pub fn shared_files(&self) -> BTreeSet<(FileId, bool)> {
        let file = |vma: &pb::VmaEntry| {
            let writable = shared_access(vma)?;
            Some((FileId::new(u32::try_from(vma.shmid).ok()?), writable))
        };
        self.vmas().iter().filter_map(file).collect()
    }

    /// The System V segments that are attached.
    pub fn segments(&self) -> BTreeSet<ShmId> {
        let attached = self.vmas().iter().filter_map(attachment);
        attached.map(|(id, _)| id).collect()
    }

    /// Bytes of pages that it has stored.
    pub fn stored(&self) -> u64 {
        let runs = self.pages.runs().iter();
        runs.map(|run| run.end - run.start).sum()
    }

    /// The mappings in order of address.
    pub(crate) fn vmas(&self) -> &[pb::VmaEntry] {
        &self.mm.vmas[..self.real]
    }

    /// The regions of guard pages.
    pub(crate) fn guards(&self) -> &[pb::VmaEntry] {
        &self.mm.vmas[self.real..]
    }

    /// Ranges of addresses that it needs.
    pub(crate) fn busy(&self) -> impl Iterator<Item = Range<u64>> {
        let vmas = self
            .vmas()
            .iter()
            .filter(|vma| backing(vma) != Backing::Kernel);
        vmas.map(|vma| vma.start..vma.end)
    }

    /// Whether a processor protects memory as this wants it, that has these ways beside the usual three.
    pub fn fits(&self, protections: u32) -> Result<()> {
        let usual = prot::READ | prot::WRITE | prot::EXEC;
        let mut all = self.vmas().iter();
        let Some(vma) = all.find(|vma| vma.prot & !usual & !protections != 0) else {
            return Ok(());
        };
        let refused = Error::unsupported(
            "code into which branches may land at marked places only (BTI)",
            "restore it on a processor with BTI",
        );
        Err(refused).within(|| Subject::Vma {
            start: vma.start,
            end: vma.end,
            name: "[code]".to_owned(),
        })
    }

    /// The protection of a mapping from its making until it is finished.
    pub(crate) fn fill_prot(&self, vma: &pb::VmaEntry) -> u32 {
        let private = vma.flags & map::SHARED == 0;
        let small = vma.end - vma.start <= WRITABLE_WHILE_FILLED;
        let filled = self.pages.within(vma.start, vma.end).next().is_some();
        if private && small && filled {
            vma.prot | prot::WRITE
        } else {
            vma.prot
        }
    }
}

/// What a checked mapping is.
pub(crate) fn backing(vma: &pb::VmaEntry) -> Backing {
    let is = |bit| vma.status & bit == bit;
    if is(status::VSYSCALL) || is(status::UPROBES) {
        Backing::Kernel
    } else if is(status::VDSO) {
        Backing::Vdso
    } else if is(status::VVAR) {
        Backing::Vvar
    } else if is(status::AIORING) {
        Backing::Aio
    } else if is(status::RING) {
        Backing::Ring
    } else if is(status::SOCKET) {
        Backing::Socket
    } else if is(status::FILE_PRIVATE) || is(status::FILE_SHARED) {
        Backing::File
    } else if is(status::SYSVIPC) {
        Backing::Segment
    } else if is(status::ANON_SHARED) {
        Backing::Shared
    } else {
        Backing::Anonymous
    }
}

/// Whether the file of a shared mapping is open for writing, so that it may become writable.
pub(crate) fn shared_access(vma: &pb::VmaEntry) -> Option<bool> {
    let mode = vma
        .fdflags
        .map(|flags| flags.cast_signed() & libc::O_ACCMODE);
    let writable = mode.map_or(vma.prot & prot::WRITE != 0, |mode| mode == libc::O_RDWR);
    (backing(vma) == Backing::File && vma.flags & map::SHARED != 0).then_some(writable)
}

/// Where the segment behind a mapping is attached, if it is one: its id and its first byte.
pub(crate) fn attachment(vma: &pb::VmaEntry) -> Option<(ShmId, u64)> {
    let segment = backing(vma) == Backing::Segment;
    segment.then(|| (ShmId::new(vma.shmid), vma.start - vma.pgoff))
}

/// Whether a pagemap may speak of it.
fn holds_pages(vma: &pb::VmaEntry) -> bool {
    match backing(vma) {
        Backing::Anonymous | Backing::Vdso | Backing::Aio => true,
        Backing::File => vma.flags & map::SHARED == 0,
        Backing::Shared
        | Backing::Segment
        | Backing::Vvar
        | Backing::Kernel
        | Backing::Ring
        | Backing::Socket => false,
    }
}

fn check_range(vma: &pb::VmaEntry, at: impl Fn(&str) -> Error) -> Result<()> {
    let page = page_size();
    if vma.start >= vma.end {
        return Err(at("is empty"));
    }
    if !vma.start.is_multiple_of(page) || !vma.end.is_multiple_of(page) {
        return Err(at("is not on page boundaries"));
    }
    if vma.end > HIGHEST && vma.status & status::VSYSCALL == 0 {
        return Err(at("is beyond the address space"));
    }
    Ok(())
}

fn check_vma(vma: &pb::VmaEntry, at: impl Fn(&str) -> Error) -> Result<()> {
    check_range(vma, &at)?;
    if vma.status & !status::KNOWN != 0 {
        return Err(at("has an unknown status"));
    }
    if vma.prot & !prot::KNOWN != 0 {
        return Err(at("has an unknown protection"));
    }
    if vma.flags & !map::KNOWN != 0 {
        return Err(at("has unknown flags"));
    }
    let kinds = [map::SHARED, map::PRIVATE, map::DROPPABLE];
    if backing(vma) != Backing::Kernel
        && kinds.iter().filter(|kind| vma.flags & **kind != 0).count() != 1
    {
        return Err(at("is neither shared nor private"));
    }
    let shared = vma.flags & map::SHARED != 0;
    let fits = match backing(vma) {
        Backing::Anonymous | Backing::Vdso | Backing::Vvar => !shared,
        Backing::Shared | Backing::Segment | Backing::Ring | Backing::Socket => shared,
        Backing::File => shared == (vma.status & status::FILE_SHARED != 0),
        Backing::Aio | Backing::Kernel => true,
    };
    if !fits {
        return Err(at("has a status that contradicts its flags"));
    }
    if !vma.pgoff.is_multiple_of(page_size())
        || vma.pgoff.checked_add(vma.end - vma.start).is_none()
    {
        return Err(at("has an impossible offset"));
    }
    if backing(vma) == Backing::Segment && vma.pgoff > vma.start {
        return Err(at("is of a segment that would begin below zero"));
    }
    let refused = [
        (status::SHSTK, "a shadow stack"),
        (
            status::EXT_PLUGIN,
            "memory of a device, restored by a plugin",
        ),
    ];
    match refused.iter().find(|(bit, _)| vma.status & bit != 0) {
        Some((_, fact)) => Err(Error::unsupported(
            format!("mapping {:#x}-{:#x}: {fact}", vma.start, vma.end),
            "restore it with CRIU",
        )),
        None => Ok(()),
    }
}

/// Whether mappings that satisfy `good` cover a range without a gap.
fn covered(vmas: &[pb::VmaEntry], range: Range<u64>, good: impl Fn(&pb::VmaEntry) -> bool) -> bool {
    let first = vmas.partition_point(|vma| vma.end <= range.start);
    let mut at = range.start;
    for vma in &vmas[first..] {
        if vma.start > at || !good(vma) {
            return false;
        }
        at = vma.end;
        if at >= range.end {
            return true;
        }
    }
    false
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::page::tests::each_size;
    use criu_image::pages::PagemapWriter;
    use criu_image::{Memory, pages::PageFlags};

    /// A mapping of private memory.
    pub(crate) fn vma(start: u64, end: u64) -> pb::VmaEntry {
        pb::VmaEntry {
            start,
            end,
            prot: prot::READ | prot::WRITE,
            flags: map::PRIVATE | map::ANONYMOUS,
            status: status::REGULAR | status::ANON_PRIVATE,
            fd: -1,
            ..pb::VmaEntry::default()
        }
    }

    /// An image of these mappings in which these runs have pages, each filled with a byte.
    pub(crate) fn image(vmas: Vec<pb::VmaEntry>, runs: &[(u64, u64, u8)]) -> Result<SpaceImage> {
        let store = Memory::new();
        let id = VPid::new(7);
        let mm = pb::MmEntry {
            vmas,
            ..pb::MmEntry::default()
        };
        store.write_entry(desc::MM, id, &mm)?;
        let mut writer = PagemapWriter::new(desc::PAGEMAP, id, 1.into(), page_size())?;
        let mut content = Vec::new();
        for (start, end, byte) in runs {
            writer.push(*start, (end - start) / page_size(), PageFlags::PRESENT)?;
            content.resize(
                content.len() + usize::try_from(end - start).expect("small"),
                *byte,
            );
        }
        writer.finish(&store)?;
        store.finish()?;
        store.insert("pages-1.img", &content)?;
        SpaceImage::load(&store, id)
    }

    #[test]
    fn a_good_image() {
        each_size(|page| {
            let mut gate = vma(0xffff_ffff_ff60_0000, 0xffff_ffff_ff60_0000 + page);
            gate.status = status::VSYSCALL | status::ANON_PRIVATE;
            let mut guard = vma(2 * page, 3 * page);
            (guard.status, guard.flags, guard.prot) = (status::GUARD, 0, 0);
            let vmas = vec![vma(page, 2 * page), vma(2 * page, 4 * page), gate, guard];
            let image = image(vmas, &[(page, 3 * page, 1)]).expect("good");
            assert_eq!((image.vmas().len(), image.guards().len()), (3, 1));
            assert_eq!(image.busy().count(), 2);
        });
    }

    #[test]
    fn half_a_page_is_no_place_for_a_mapping() {
        each_size(|page| {
            let why = |vma| image(vec![vma], &[]).expect_err("refused").to_string();
            assert!(why(vma(page / 2, 2 * page)).contains("boundaries"));
            assert!(why(vma(page, page + page / 2)).contains("boundaries"));
            let mut shifted = vma(page, 2 * page);
            shifted.pgoff = page / 2;
            assert!(why(shifted).contains("impossible offset"));
        });
    }

    #[test]
    fn hostile_images() {
        let why = |vmas: Vec<pb::VmaEntry>, runs: &[(u64, u64, u8)]| {
            image(vmas, runs).expect_err("refused").to_string()
        };
        let changed = |change: fn(&mut pb::VmaEntry)| {
            let mut one = vma(0x1000, 0x2000);
            change(&mut one);
            why(vec![one], &[])
        };
        assert!(why(vec![vma(0x1000, 0x3000), vma(0x2000, 0x4000)], &[]).contains("overlaps"));
        assert!(why(vec![vma(0x3000, 0x4000), vma(0x1000, 0x2000)], &[]).contains("overlaps"));
        assert!(why(vec![vma(0x1000, 0x1000)], &[]).contains("is empty"));
        assert!(why(vec![vma(0x1001, 0x2000)], &[]).contains("boundaries"));
        assert!(why(vec![vma(0x1000, 1 << 60)], &[]).contains("beyond"));
        assert!(changed(|vma| vma.flags |= 1 << 20).contains("unknown flags"));
        assert!(changed(|vma| vma.prot = 0x0100_0000).contains("unknown protection"));
        assert!(changed(|vma| vma.status |= 1 << 30).contains("unknown status"));
        assert!(changed(|vma| vma.flags = map::ANONYMOUS).contains("neither"));
        assert!(changed(|vma| vma.flags = map::SHARED).contains("contradicts"));
        assert!(changed(|vma| vma.pgoff = u64::MAX - 0xfff).contains("impossible offset"));
        assert!(changed(|vma| vma.status |= status::SHSTK).contains("a shadow stack"));
        let outside = why(vec![vma(0x1000, 0x2000)], &[(0x1000, 0x3000, 0)]);
        assert!(outside.contains("belong to no mapping"), "{outside}");
        let mut guard = vma(0x5000, 0x6000);
        guard.status = status::GUARD;
        assert!(why(vec![vma(0x1000, 0x2000), guard], &[]).contains("outside of the mappings"));
    }
}
