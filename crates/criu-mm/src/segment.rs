//! System V segments that tasks have attached: shmat(2).
//!
//! Who makes the segments, under which ids, is not known here: they are there before the first task is filled. An
//! attachment is always of the whole segment, which is then cut and protected as it was.

use std::collections::BTreeMap;
use std::ops::Range;

use criu_image::id::ShmId;
use criu_image::pb;
use criu_image::{Store, desc};
use criu_kind::{Error, Result};
use criu_tracee::arch::Arch;
use criu_tracee::{Native, Program, Ret, Site, Tracee};

use crate::bits::{map, prot};
use crate::image::{SpaceImage, attachment};
use crate::page_size;
use crate::pages::{Pages, Stored};

const SHM_RDONLY: i32 = 0o10000;
/// The most that is read by one call.
const MOST: u64 = 1 << 30;

/// The segments of the images: how long they are, and their content.
#[derive(Debug, Default)]
pub struct Segments {
    all: BTreeMap<ShmId, Segment>,
}

#[derive(Debug)]
struct Segment {
    /// Bytes of address space that it takes.
    span: u64,
    pages: Pages,
}

impl Segments {
    /// Takes in segments by id and span, and opens the images of their pages. Before the first task is born:
    /// that inherits the descriptors.
    pub fn load(segments: &[(ShmId, u64)], store: &dyn Store) -> Result<Self> {
        let mut all = BTreeMap::new();
        for (id, span) in segments {
            let pages = Pages::load(store, desc::SHMEM_PAGEMAP, *id)?.unwrap_or_default();
            let end = span.next_multiple_of(page_size());
            if pages.runs().last().is_some_and(|run| run.end > end) {
                let image = desc::SHMEM_PAGEMAP.file_name(*id);
                return Err(Error::corrupt(image, "pages behind the end of the segment"));
            }
            all.insert(*id, Segment { span: end, pages });
        }
        Ok(Self { all })
    }

    /// Checks that every attachment is of a segment that there is, and within it.
    pub fn check(&self, image: &SpaceImage) -> Result<()> {
        for vma in image.vmas() {
            if let Some((id, base)) = attachment(vma)
                && vma.end > base.saturating_add(self.get(id)?.span)
            {
                let why = format!("mapping {:#x} is behind the end of segment {id}", vma.start);
                return Err(Error::corrupt("mm", why));
            }
        }
        Ok(())
    }

    /// Brings in the content of a segment that a task has attached at `at`. What is not in the images stays.
    pub fn fill(&self, tracee: &mut Tracee, id: ShmId, at: u64) -> Result<()> {
        let segment = self.get(id)?;
        let mut program = Program::new();
        let mut reads = Vec::new();
        for Stored {
            start,
            end,
            file,
            offset,
        } in segment.pages.runs()
        {
            let mut from = *start;
            while from < *end {
                let len = (end - from).min(MOST);
                let input = segment.pages.fd(*file);
                let offset = offset + (from - start);
                let ret = program.pread64(input, at + from, len, offset);
                program.tolerate();
                reads.push((ret, from, len));
                from += len;
            }
        }
        let outcome = tracee.run(&program)?;
        let mut buffer = vec![0; 256 << 10];
        for (ret, from, len) in reads {
            // Some file systems read less than was asked; the rest goes by hand.
            let mut done = u64::try_from(outcome.get(ret).unwrap_or(0)).unwrap_or(0);
            while done < len {
                let rest = usize::try_from(len - done).unwrap_or(usize::MAX);
                let part = buffer.len().min(rest);
                segment.pages.read(from + done, &mut buffer[..part])?;
                tracee.memory().write(at + from + done, &buffer[..part])?;
                done += part as u64;
            }
        }
        Ok(())
    }

    fn get(&self, id: ShmId) -> Result<&Segment> {
        let found = self.all.get(&id);
        found.ok_or_else(|| Error::corrupt("mm", format!("segment {id} is in no image")))
    }

    /// Where a segment lies as a whole that is attached here.
    fn range(&self, id: ShmId, base: u64) -> Result<Range<u64>> {
        Ok(base..base.saturating_add(self.get(id)?.span))
    }

    /// An attachment that is not in the way of any other: parts of it may lie where another was cut.
    fn first(&self, left: &BTreeMap<(ShmId, u64), Vec<&pb::VmaEntry>>) -> Result<(ShmId, u64)> {
        for (at, parts) in left {
            let mut free = true;
            for (id, base) in left.keys().filter(|other| *other != at) {
                let range = self.range(*id, *base)?;
                let overlaps =
                    |part: &&pb::VmaEntry| part.start < range.end && range.start < part.end;
                free &= !parts.iter().any(overlaps);
            }
            if free {
                return Ok(*at);
            }
        }
        Err(Error::unsupported(
            "segments of shared memory that lie in holes of each other",
            "attach them anew before the dump",
        ))
    }

    /// Attaches the segments of an address space whose mappings are not there yet: `absent` says of which. To be
    /// done before anything else is mapped, as a whole segment may lie where others come. Gives the
    /// results that must be these addresses.
    pub(crate) fn attach(
        &self,
        image: &SpaceImage,
        absent: impl Fn(usize) -> bool,
        program: &mut Program,
    ) -> Result<Vec<(Ret, u64)>> {
        let mut left: BTreeMap<(ShmId, u64), Vec<&pb::VmaEntry>> = BTreeMap::new();
        for (index, vma) in image.vmas().iter().enumerate() {
            if let Some(at) = attachment(vma).filter(|_| absent(index)) {
                left.entry(at).or_default().push(vma);
            }
        }
        let mut placed = Vec::new();
        while !left.is_empty() {
            let (id, base) = self.first(&left)?;
            let parts = left.remove(&(id, base)).unwrap_or_default();
            let readonly = parts.iter().all(|part| !writable(part));
            let flags = if readonly { SHM_RDONLY } else { 0 };
            let whole = self.range(id, base)?;
            let at = attach_at(program, number(id)?, &whole, flags, Native::CALLS.shmlba);
            placed.push((at, base));
            for hole in holes(whole, &parts) {
                program.munmap(hole.start, hole.end - hole.start);
            }
            let write = if readonly { 0 } else { prot::WRITE };
            for part in parts.iter().filter(|part| part.prot != prot::READ | write) {
                program.mprotect(part.start, part.end - part.start, part.prot);
            }
        }
        Ok(placed)
    }
}

/// Attaches a segment where it was. To some machines not every address is good enough for that, but it is for a mapping
/// that moves; the place is kept free for it, as the kernel could choose the same.
fn attach_at(
    program: &mut Program,
    id: i32,
    at: &Range<u64>,
    flags: i32,
    aligned: Option<u64>,
) -> Ret {
    const FIXED: u32 = map::PRIVATE | map::ANONYMOUS | map::NORESERVE | map::FIXED_NOREPLACE;
    if aligned.is_none_or(|size| at.start.is_multiple_of(size)) {
        return program.shmat(id, at.start, flags);
    }
    let size = at.end - at.start;
    program.mmap(at.start, size, libc::PROT_NONE, FIXED, -1, 0);
    let elsewhere = program.shmat(id, 0, flags);
    let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    program.mremap(elsewhere, size, size, how, at.start)
}

/// Whether it was attached for writing; old images do not say.
fn writable(vma: &pb::VmaEntry) -> bool {
    let mode = vma.fdflags.map(u32::cast_signed);
    mode.is_none_or(|flags| flags & libc::O_ACCMODE == libc::O_RDWR)
}

fn number(id: ShmId) -> Result<i32> {
    i32::try_from(id.get()).map_err(|_| Error::corrupt("mm", format!("segment {id} is no number")))
}

/// What of a range is in none of the parts, which are in order.
fn holes(range: Range<u64>, parts: &[&pb::VmaEntry]) -> Vec<Range<u64>> {
    let mut holes = Vec::new();
    let mut at = range.start;
    for part in parts {
        if part.start > at {
            holes.push(at..part.start);
        }
        at = at.max(part.end);
    }
    if at < range.end {
        holes.push(at..range.end);
    }
    holes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bits::status;
    use crate::image::tests::{image, vma};
    use expect_test::expect;

    fn part(start: u64, end: u64, pgoff: u64, protection: u32, mode: i32) -> pb::VmaEntry {
        pb::VmaEntry {
            shmid: 7,
            pgoff,
            prot: protection,
            flags: map::SHARED | map::ANONYMOUS,
            status: status::REGULAR | status::ANON_SHARED | status::SYSVIPC,
            fdflags: Some(mode.cast_unsigned()),
            ..vma(start, end)
        }
    }

    fn segments() -> Segments {
        let store = criu_image::Memory::new();
        Segments::load(&[(ShmId::new(7), 0x5123)], &store).expect("no pages")
    }

    #[test]
    fn cut_and_protected_and_attached_twice() {
        let vmas = vec![
            part(0x1_1000, 0x1_2000, 0x1000, 3, libc::O_RDWR),
            part(0x1_2000, 0x1_3000, 0x2000, 1, libc::O_RDWR),
            part(0x1_4000, 0x1_5000, 0x4000, 3, libc::O_RDWR),
            part(0x2_0000, 0x2_6000, 0, 1, libc::O_RDONLY),
        ];
        let image = image(vmas, &[]).expect("good");
        segments().check(&image).expect("within");
        let mut program = Program::new();
        let placed = segments().attach(&image, |_| true, &mut program);
        assert_eq!(placed.expect("known").len(), 2);
        expect![[r#"
            $0 = shmat(7, 0x10000, 0)
            $1 = munmap(0x10000, 0x1000)
            $2 = munmap(0x13000, 0x1000)
            $3 = munmap(0x15000, 0x1000)
            $4 = mprotect(0x12000, 0x1000, 1)
            $5 = shmat(7, 0x20000, 0x1000)
        "#]]
        .assert_eq(&program.to_string());
    }

    #[test]
    fn at_an_address_that_only_the_kernel_chooses() {
        let mut program = Program::new();
        attach_at(&mut program, 7, &(0x8_0000..0x8_6000), 0, Some(0x4_0000));
        attach_at(&mut program, 7, &(0x9_0000..0x9_6000), 0, Some(0x4_0000));
        expect![[r#"
            $0 = shmat(7, 0x80000, 0)
            $1 = mmap(0x90000, 0x6000, 0, 0x104022, -1, 0)
            $2 = shmat(7, 0, 0)
            $3 = mremap($2, 0x6000, 0x6000, 3, 0x90000)
        "#]]
        .assert_eq(&program.to_string());
    }

    #[test]
    fn one_in_the_hole_of_another() {
        let head = part(0xb000, 0x1_1000, 0, 3, libc::O_RDWR);
        let tail = part(0x1_1000, 0x1_5000, 0x1000, 3, libc::O_RDWR);
        let image = image(vec![head, tail], &[]).expect("good");
        let mut program = Program::new();
        segments()
            .attach(&image, |_| true, &mut program)
            .expect("in order");
        expect![[r#"
            $0 = shmat(7, 0x10000, 0)
            $1 = munmap(0x10000, 0x1000)
            $2 = munmap(0x15000, 0x1000)
            $3 = shmat(7, 0xb000, 0)
        "#]]
        .assert_eq(&program.to_string());
    }

    #[test]
    fn what_images_may_not_say() {
        let mut unknown = part(0x1_0000, 0x1_1000, 0, 3, libc::O_RDWR);
        unknown.shmid = 8;
        let too_far = part(0x1_6000, 0x1_7000, 0x6000, 3, libc::O_RDWR);
        for one in [unknown, too_far] {
            let image = image(vec![one], &[]).expect("good by itself");
            segments().check(&image).expect_err("refused");
        }
        let below = part(0x1000, 0x2000, 0x2000, 3, libc::O_RDWR);
        image(vec![below], &[]).expect_err("below zero");
    }
}
