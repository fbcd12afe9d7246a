//! What a child's memory has in common with its parent's, from whose it was cloned.
//!
//! Pages that both have and that are equal were, as far as anyone can tell, never copied since the
//! fork: they stay shared. CRIU decides the same way.

use std::ops::Range;

use criu_image::pb;
use criu_kind::Result;

use crate::bits::map;
use crate::image::{Backing, SpaceImage, attachment, backing};
use crate::page_size;
use crate::pages::Stored;

/// Bytes compared at a time.
const BLOCK: u64 = BLOCK_BYTES as u64;
const BLOCK_BYTES: usize = 256 << 10;

/// A mapping, or what is left of it, that the child goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// What there is of the child's mapping.
    pub(crate) range: Range<u64>,
    /// Pages that the child has not got.
    pub(crate) discards: Vec<Range<u64>>,
    /// Pages that the child has, and the parent has not got, or other ones.
    pub(crate) reads: Vec<Stored>,
    /// The protection it has now.
    pub(crate) prot: u32,
}

/// How many pages were looked at, and how many were found equal.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    pub(crate) pages: u64,
    pub(crate) equal: u64,
    /// Two blocks to be compared: room that is made when there is something to compare, and once.
    room: Vec<u8>,
}

/// For each mapping of the child: what it takes over, if anything.
pub(crate) fn inherit(
    child: &SpaceImage,
    parent: &SpaceImage,
    compared: &mut Compared,
) -> Result<Vec<Option<Kept>>> {
    let mut all = vec![None; child.vmas().len()];
    // A program that replaced itself since the fork shares nothing; and as long as the old program is
    // mapped the kernel keeps it as the executable.
    if child.mm.exe_file_id != parent.mm.exe_file_id {
        return Ok(all);
    }
    for (vma, kept) in child.vmas().iter().zip(&mut all) {
        let after = parent
            .vmas()
            .partition_point(|other| other.start <= vma.start);
        let Some(other) = after.checked_sub(1).map(|index| &parent.vmas()[index]) else {
            continue;
        };
        let Some(range) = common(vma, other) else {
            continue;
        };
        let mut found = Kept {
            range,
            discards: Vec::new(),
            reads: Vec::new(),
            prot: parent.fill_prot(other),
        };
        let private = vma.flags & map::SHARED == 0;
        let before = compared.equal;
        if private {
            compare(child, parent, vma, &mut found, compared)?;
        }
        // Nothing in common: a new mapping is cheaper than to copy each page and throw it away.
        let untouched = found.discards.is_empty() && found.reads.is_empty();
        if !private || untouched || compared.equal > before {
            *kept = Some(found);
        }
    }
    // A segment is attached as a whole, so either all its parts are there or none.
    let vmas = child.vmas().iter();
    let lacking: Vec<_> = vmas
        .zip(&all)
        .filter(|(_, kept)| kept.is_none())
        .filter_map(|(vma, _)| attachment(vma))
        .collect();
    for (vma, kept) in child.vmas().iter().zip(&mut all) {
        if attachment(vma).is_some_and(|at| lacking.contains(&at)) {
            *kept = None;
        }
    }
    Ok(all)
}

/// The part of the parent's mapping that can become the child's.
fn common(vma: &pb::VmaEntry, other: &pb::VmaEntry) -> Option<Range<u64>> {
    const SAME: u32 = map::SHARED
        | map::PRIVATE
        | map::DROPPABLE
        | map::ANONYMOUS
        | map::GROWSDOWN
        | map::NORESERVE
        | map::HUGETLB
        | map::HUGE_MASK;
    if vma.flags & map::HUGETLB != 0 {
        return None; // Huge pages are not compared, and are taken away and copied as a whole only.
    }
    let kind = backing(vma);
    let object = |vma: &pb::VmaEntry| (vma.shmid, vma.pgoff.wrapping_sub(vma.start));
    let same_object = match kind {
        Backing::Anonymous => true,
        Backing::File | Backing::Shared => object(vma) == object(other),
        Backing::Segment => object(vma) == object(other) && vma.fdflags == other.fdflags,
        _ => false,
    };
    // Only plain memory can be made longer where it is.
    let grows = kind == Backing::Anonymous
        && vma.flags & (map::GROWSDOWN | map::HUGETLB | map::DROPPABLE) == 0;
    let fits = vma.start < other.end && (vma.end <= other.end || grows);
    (kind == backing(other) && same_object && (vma.flags ^ other.flags) & SAME == 0 && fits)
        .then(|| vma.start..vma.end.min(other.end))
}

/// Finds out which pages of a mapping stay.
fn compare(
    child: &SpaceImage,
    parent: &SpaceImage,
    vma: &pb::VmaEntry,
    kept: &mut Kept,
    compared: &mut Compared,
) -> Result<()> {
    let page = page_size();
    // What the child has beyond the common part, if that is to grow.
    kept.reads
        .extend(child.pages.within(kept.range.end, vma.end));
    let mut common_reads = Vec::new();
    let mut at = kept.range.start;
    let mut old = parent
        .pages
        .within(kept.range.start, kept.range.end)
        .peekable();
    let mut new = child
        .pages
        .within(kept.range.start, kept.range.end)
        .peekable();
    while at < kept.range.end {
        while old.peek().is_some_and(|run| run.end <= at) {
            old.next();
        }
        while new.peek().is_some_and(|run| run.end <= at) {
            new.next();
        }
        // Up to where both stay what they are.
        let inside = |run: Option<&Stored>| run.is_some_and(|run| run.start <= at);
        let edge = |run: Option<&Stored>| {
            run.map_or(kept.range.end, |run| {
                if run.start <= at { run.end } else { run.start }
            })
        };
        let (had, has) = (inside(old.peek()), inside(new.peek()));
        let mut end = edge(old.peek()).min(edge(new.peek()));
        match (had, has, new.peek()) {
            (true, false, _) => kept.discards.push(at..end),
            (false, true, Some(run)) => push(&mut common_reads, part(run, at, end)),
            (true, true, Some(run)) => {
                end = end.min(at + BLOCK);
                let length = usize::try_from(end - at).unwrap_or(0);
                compared.room.resize(2 * BLOCK_BYTES, 0);
                let (ours, theirs) = compared.room.split_at_mut(BLOCK_BYTES);
                let (ours, theirs) = (&mut ours[..length], &mut theirs[..length]);
                child.pages.read(at, ours)?;
                parent.pages.read(at, theirs)?;
                let size = usize::try_from(page).unwrap_or(4096);
                let pairs = ours.chunks(size).zip(theirs.chunks(size));
                for (index, (ours, theirs)) in pairs.enumerate() {
                    let from = at + index as u64 * page;
                    compared.pages += 1;
                    if ours == theirs {
                        compared.equal += 1;
                    } else {
                        push(&mut common_reads, part(run, from, from + page));
                    }
                }
            }
            _ => {}
        }
        at = end;
    }
    common_reads.append(&mut kept.reads);
    kept.reads = common_reads;
    Ok(())
}

fn part(run: &Stored, start: u64, end: u64) -> Stored {
    Stored {
        start,
        end,
        file: run.file,
        offset: run.offset + (start - run.start),
    }
}

fn push(runs: &mut Vec<Stored>, run: Stored) {
    match runs.last_mut() {
        Some(last)
            if last.end == run.start
                && last.file == run.file
                && last.offset + (last.end - last.start) == run.offset =>
        {
            last.end = run.end;
        }
        _ => runs.push(run),
    }
}

#[cfg(test)]
#[allow(
    clippy::single_range_in_vec_init,
    reason = "a list of one range is meant"
)]
mod tests {
    use super::*;
    use crate::image::tests::{image, vma};
    use crate::page::tests::each_size;

    #[test]
    fn equal_pages_stay_others_come_and_go() {
        each_size(|page| {
            let run = |from, to, byte| (from * page, to * page, byte);
            let of = |runs: &[_]| image(vec![vma(16 * page, 32 * page)], runs).expect("good");
            let parent = of(&[run(16, 18, 1), run(18, 20, 2), run(24, 25, 3)]);
            let child = of(&[run(16, 18, 1), run(18, 21, 9), run(31, 32, 4)]);
            let mut compared = Compared::default();
            let all = inherit(&child, &parent, &mut compared).expect("read");
            let kept = all[0].as_ref().expect("kept");
            assert_eq!((compared.pages, compared.equal), (4, 2));
            assert_eq!(kept.discards, vec![24 * page..25 * page]);
            let pages = |run: &Stored| [run.start, run.end, run.offset].map(|at| at / page);
            let reads: Vec<_> = kept.reads.iter().map(pages).collect();
            assert_eq!(reads, [[18, 21, 2], [31, 32, 5]]);
        });
    }

    #[test]
    fn mappings_grow_and_shrink_but_do_not_change_their_nature() {
        let (small, large) = (vma(0x1000, 0x3000), vma(0x1000, 0x5000));
        assert_eq!(common(&small, &large), Some(0x1000..0x3000));
        assert_eq!(common(&large, &small), Some(0x1000..0x3000));
        let mut other = large;
        other.flags |= map::NORESERVE;
        assert_eq!(common(&small, &other), None);
        let mut stack = large;
        stack.flags |= map::GROWSDOWN;
        let mut lower = stack;
        lower.start = 0;
        assert_eq!(common(&stack, &lower), Some(0x1000..0x5000));
    }

    #[test]
    fn nothing_in_common() {
        let parent = image(vec![vma(0x1000, 0x3000)], &[(0x1000, 0x3000, 1)]).expect("good");
        let mut child = image(vec![vma(0x1000, 0x3000)], &[(0x1000, 0x3000, 2)]).expect("good");
        let mut compared = Compared::default();
        assert_eq!(
            inherit(&child, &parent, &mut compared).expect("read"),
            [None]
        );
        assert_eq!(compared.pages, 2);
        child.mm.exe_file_id = 5;
        assert_eq!(
            inherit(&child, &parent, &mut compared).expect("read"),
            [None]
        );
        assert_eq!(compared.pages, 2, "another program: not even compared");
    }
}
