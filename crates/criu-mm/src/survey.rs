//! What address space a held process has.
//!
//! Only reads: the process is as it was, and nothing of ours is in it yet.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;

use criu_image::id::{ShmId, VPid};
use criu_image::pb;
use criu_kind::{Error, MappedFiles, Result, Subject, Within};
use criu_proc::{Dev, MapName, ProcDir, Resource, Rlim, Smap, VmFlags, WordSize, auxv};
use criu_tracee::arch::Arch;
use criu_tracee::stat::{fstat, fstatat};
use criu_tracee::{Blob, Native, Outcome, Program, Ret, Tracee};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::Pid;

use crate::bits::{map, prot, status};
use crate::page_size;
use crate::vma::{Class, Surroundings, classify, join_vvar};

/// What a survey may pass over.
#[derive(Clone, Copy, Debug)]
pub struct SurveyOptions {
    /// Leave out the mapping of active uprobes: the kernel makes it again.
    pub allow_uprobes: bool,
}

/// The address space of one process: the entries of its images, and what [`crate::drain`] needs.
#[derive(Clone, Debug)]
pub struct Space {
    /// The process as images number it.
    pub id: VPid,
    /// `mm-P.img`. `dumpable` is for the caller to fill.
    pub mm: pb::MmEntry,
    /// What that has no field for.
    pub ext: pb::MmExtEntry,
    /// Bytes that are there now and of no file: about what [`crate::drain`] will write.
    pub resident: u64,
    pub(crate) areas: Vec<Area>,
    pub(crate) file_limit: Option<u64>,
}

/// Mappings without a gap whose pages are to be written, all of one kind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Area {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) kind: AreaKind,
    /// The process may read it itself.
    pub(crate) readable: bool,
    /// Its pages may be brought when first touched.
    pub(crate) lazy: bool,
}

/// Which pages of a mapping are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AreaKind {
    /// All that were ever written.
    Anonymous,
    /// Those that are no longer the file's.
    File,
    /// Each, whatever the kernel says: it may be put there again on another kernel.
    Whole,
    /// None here: they are the object's.
    Shared { id: ShmId, pgoff: u64 },
}

/// Questions to the process itself, to be asked with whatever else it is asked.
#[derive(Clone, Copy, Debug)]
pub struct Questions {
    brk: Ret,
    thp_disabled: Ret,
    locked: Ret,
    resident: (Ret, Blob),
}

/// Reads which mappings a held process has. To be called before [`Tracee::install`], which maps.
///
/// All that cannot be dumped is told in one error.
pub fn survey(
    proc: &ProcDir,
    tracee: &Tracee,
    files: &mut dyn MappedFiles,
    options: &SurveyOptions,
) -> Result<Space> {
    let around = Surroundings {
        shmem: shmem_device()?,
        allow_uprobes: options.allow_uprobes,
    };
    let mut vmas = Vec::new();
    let mut areas = Vec::new();
    let mut resident = 0;
    let mut names = Vec::new();
    let mut locked_on_fault = Vec::new();
    let mut problems = Vec::new();
    let mut lookup = Lookup::default();
    proc.smaps(|smap| -> Result<()> {
        let class = lookup
            .link_mode(proc, &smap)
            .and_then(|link| classify(&smap, link, &around))
            .and_then(|class| {
                class
                    .map(|class| lookup.file(tracee, files, &smap, class))
                    .transpose()
            });
        match class.within(|| subject(&smap)) {
            Ok(Some(entry)) => {
                if let Some(area) = area(&entry, &smap) {
                    resident += match area.kind {
                        AreaKind::Anonymous | AreaKind::File => smap.anonymous,
                        AreaKind::Whole | AreaKind::Shared { .. } => smap.rss,
                    };
                    join(&mut areas, area);
                }
                names.extend(name(&smap));
                if smap.flags.contains(VmFlags::LOCKED | VmFlags::LOCKONFAULT) {
                    locked_on_fault.push(pb::VmaRangeEntry {
                        start: smap.vma.start,
                        end: smap.vma.end,
                    });
                }
                vmas.push(entry);
            }
            Ok(None) => {}
            Err(error) => problems.push(error),
        }
        Ok(())
    })?;
    Error::all(problems)?;
    join_vvar(&mut vmas);
    let stat = proc.stat()?;
    let aios = vmas.iter().filter(|vma| vma.status & status::AIORING != 0);
    let limit = proc.limits()?;
    Ok(Space {
        resident,
        id: VPid::new(tracee.vpid().as_raw().cast_unsigned()),
        ext: pb::MmExtEntry {
            pid: tracee.vpid().as_raw().cast_unsigned(),
            vma_names: names,
            locked_on_fault,
            lock_future: None,
        },
        mm: pb::MmEntry {
            mm_start_code: stat.startcode,
            mm_end_code: stat.endcode,
            mm_start_data: stat.start_data,
            mm_end_data: stat.end_data,
            mm_start_stack: stat.startstack,
            mm_start_brk: stat.start_brk,
            // Until the process itself has said better: see `Questions`.
            mm_brk: heap_end(&vmas, stat.start_brk),
            mm_arg_start: stat.arg_start,
            mm_arg_end: stat.arg_end,
            mm_env_start: stat.env_start,
            mm_env_end: stat.env_end,
            exe_file_id: files.exe(tracee.pid())?.get(),
            mm_saved_auxv: auxiliary(proc)?,
            aios: aios.map(crate::aio::describe).collect(),
            vmas,
            dumpable: None,
            thp_disabled: None,
        },
        areas,
        file_limit: match limit.get(Resource::Fsize).soft {
            Rlim::Unlimited => None,
            Rlim::Value(bytes) => Some(bytes),
        },
    })
}

impl Space {
    /// Makes mappings of anonymous shared memory that is kept as a file mappings of that file: when the files of all processes
    /// are known, and before anything of ours is in the process.
    pub fn map_as_files(&mut self, pid: Pid, files: &mut dyn MappedFiles) -> Result<()> {
        for vma in &mut self.mm.vmas {
            let is_segment = vma.status & status::SYSVIPC != 0;
            let is_huge = vma.flags & map::HUGETLB != 0;
            if vma.status & status::ANON_SHARED == 0 || is_segment || is_huge {
                continue;
            }
            let object = vma.shmid;
            if !files.keeps_as_file(object) {
                continue;
            }
            let mode = vma.fdflags.unwrap_or(libc::O_RDWR.cast_unsigned());
            let writable = mode == libc::O_RDWR.cast_unsigned();
            let file = files.mapped(pid, vma.start..vma.end, writable)?;
            vma.shmid = file.get().into();
            vma.status = vma.status & !status::ANON_SHARED | status::MEMFD | status::FILE_SHARED;
            vma.flags &= !map::ANONYMOUS;
            vma.fdflags = Some(mode);
            let id = ShmId::new(object);
            self.areas.retain(
                |area| !matches!(area.kind, AreaKind::Shared { id: known, .. } if known == id),
            );
        }
        Ok(())
    }

    /// The System V segments that are attached, with their ids; one whose parts differ in protection is
    /// there several times.
    pub fn segments(&self) -> impl Iterator<Item = (ShmId, Range<u64>)> {
        let attached = self.mm.vmas.iter();
        attached
            .filter(|vma| vma.status & status::SYSVIPC != 0)
            .map(|vma| (ShmId::new(vma.shmid), vma.start..vma.end))
    }

    /// Adds the questions that only the process can answer.
    pub fn ask(program: &mut Program) -> Questions {
        let brk = program.brk(0);
        let thp_disabled = program.prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0);
        program.tolerate();
        // A mapping of now is one of those to come for mlockall(2), which nobody else tells of. (A 32-bit process
        // gets none without a hint, and loses this.)
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let fresh = program.mmap(0, 1, libc::PROT_READ, flags, -1, 0);
        program.tolerate();
        let locked = program.msync(fresh, 1, libc::MS_INVALIDATE);
        program.tolerate();
        let bytes = program.room(1);
        let resident = (program.mincore(fresh, 1, bytes), bytes);
        program.tolerate();
        program.munmap(fresh, 1);
        program.tolerate();
        Questions {
            brk,
            thp_disabled,
            locked,
            resident,
        }
    }

    /// Takes the answers.
    pub fn answer(&mut self, outcome: &Outcome, questions: Questions) {
        self.mm.mm_brk = outcome.word(questions.brk);
        // Newer kernels answer with a mask of modes.
        self.mm.thp_disabled = outcome
            .get(questions.thp_disabled)
            .ok()
            .map(|mode| mode != 0);
        let (asked, resident) = questions.resident;
        self.ext.lock_future = match outcome.get(questions.locked) {
            Err(Errno::EBUSY)
                if outcome.get(asked).is_ok() && outcome.bytes(resident)[0] & 1 == 0 =>
            {
                Some((libc::MCL_FUTURE | libc::MCL_ONFAULT).cast_unsigned())
            }
            Err(Errno::EBUSY) => Some(libc::MCL_FUTURE.cast_unsigned()),
            _ => None,
        };
    }
}

/// Asks for each file once, however many mappings of it follow each other.
#[derive(Debug, Default)]
struct Lookup {
    last: Option<(Dev, u64, Option<u32>, MapName<'static>, u64)>,
    part: Option<Part>,
}

/// Private mappings of one file, without a gap.
#[derive(Debug)]
struct Part {
    end: u64,
    dev: Dev,
    inode: u64,
    link: Option<u32>,
}

impl Lookup {
    /// The mode of the link in `map_files`; only mappings of files have one. The parts of a program or a
    /// library lie side by side, mapped from one open file.
    fn link_mode(&mut self, proc: &ProcDir, smap: &Smap<'_>) -> Result<Option<u32>> {
        let vma = &smap.vma;
        if vma.inode == 0 && vma.dev == (Dev { major: 0, minor: 0 }) {
            return Ok(None);
        }
        if let Some(part) = &mut self.part
            && !vma.perms.shared
            && (part.end, part.dev, part.inode) == (vma.start, vma.dev, vma.inode)
        {
            part.end = vma.end;
            return Ok(part.link);
        }
        let name = format!("map_files/{:x}-{:x}", vma.start, vma.end);
        let link = match fstatat(proc, Path::new(&name), libc::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(stat.st_mode),
            Err(Errno::ENOENT | Errno::EPERM | Errno::EACCES) => None,
            Err(errno) => return Err(Error::kernel("newfstatat(map_files)")(errno)),
        };
        self.part = (!vma.perms.shared).then_some(Part {
            end: vma.end,
            dev: vma.dev,
            inode: vma.inode,
            link,
        });
        Ok(link)
    }

    fn file(
        &mut self,
        tracee: &Tracee,
        files: &mut dyn MappedFiles,
        smap: &Smap<'_>,
        class: Class,
    ) -> Result<pb::VmaEntry> {
        let mut entry = class.entry;
        if class.file {
            let vma = &smap.vma;
            let mode = entry.fdflags;
            let writable = vma.perms.shared && mode == Some(libc::O_RDWR.cast_unsigned());
            entry.shmid = match &self.last {
                Some((dev, inode, same, name, id))
                    if (*dev, *inode, *same) == (vma.dev, vma.inode, mode) && *name == vma.name =>
                {
                    *id
                }
                _ => files
                    .mapped(tracee.pid(), vma.start..vma.end, writable)?
                    .get()
                    .into(),
            };
            self.last = Some((
                vma.dev,
                vma.inode,
                mode,
                vma.name.clone().into_owned(),
                entry.shmid,
            ));
        }
        Ok(entry)
    }
}

fn subject(smap: &Smap<'_>) -> Subject {
    let vma = &smap.vma;
    Subject::Vma {
        start: vma.start,
        end: vma.end,
        name: match &vma.name {
            MapName::Path { path, .. } => String::from_utf8_lossy(path).into_owned(),
            MapName::AnonInode(name) => format!("anon_inode:{}", String::from_utf8_lossy(name)),
            MapName::Pseudo(name) => String::from_utf8_lossy(name).into_owned(),
            other => format!("{other:?}"),
        },
    }
}

fn area(entry: &pb::VmaEntry, smap: &Smap<'_>) -> Option<Area> {
    let is = |bit| entry.status & bit == bit;
    // The kernel's own pages, which the process's page table does not count as its own.
    let kernel = is(status::VDSO) || smap.vma.name == MapName::Sigpage;
    let kind = if kernel || is(status::AIORING) {
        AreaKind::Whole
    } else if is(status::VVAR)
        || is(status::VSYSCALL)
        || is(status::SYSVIPC)
        || entry.flags & map::DROPPABLE != 0
    {
        // Nobody's, the kernel's, or those of a segment, which belong to no process.
        return None;
    } else if is(status::ANON_SHARED) {
        AreaKind::Shared {
            id: ShmId::new(entry.shmid),
            pgoff: entry.pgoff,
        }
    } else if is(status::FILE_PRIVATE) {
        AreaKind::File
    } else if is(status::ANON_PRIVATE) {
        AreaKind::Anonymous
    } else {
        return None;
    };
    let flags = entry.flags;
    Some(Area {
        start: entry.start,
        end: entry.end,
        kind,
        readable: entry.prot & prot::READ != 0 && smap.protection_key.unwrap_or(0) == 0,
        lazy: flags & (map::ANONYMOUS | map::PRIVATE) == map::ANONYMOUS | map::PRIVATE
            && flags & (map::LOCKED | map::HUGETLB) == 0
            && !kernel,
    })
}

/// Adds an area. Neighbours whose pages are told apart in the same way are scanned as one.
fn join(areas: &mut Vec<Area>, new: Area) {
    let scanned = matches!(new.kind, AreaKind::Anonymous | AreaKind::File);
    match areas.last_mut() {
        Some(last)
            if scanned
                && last.end == new.start
                && (last.kind, last.readable, last.lazy) == (new.kind, new.readable, new.lazy) =>
        {
            last.end = new.end;
        }
        _ => areas.push(new),
    }
}

fn name(smap: &Smap<'_>) -> Option<pb::VmaNameEntry> {
    let (MapName::Anon(name) | MapName::AnonShmem(name)) = &smap.vma.name else {
        return None;
    };
    Some(pb::VmaNameEntry {
        start: smap.vma.start,
        end: smap.vma.end,
        name: name.to_vec(),
    })
}

/// Whether a vector on a 64-bit machine is that of a 32-bit program: it tells the page size (`AT_PAGESZ`) in
/// words of that width alone.
fn is_narrow(bytes: &[u8]) -> bool {
    let tells = |size| {
        let words = auxv(bytes, size).unwrap_or_default();
        let mut pairs = words.chunks_exact(2);
        pairs.any(|pair| pair == [6, page_size()])
    };
    AUXV_WORD == WordSize::Eight && tells(WordSize::Four) && !tells(WordSize::Eight)
}

/// The auxiliary vector without its end mark, for which CRIU's readers may have no room.
fn auxiliary(proc: &ProcDir) -> Result<Vec<u64>> {
    let bytes = proc.read("auxv")?;
    if Native::COMPAT.is_none() && is_narrow(&bytes) {
        return Err(Error::unsupported(
            "it is a program of 32 bits, which cannot be held on this machine",
            "use its 64-bit form",
        ));
    }
    let mut words = auxv(&bytes, AUXV_WORD).map_err(criu_proc::Error::from)?;
    if words.ends_with(&[0, 0]) {
        words.truncate(words.len() - 2);
    }
    Ok(words)
}

fn heap_end(vmas: &[pb::VmaEntry], start_brk: u64) -> u64 {
    let heaps = vmas.iter().filter(|vma| vma.status & status::HEAP != 0);
    heaps.map(|vma| vma.end).max().unwrap_or(start_brk)
}

/// The kernel's word. A 32-bit program of a 64-bit kernel has words of half the size, of which the
/// image, like CRIU's, has pairs: they are given back as they were taken.
const AUXV_WORD: WordSize = if size_of::<usize>() == 8 {
    WordSize::Eight
} else {
    WordSize::Four
};

/// Shared anonymous memory and memfds are files of one kernel-internal tmpfs.
fn shmem_device() -> Result<Dev> {
    let probe: OwnedFd =
        memfd_create("probe", MFdFlags::MFD_CLOEXEC).map_err(Error::kernel("memfd_create"))?;
    let stat = fstat(&probe).map_err(Error::kernel("fstat"))?;
    Ok(Dev::from_st_dev(stat.st_dev))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_size_tells_the_width() {
        let page = u32::try_from(page_size()).expect("small");
        let narrow = [33, 0x7000, 6, page, 0, 0].map(u32::to_ne_bytes).concat();
        let wide = [33, 0x7000, 6, page_size(), 0, 0]
            .map(u64::to_ne_bytes)
            .concat();
        assert_eq!(is_narrow(&narrow), AUXV_WORD == WordSize::Eight);
        assert!(!is_narrow(&wide) && !is_narrow(&[]));
    }
}
