//! Which pages of an address space are its own.
//!
//! `PAGEMAP_SCAN` (Linux 6.7) answers by runs; older kernels give `/proc/PID/pagemap`, a word a page.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use criu_kind::{Error, Result};
use criu_proc::{PageEntry, ProcDir, page_entries};
use criu_tracee::{PagemapScan, Region};
use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::page_size;
use crate::survey::{Area, AreaKind};

/// Runs that are looked at together, about: what they take in memory does not grow with the process.
const SLICE: usize = 16 << 10;
/// Bytes of runs that are written together, about: a store may sum them while the next are written.
const SLICE_BYTES: u64 = 32 << 20;
/// Bytes scanned at a time: no more than a slice of runs, where each other page is one.
const STEP: u64 = 32 << 20;
/// What lies between two areas that are scanned by one call, at most: what little it has costs less than a call.
const GAP: u64 = 64 << 10;

/// Pages to be written, all of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) readable: bool,
    pub(crate) lazy: bool,
}

/// What an address space has.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) runs: Vec<Run>,
    pub(crate) guards: Vec<Range<u64>>,
    pub(crate) pages_scanned: u64,
    bytes: u64,
}

impl Found {
    /// Takes in what of the regions lies in an area, and leaves what comes behind it.
    fn take(&mut self, area: &Area, regions: &mut &[Region], stacks: &[u64]) {
        while let Some((region, rest)) = regions.split_first()
            && region.start < area.end
        {
            let part = Region {
                start: region.start.max(area.start),
                end: region.end.min(area.end),
                ..*region
            };
            // Otherwise it lies in a gap.
            if part.start < part.end {
                if part.categories & PagemapScan::GUARD != 0 {
                    push_guard(&mut self.guards, part.start..part.end);
                } else {
                    split(area, &part, stacks, &mut self.runs);
                    self.bytes += part.end - part.start;
                }
            }
            if region.end > area.end {
                break;
            }
            *regions = rest;
        }
    }
}

/// A scan of an address space on its way.
#[derive(Debug)]
pub(crate) struct Walk {
    pagemap: File,
    stacks: Vec<u64>,
    area: usize,
    at: u64,
}

impl Walk {
    /// Before the first area of a process whose threads have these stack pointers.
    pub(crate) fn new(proc: &ProcDir, mut stacks: Vec<u64>) -> Result<Self> {
        stacks.sort_unstable();
        Ok(Self {
            pagemap: proc.open_file("pagemap", OFlag::O_RDONLY)?.into(),
            stacks,
            area: 0,
            at: 0,
        })
    }
}

/// Joins what a step has cut.
pub(crate) fn push_guard(guards: &mut Vec<Range<u64>>, range: Range<u64>) {
    match guards.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => guards.push(range),
    }
}

/// How this kernel tells pages apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `PAGEMAP_SCAN` with guard pages, Linux 6.15.
    ScanGuards,
    /// `PAGEMAP_SCAN`, Linux 6.7.
    Scan,
    /// Word by word.
    Entries,
}

/// Scans address spaces; remembers what the kernel can do.
#[derive(Debug)]
pub(crate) struct Scanner {
    way: Way,
    zero_frame: Option<u64>,
}

impl Scanner {
    pub(crate) fn new() -> Self {
        Self {
            way: Way::ScanGuards,
            zero_frame: None,
        }
    }

    /// Scans on from where `walk` is; `None` at its end. Pages that hold a stack pointer are not lazy.
    pub(crate) fn slice(&mut self, walk: &mut Walk, areas: &[Area]) -> Result<Option<Found>> {
        let mut found = Found::default();
        let mut regions = Vec::new();
        while found.runs.len() < SLICE && found.bytes < SLICE_BYTES {
            let Some(area) = areas.get(walk.area) else {
                break;
            };
            let at = walk.at.max(area.start);
            let limit = at.saturating_add(STEP);
            let together = group(&areas[walk.area..], limit);
            let last = &areas[walk.area + together - 1];
            let end = last.end.min(limit);
            regions.clear();
            match area.kind {
                AreaKind::Shared { .. } => {}
                AreaKind::Whole => {
                    found.bytes += end - at;
                    found.runs.push(Run {
                        start: at,
                        end,
                        readable: false,
                        lazy: false,
                    });
                }
                AreaKind::Anonymous => self.regions(&walk.pagemap, at..end, 0, &mut regions)?,
                AreaKind::File => {
                    self.regions(&walk.pagemap, at..end, PagemapScan::FILE, &mut regions)?;
                }
            }
            let mut left = regions.as_slice();
            for area in &areas[walk.area..walk.area + together] {
                let part = Area {
                    start: area.start.max(at),
                    end: area.end.min(end),
                    ..area.clone()
                };
                if !matches!(part.kind, AreaKind::Shared { .. }) {
                    found.pages_scanned += (part.end - part.start) / page_size();
                }
                found.take(&part, &mut left, &walk.stacks);
            }
            walk.at = end;
            walk.area += together - usize::from(end < last.end);
        }
        let end = found.pages_scanned == 0 && walk.area == areas.len();
        Ok((!end).then_some(found))
    }

    /// Pages of the range that are anywhere, without the zero page and without those that are `not`.
    fn regions(
        &mut self,
        pagemap: &File,
        range: Range<u64>,
        not: u64,
        regions: &mut Vec<Region>,
    ) -> Result<()> {
        loop {
            let guard = match self.way {
                Way::ScanGuards => PagemapScan::GUARD,
                Way::Scan => 0,
                Way::Entries => return self.entries(pagemap, range, not != 0, regions),
            };
            let scan = PagemapScan {
                required: PagemapScan::PFNZERO | not,
                any_of: PagemapScan::PRESENT | PagemapScan::SWAPPED,
                inverted: PagemapScan::PFNZERO | not,
                returned: guard,
            };
            match scan
                .scan(pagemap, range.start, range.end, regions)
                .map_err(Error::from)
            {
                Err(error) if error.errno() == Some(Errno::EINVAL) && guard != 0 => {
                    self.way = Way::Scan;
                }
                Err(error) if error.errno() == Some(Errno::ENOTTY) => self.way = Way::Entries,
                other => return other,
            }
            regions.clear();
        }
    }

    fn entries(
        &mut self,
        pagemap: &File,
        range: Range<u64>,
        not_file: bool,
        regions: &mut Vec<Region>,
    ) -> Result<()> {
        const ENTRIES: usize = 8192;
        let page = page_size();
        let zero = *self
            .zero_frame
            .get_or_insert_with(|| zero_frame().unwrap_or(0));
        let mut buffer = vec![0; ENTRIES * 8];
        let mut at = range.start;
        while at < range.end {
            let left = usize::try_from((range.end - at) / page).unwrap_or(usize::MAX);
            let wanted = left.min(ENTRIES) * 8;
            pagemap
                .read_exact_at(&mut buffer[..wanted], at / page * 8)
                .map_err(Error::io("pread(/proc/PID/pagemap)"))?;
            let entries = page_entries(&buffer[..wanted]);
            join(
                entries.map(|entry| category(entry, not_file, zero)),
                &mut at,
                regions,
            );
        }
        Ok(())
    }
}

/// Makes regions of pages, the first of which is at `at`; moves that behind the last.
fn join(pages: impl Iterator<Item = Option<u64>>, at: &mut u64, regions: &mut Vec<Region>) {
    for categories in pages {
        let (start, end) = (*at, *at + page_size());
        *at = end;
        let Some(categories) = categories else {
            continue;
        };
        match regions.last_mut() {
            Some(last) if last.end == start && last.categories == categories => last.end = end,
            _ => regions.push(Region {
                start,
                end,
                categories,
            }),
        }
    }
}

/// How many areas from the first one on are scanned by one call.
fn group(areas: &[Area], limit: u64) -> usize {
    let kind = areas[0].kind;
    if !matches!(kind, AreaKind::Anonymous | AreaKind::File) {
        return 1;
    }
    let near = |pair: &&[Area]| {
        let [one, next] = pair else { return false };
        next.kind == kind && next.start < limit && next.start.saturating_sub(one.end) <= GAP
    };
    1 + areas.windows(2).take_while(near).count()
}

/// What a page is, or `None` if there is nothing to write of it.
fn category(entry: PageEntry, not_file: bool, zero: u64) -> Option<u64> {
    if entry.guard() {
        return Some(PagemapScan::GUARD);
    }
    let there = entry.present() || entry.swapped();
    let files = not_file && entry.file_or_shared();
    let zero = zero != 0 && entry.frame() == Some(zero);
    (there && !files && !zero).then_some(0)
}

/// Cuts a region into runs that are lazy or not.
fn split(area: &Area, region: &Region, stacks: &[u64], runs: &mut Vec<Run>) {
    let page = page_size();
    let run = |start, end, lazy| Run {
        start,
        end,
        readable: area.readable,
        lazy,
    };
    let mut start = region.start;
    if area.lazy {
        let pages = stacks.iter().map(|sp| sp & !(page - 1));
        for eager in pages.filter(|at| (region.start..region.end).contains(at)) {
            if eager < start {
                continue; // Two threads on one page.
            }
            if start < eager {
                runs.push(run(start, eager, true));
            }
            runs.push(run(eager, eager + page, false));
            start = eager + page;
        }
    }
    if start < region.end {
        runs.push(run(start, region.end, area.lazy));
    }
}

/// The frame of the zero page: what backs memory that was read and never written.
fn zero_frame() -> Option<u64> {
    const SIZE: usize = 1 << 20;
    let page = page_size();
    // Large enough for the allocator to map it afresh, too small for a huge page.
    let memory = vec![0u8; SIZE];
    let middle = &memory[SIZE / 2];
    let read = std::hint::black_box(*middle);
    let at = std::ptr::from_ref(middle).addr() as u64 / page * 8 + u64::from(read);
    let mut entry = [0; 8];
    let pagemap = File::open("/proc/self/pagemap").ok()?;
    pagemap.read_exact_at(&mut entry, at).ok()?;
    PageEntry(u64::from_ne_bytes(entry)).frame()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::tests::each_size;

    #[test]
    fn both_ways_agree_about_ourselves() {
        let proc = ProcDir::open(nix::unistd::Pid::this()).expect("we live");
        let mut memory = vec![0u8; 64 << 20];
        let page = page_size();
        for at in (0..memory.len()).step_by(usize::try_from(3 * page).expect("small")) {
            memory[at] = 7;
        }
        let start = (memory.as_ptr().addr() as u64).next_multiple_of(page);
        let area = Area {
            start,
            end: start + (32 << 20),
            kind: AreaKind::Anonymous,
            readable: true,
            lazy: true,
        };
        let stacks = [start + (3 << 20) + 5];
        let mut scanner = Scanner::new();
        let mut all = |way| {
            scanner.way = way;
            let areas = std::slice::from_ref(&area);
            let mut walk = Walk::new(&proc, stacks.to_vec()).expect("readable");
            let first = scanner
                .slice(&mut walk, areas)
                .expect("readable")
                .expect("some");
            assert!(scanner.slice(&mut walk, areas).expect("readable").is_none());
            first
        };
        let by_scan = all(Way::ScanGuards);
        let by_entry = all(Way::Entries);
        assert_eq!(by_scan.runs, by_entry.runs);
        let pages = (32 << 20) / page;
        let many = usize::try_from(pages / 4).expect("small");
        assert!(by_scan.runs.len() > many, "{}", by_scan.runs.len());
        assert_eq!(by_scan.pages_scanned, pages);
    }

    #[test]
    fn neighbours_are_scanned_together_and_told_apart() {
        let proc = ProcDir::open(nix::unistd::Pid::this()).expect("we live");
        let page = page_size();
        let memory = vec![7u8; 1 << 20];
        let start = (memory.as_ptr().addr() as u64).next_multiple_of(page);
        let area = |from: u64, to: u64, readable| Area {
            start: start + from * page,
            end: start + to * page,
            kind: AreaKind::Anonymous,
            readable,
            lazy: false,
        };
        // The second begins where the first ends, the third behind a gap.
        let areas = [area(0, 3, true), area(3, 5, false), area(8, 9, true)];
        assert_eq!(group(&areas, u64::MAX), 3);
        assert_eq!(group(&areas, areas[1].end), 2);
        for way in [Way::ScanGuards, Way::Entries] {
            let mut scanner = Scanner::new();
            scanner.way = way;
            let mut walk = Walk::new(&proc, Vec::new()).expect("readable");
            let found = scanner.slice(&mut walk, &areas).expect("readable");
            let found = found.expect("pages");
            assert_eq!(found.pages_scanned, 6);
            let got: Vec<_> = found
                .runs
                .iter()
                .map(|run| {
                    let pages = [run.start, run.end].map(|at| (at - start) / page);
                    (pages, run.readable)
                })
                .collect();
            assert_eq!(got, [([0, 3], true), ([3, 5], false), ([8, 9], true)]);
            assert!(
                scanner
                    .slice(&mut walk, &areas)
                    .expect("readable")
                    .is_none()
            );
        }
    }

    #[test]
    fn the_page_of_a_stack_pointer_is_not_lazy() {
        each_size(|page| {
            let area = Area {
                start: 0,
                end: 10 * page,
                kind: AreaKind::Anonymous,
                readable: true,
                lazy: true,
            };
            let region = Region {
                start: 2 * page,
                end: 6 * page,
                categories: 0,
            };
            let stacks = [page, 3 * page + 9, 3 * page + page / 2];
            let mut runs = Vec::new();
            split(&area, &region, &stacks, &mut runs);
            let pages = |run: &Run| (run.start / page, run.end / page, run.lazy);
            let got: Vec<_> = runs.iter().map(pages).collect();
            assert_eq!(got, [(2, 3, true), (3, 4, false), (4, 6, true)]);
        });
    }

    #[test]
    fn pages_of_one_sort_join() {
        each_size(|page| {
            let (mut at, mut regions) = (8 * page, Vec::new());
            let some = [Some(0), Some(0), None, Some(0), Some(PagemapScan::GUARD)];
            join(some.into_iter(), &mut at, &mut regions);
            // The next read of the pagemap.
            join(
                [Some(PagemapScan::GUARD)].into_iter(),
                &mut at,
                &mut regions,
            );
            assert_eq!(at, 14 * page);
            let pages = |region: &Region| (region.start / page, region.end / page);
            let got: Vec<_> = regions.iter().map(pages).collect();
            assert_eq!(got, [(8, 10), (11, 12), (12, 14)]);
        });
    }
}
