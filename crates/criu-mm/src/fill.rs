//! A task's memory made and filled, by programs that the tasks run side by side.

use std::ops::Range;

use criu_image::id::{FileId, ShmId};
use criu_image::pb;
use criu_kind::{Error, FileFds, Result, Within};
use criu_tracee::{Job, Outcome, Program, Ret, Tracee, run_all};

use crate::bits::{madv, map, prot};
use crate::drain::subject;
use crate::ground::Ground;
use crate::image::{Backing, SpaceImage, backing, shared_access};
use crate::inherit::{Compared, Kept, inherit};
use crate::mm_map::set_mm_map;
use crate::page_size;
use crate::pages::Stored;
use crate::segment::Segments;
use crate::shared::Shared;
use crate::transfer::{Direction, Piece, Transfer, transfers};
use crate::vdso::{Fate, fate};

/// Bytes that are made and read in one go: small enough for what was just zeroed to be still in the
/// cache when it is read over.
const BATCH: u64 = 4 << 20;
/// Bytes that a task reads before it is heard of, about.
const ROUND: u64 = 256 << 20;
/// From here on it pays to make pages before they are read into.
const POPULATE: u64 = 64 << 10;
/// The driver's buffer.
const BUFFER: u64 = 256 << 10;

/// What all address spaces of a tree are made with.
#[derive(Clone, Copy)]
pub struct Materials<'a> {
    /// Where the engine's own memory is.
    pub ground: &'a Ground,
    /// Files by id.
    pub files: &'a dyn FileFds,
    /// Anonymous shared memory by id.
    pub shared: &'a Shared,
    /// System V segments by id.
    pub segments: &'a Segments,
}

/// A task to fill.
#[derive(Clone, Copy, Debug)]
pub struct FillJob<'a> {
    /// Which of the tasks.
    pub tracee: usize,
    /// With what.
    pub image: &'a SpaceImage,
    /// With what the task was filled, from whose memory it was cloned. `None`: the memory is cleared.
    pub parent: Option<&'a SpaceImage>,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FillStats {
    /// Pages of parents and children compared.
    pub pages_compared: u64,
    /// Pages found equal, and left shared.
    pub pages_skipped_cow: u64,
    /// Pages brought in.
    pub pages_restored: u64,
}

/// Makes the mappings of tasks and brings in their pages. Protections are not the final ones until
/// [`crate::finish`]: children are cloned between the two. `watch` hears now and then of so many bytes more.
pub fn fill(
    tracees: &mut [Tracee],
    jobs: &[FillJob<'_>],
    materials: &Materials<'_>,
    watch: &mut dyn FnMut(u64),
) -> Result<FillStats> {
    let mut stats = FillStats::default();
    let mut compared = Compared::default();
    let plans = jobs.iter().map(|job| {
        let plan = plan(job, materials, &mut compared);
        plan.within(|| subject(&tracees[job.tracee]))
    });
    let plans = plans.collect::<Result<Vec<Plan>>>()?;
    let mut outcomes: Vec<Vec<Outcome>> = plans.iter().map(|_| Vec::new()).collect();
    for round in 0.. {
        let programs: Vec<(usize, Job<'_>)> = jobs
            .iter()
            .zip(&plans)
            .enumerate()
            .filter_map(|(index, (job, plan))| {
                let program = plan.round(round)?;
                let (tracee, thread) = (job.tracee, 0);
                let job = Job {
                    tracee,
                    thread,
                    program,
                };
                Some((index, job))
            })
            .collect();
        if programs.is_empty() {
            break;
        }
        let (who, programs): (Vec<usize>, Vec<Job<'_>>) = programs.into_iter().unzip();
        for (index, outcome) in who.iter().zip(run_all(tracees, &programs)?) {
            outcomes[*index].push(outcome);
        }
        watch(who.iter().map(|index| plans[*index].bytes(round)).sum());
    }
    for ((job, plan), outcomes) in jobs.iter().zip(&plans).zip(&outcomes) {
        let tracee = &tracees[job.tracee];
        plan.complete(tracee, job.image, outcomes)
            .within(|| subject(tracee))?;
        stats.pages_restored += plan.pages;
    }
    stats.pages_compared = compared.pages;
    stats.pages_skipped_cow = compared.equal;
    Ok(stats)
}

/// How one task is filled.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// The first makes the mappings.
    earlier: Vec<Program>,
    pub(crate) program: Program,
    /// Calls of the first program that must return an address.
    placed: Vec<(Ret, u64)>,
    reads: Vec<Read>,
    /// What the task may not write itself.
    by_hand: Vec<Stored>,
    pages: u64,
    /// Plain memory that may go on in the next mapping.
    open: Option<PlainMemory>,
}

/// A call that brings in pages: of which program, with which result, from which file.
#[derive(Debug)]
struct Read {
    round: usize,
    ret: Ret,
    file: usize,
    transfer: Transfer,
}

/// Mappings of plain memory without a gap, which are made by one call.
#[derive(Debug)]
struct PlainMemory {
    range: Range<u64>,
    prot: u32,
    flags: u32,
    small_pages: bool,
}

/// Plans the filling of a task: a pure function of images.
pub(crate) fn plan(
    job: &FillJob<'_>,
    materials: &Materials<'_>,
    compared: &mut Compared,
) -> Result<Plan> {
    let image = job.image;
    let ground = materials.ground;
    let fate = fate(image, ground.vdso.as_ref(), ground.park)?;
    let mut plan = Plan::default();
    let kept = match job.parent {
        Some(parent) => inherit(image, parent, compared)?,
        None => vec![None; image.vmas().len()],
    };
    if let Some(parent) = job.parent {
        plan.unmap(parent, &kept);
    }
    plan.describe(job, materials.files)?;
    let absent = |index: usize| kept[index].is_none();
    let attached = materials
        .segments
        .attach(image, absent, &mut plan.program)?;
    plan.placed.extend(attached);
    let mut reads = Vec::new();
    for (vma, kept) in image.vmas().iter().zip(kept) {
        let makes = match backing(vma) {
            Backing::Anonymous | Backing::File | Backing::Shared | Backing::Socket => true,
            Backing::Vdso | Backing::Vvar => matches!(fate, Fate::Proxy(_)),
            Backing::Aio | Backing::Kernel | Backing::Ring => false,
            // Attached already, or taken over.
            Backing::Segment if kept.is_none() => false,
            Backing::Segment => true,
        };
        if !makes {
            continue;
        }
        let prot = image.fill_prot(vma);
        let pages = match kept {
            Some(kept) => plan.take_over(vma, kept, prot),
            None => {
                plan.map(vma, prot, materials)?;
                image.pages.within(vma.start, vma.end).collect()
            }
        };
        let writable = prot & prot::WRITE != 0;
        if writable {
            &mut reads
        } else {
            &mut plan.by_hand
        }
        .extend(pages);
    }
    plan.map_open();
    plan.read(image, &reads);
    let all = reads.iter().chain(&plan.by_hand);
    plan.pages = all.map(|run| (run.end - run.start) / page_size()).sum();
    Ok(plan)
}

impl Plan {
    /// What the task runs in this round, if that is not over for it.
    fn round(&self, round: usize) -> Option<&Program> {
        let last = (round == self.earlier.len()).then_some(&self.program);
        self.earlier.get(round).or(last)
    }

    /// Bytes that it reads in this round.
    fn bytes(&self, round: usize) -> u64 {
        let reads = self.reads.iter().filter(|read| read.round == round);
        reads.map(|read| read.transfer.len()).sum()
    }

    /// Takes away what the child has not got of its parent's.
    fn unmap(&mut self, parent: &SpaceImage, kept: &[Option<Kept>]) {
        let mut gone: Vec<Range<u64>> = Vec::new();
        let mut push = |range: Range<u64>| match gone.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if range.start < range.end => gone.push(range),
            _ => {}
        };
        let mut kept = kept.iter().flatten().map(|kept| &kept.range).peekable();
        for range in parent.busy() {
            let mut at = range.start;
            while let Some(next) = kept.next_if(|kept| kept.start < range.end) {
                push(at..next.start);
                at = next.end;
            }
            push(at..range.end.max(at));
        }
        for range in gone {
            self.program.munmap(range.start, range.end - range.start);
        }
    }

    /// Sets what the kernel keeps about the program, its executable among it. Before any mapping is
    /// made: the old executable must not be mapped, the new one may.
    fn describe(&mut self, job: &FillJob<'_>, files: &dyn FileFds) -> Result<()> {
        let mm = &job.image.mm;
        let same = job
            .parent
            .is_some_and(|parent| parent.mm.exe_file_id == mm.exe_file_id);
        let exe = if same {
            -1
        } else {
            files.fd(FileId::new(mm.exe_file_id))?
        };
        let was_disabled = job.parent.and_then(|parent| parent.mm.thp_disabled);
        if mm.thp_disabled() != was_disabled.unwrap_or(false) {
            let disable = u32::from(mm.thp_disabled());
            self.program
                .prctl(libc::PR_SET_THP_DISABLE, disable, 0, 0, 0);
        }
        set_mm_map(&mut self.program, mm, exe);
        Ok(())
    }

    fn map(&mut self, vma: &pb::VmaEntry, prot: u32, materials: &Materials<'_>) -> Result<()> {
        const KEPT: u32 = map::SHARED
            | map::PRIVATE
            | map::DROPPABLE
            | map::GROWSDOWN
            | map::NORESERVE
            | map::HUGETLB
            | map::HUGE_MASK;
        let (fd, anonymous) = match backing(vma) {
            Backing::File => match shared_access(vma) {
                Some(writable) => (materials.files.fd_to_map(file_id(vma)?, writable)?, 0),
                None => (materials.files.fd(file_id(vma)?)?, 0),
            },
            Backing::Socket => (materials.files.fd(file_id(vma)?)?, 0),
            Backing::Shared => (materials.shared.fd(ShmId::new(vma.shmid))?, 0),
            _ => (-1, map::ANONYMOUS),
        };
        let flags = vma.flags & KEPT | anonymous | map::FIXED_NOREPLACE;
        let small_pages = vma.madv() >> madv::NOHUGEPAGE & 1 == 1;
        let plain = fd == -1 && flags & (map::GROWSDOWN | map::HUGETLB) == 0;
        if let Some(open) = &mut self.open
            && plain
            && open.range.end == vma.start
            && (open.prot, open.flags, open.small_pages) == (prot, flags, small_pages)
        {
            open.range.end = vma.end;
            return Ok(());
        }
        self.map_open();
        if plain {
            self.open = Some(PlainMemory {
                range: vma.start..vma.end,
                prot,
                flags,
                small_pages,
            });
            return Ok(());
        }
        let offset = if anonymous == 0 { vma.pgoff } else { 0 };
        let at = self
            .program
            .mmap(vma.start, vma.end - vma.start, prot, flags, fd, offset);
        self.placed.push((at, vma.start));
        self.keep_pages_small(vma.start..vma.end, small_pages);
        Ok(())
    }

    /// Makes the plain memory that no further mapping goes on with.
    fn map_open(&mut self) {
        let Some(open) = self.open.take() else {
            return;
        };
        let (start, size) = (open.range.start, open.range.end - open.range.start);
        let at = self.program.mmap(start, size, open.prot, open.flags, -1, 0);
        self.placed.push((at, start));
        self.keep_pages_small(open.range, open.small_pages);
    }

    /// Before memory is filled, or it would be filled with huge pages where that is the default.
    fn keep_pages_small(&mut self, range: Range<u64>, wanted: bool) {
        if wanted {
            let size = range.end - range.start;
            self.program.madvise(range.start, size, madv::NOHUGEPAGE);
            self.program.tolerate();
        }
    }

    /// Makes an inherited mapping the child's. Gives the pages to be read.
    fn take_over(&mut self, vma: &pb::VmaEntry, kept: Kept, prot: u32) -> Vec<Stored> {
        let (start, end) = (kept.range.start, kept.range.end);
        if vma.end > end {
            self.program
                .mremap(start, end - start, vma.end - start, 0, 0);
        }
        if prot != kept.prot {
            self.program.mprotect(start, vma.end - start, prot);
        }
        for range in &kept.discards {
            self.program
                .madvise(range.start, range.end - range.start, madv::DONTNEED);
        }
        kept.reads
    }

    fn read(&mut self, image: &SpaceImage, runs: &[Stored]) {
        let runs = joined(runs);
        let mut asked = 0;
        let files = runs.chunk_by(|one, next| one.file == next.file);
        for group in files {
            let file = group[0].file;
            let pieces = group.iter().map(|run| Piece {
                at: run.start,
                len: run.end - run.start,
                offset: run.offset,
            });
            for transfer in transfers(pieces, BATCH) {
                if asked >= ROUND {
                    self.earlier.push(std::mem::take(&mut self.program));
                    asked = 0;
                }
                asked += transfer.len();
                for (at, len) in transfer.parts.iter().filter(|(_, len)| *len >= POPULATE) {
                    // A hint: older kernels make the pages as they are read.
                    self.program.madvise(*at, *len, madv::POPULATE_WRITE);
                    self.program.tolerate();
                }
                let ret = transfer.add(&mut self.program, Direction::In, image.pages.fd(file));
                self.program.tolerate();
                self.reads.push(Read {
                    round: self.earlier.len(),
                    ret,
                    file,
                    transfer,
                });
            }
        }
    }

    /// Checks what the task did, and does what it did not.
    fn complete(&self, tracee: &Tracee, image: &SpaceImage, outcomes: &[Outcome]) -> Result<()> {
        for (ret, start) in &self.placed {
            let at = outcomes[0].word(*ret);
            if at != *start {
                // Only a kernel older than MAP_FIXED_NOREPLACE does that.
                return Err(Error::unsupported(
                    format!("the kernel put the mapping {start:#x} at {at:#x}"),
                    "use Linux 4.17 or newer",
                ));
            }
        }
        let mut left = self.by_hand.clone();
        for Read {
            round,
            ret,
            file,
            transfer,
        } in &self.reads
        {
            let done = u64::try_from(outcomes[*round].get(*ret).unwrap_or(0)).unwrap_or(0);
            if done < transfer.len() {
                tracing::debug!(done, of = transfer.len(), "a short read is made up for");
                left.extend(transfer.rest(done).into_iter().map(|piece| Stored {
                    start: piece.at,
                    end: piece.at + piece.len,
                    file: *file,
                    offset: piece.offset,
                }));
            }
        }
        let mut buffer = vec![0; usize::try_from(BUFFER).unwrap_or(0)];
        for run in left {
            for at in (run.start..run.end).step_by(buffer.len()) {
                let length = usize::try_from((run.end - at).min(BUFFER)).unwrap_or(0);
                image.pages.read(at, &mut buffer[..length])?;
                tracee.memory().write(at, &buffer[..length])?;
            }
        }
        Ok(())
    }
}

/// Runs that go on in the image where they go on in memory, across mappings, are one.
fn joined(runs: &[Stored]) -> Vec<Stored> {
    let mut joined: Vec<Stored> = Vec::with_capacity(runs.len());
    for run in runs {
        match joined.last_mut() {
            Some(last)
                if last.end == run.start
                    && last.file == run.file
                    && last.offset + (last.end - last.start) == run.offset =>
            {
                last.end = run.end;
            }
            _ => joined.push(*run),
        }
    }
    joined
}

/// The file of a mapping: its id is in a field made for more.
pub(crate) fn file_id(vma: &pb::VmaEntry) -> Result<FileId> {
    u32::try_from(vma.shmid).map(FileId::new).map_err(|_| {
        Error::corrupt(
            "mm",
            format!("mapping {:#x} has the file id {}", vma.start, vma.shmid),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bits::status;
    use crate::image::tests::{image, vma};
    use expect_test::expect;

    struct Numbers;

    impl FileFds for Numbers {
        fn fd(&self, id: FileId) -> Result<i32> {
            Ok(900 + i32::try_from(id.get()).expect("few"))
        }
    }

    fn file(start: u64, end: u64, id: u64) -> pb::VmaEntry {
        pb::VmaEntry {
            shmid: id,
            pgoff: 0x3000,
            prot: prot::READ | prot::EXEC,
            flags: map::PRIVATE,
            status: status::REGULAR | status::FILE_PRIVATE,
            ..vma(start, end)
        }
    }

    /// The program, without the structure that is bytes, and with the pages image as descriptor 7.
    fn listing(image: &SpaceImage, parent: Option<&SpaceImage>) -> String {
        let ground = Ground::without_vdso(0x1_0000_0000);
        let materials = Materials {
            ground: &ground,
            files: &Numbers,
            shared: &Shared::default(),
            segments: &Segments::default(),
        };
        let job = FillJob {
            tracee: 0,
            image,
            parent,
        };
        let plan = plan(&job, &materials, &mut Compared::default()).expect("planned");
        let text = plan.program.to_string();
        let lines = text.lines().filter(|line| !line.contains("prctl"));
        let fd = image.pages.files().first().map(|_| image.pages.fd(0));
        let fd = format!("preadv({}, ", fd.unwrap_or(-1));
        lines
            .map(|line| line.replace(&fd, "preadv(PAGES, ") + "\n")
            .collect()
    }

    #[test]
    fn a_cleared_task() {
        let mut stack = vma(0x7000_0000, 0x7010_0000);
        stack.flags |= map::GROWSDOWN | map::LOCKED;
        let mut hidden = vma(0x6000_0000, 0x6000_2000);
        hidden.prot = 0;
        let vmas = vec![
            file(0x40_0000, 0x40_2000, 5),
            vma(0x50_0000, 0x60_0000),
            hidden,
            stack,
        ];
        let runs = [
            (0x50_0000, 0x51_0000, 1),
            (0x52_0000, 0x52_1000, 2),
            (0x6000_0000, 0x6000_1000, 3),
        ];
        let image = image(vmas, &runs).expect("good");
        expect![[r#"
            $1 = mmap(0x400000, 0x2000, 5, 0x100002, 905, 0x3000)
            $2 = mmap(0x500000, 0x100000, 3, 0x100022, -1, 0)
            $3 = mmap(0x60000000, 0x2000, 2, 0x100022, -1, 0)
            $4 = mmap(0x70000000, 0x100000, 3, 0x100122, -1, 0)
            $5 = madvise(0x500000, 0x10000, 23) ?
            $6 = preadv(PAGES, <000050000000000000000100000000000000520000000000001000000000000000000060000000000010000000000000>, 3, 0, 0) ?
        "#]].assert_eq(&listing(&image, None));
    }

    #[test]
    fn neighbours_are_made_and_read_as_one() {
        let mut constant = vma(0x50_2000, 0x50_4000);
        constant.prot = prot::READ;
        let vmas = vec![vma(0x50_0000, 0x50_2000), constant];
        let runs = [(0x50_0000, 0x50_2000, 1), (0x50_2000, 0x50_4000, 2)];
        let image = image(vmas, &runs).expect("good");
        expect![[r#"
            $1 = mmap(0x500000, 0x4000, 3, 0x100022, -1, 0)
            $2 = preadv(PAGES, <00005000000000000040000000000000>, 1, 0, 0) ?
        "#]]
        .assert_eq(&listing(&image, None));
    }

    #[test]
    fn a_child() {
        let vmas = || {
            vec![
                file(0x40_0000, 0x40_2000, 5),
                vma(0x50_0000, 0x60_0000),
                vma(0x70_0000, 0x71_0000),
            ]
        };
        let runs = [(0x50_0000, 0x50_4000, 1), (0x58_0000, 0x58_2000, 2)];
        let parent = image(vmas(), &runs).expect("good");
        let mut vmas = vmas();
        vmas[1].end = 0x68_0000;
        vmas[2] = vma(0x80_0000, 0x81_0000);
        let runs = [
            (0x50_0000, 0x50_3000, 1),
            (0x50_3000, 0x50_4000, 9),
            (0x61_0000, 0x61_1000, 4),
        ];
        let child = image(vmas, &runs).expect("good");
        expect![[r#"
            $0 = munmap(0x700000, 0x10000)
            $2 = mremap(0x500000, 0x100000, 0x180000, 0, 0)
            $3 = madvise(0x580000, 0x2000, 4)
            $4 = mmap(0x800000, 0x10000, 3, 0x100022, -1, 0)
            $5 = preadv(PAGES, <0030500000000000001000000000000000006100000000000010000000000000>, 2, 0x3000, 0) ?
        "#]].assert_eq(&listing(&child, Some(&parent)));
    }
}
