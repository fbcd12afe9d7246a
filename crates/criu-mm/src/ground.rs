//! Where the engine's own memory lies while a tree is built: in a hole that all have in common.

use std::fs::File;
use std::ops::Range;

use criu_kind::{Error, Result};
use criu_proc::{MapName, ProcDir, Vmas};
use criu_tracee::Nursery;
use nix::unistd::Pid;

use crate::image::SpaceImage;
use crate::page_size;
use crate::vdso::OwnVdso;

/// Distance to everything else: the kernel keeps a stack from growing near other mappings.
const MARGIN: u64 = 2 << 20;
/// Where to look first: above what 32-bit programs use.
const FROM: u64 = 1 << 32;

/// Room for the nursery, and behind it for the vdso that tasks are born with.
#[derive(Debug)]
pub struct Ground {
    nursery: Range<u64>,
    threads: usize,
    pub(crate) park: u64,
    pub(crate) vdso: Option<OwnVdso>,
}

impl Ground {
    /// Finds room that is free in every image and in the driver. The driver should map the nursery
    /// there soon: what it maps later may come to lie there.
    pub fn find(images: &[SpaceImage], threads: usize) -> Result<Self> {
        let maps = ProcDir::open(Pid::this())?.read("maps")?;
        let mut own = Vec::new();
        for vma in Vmas::new(&maps) {
            let vma = vma.map_err(criu_proc::Error::from)?;
            if !matches!(vma.name, MapName::Vsyscall | MapName::Vectors) {
                own.push(vma.start..vma.end);
            }
        }
        let highest = own.iter().map(|range| range.end).max().unwrap_or(0);
        let memory = File::open("/proc/self/mem").map_err(Error::io("open(/proc/self/mem)"))?;
        let vdso = OwnVdso::find(&maps, &memory)?;
        let size = Nursery::size_for(threads);
        let park = vdso
            .as_ref()
            .map_or(0, |vdso| vdso.span.end - vdso.span.start);
        let busy = own
            .into_iter()
            .chain(images.iter().flat_map(SpaceImage::busy));
        // A call of 32-bit code reaches no further.
        let low = |image: &SpaceImage| image.busy().all(|range| range.end <= FROM);
        let highest = if images.iter().any(low) {
            highest.min(FROM)
        } else {
            highest
        };
        let at = hole(busy.collect(), size + park, highest).ok_or_else(|| {
            let fact = format!(
                "no address range of {} bytes is free in all processes",
                size + park
            );
            Error::unsupported(fact, "restore fewer processes at once")
        })?;
        Ok(Self {
            nursery: at..at + size,
            threads,
            park: at + size,
            vdso,
        })
    }

    #[cfg(test)]
    pub(crate) fn without_vdso(at: u64) -> Self {
        Self {
            nursery: at..at + 0x1_0000,
            threads: 1,
            park: at + 0x1_0000,
            vdso: None,
        }
    }

    /// Maps the nursery in the driver.
    pub fn nursery(&self) -> Result<Nursery> {
        Ok(Nursery::map(self.nursery.start, self.threads)?)
    }

    /// Where a part of the driver's vdso is parked.
    pub(crate) fn parked(&self, own: &OwnVdso, part: &Range<u64>) -> Range<u64> {
        let at = self.park + (part.start - own.span.start);
        at..at + (part.end - part.start)
    }

    /// What is not the program's until all is done.
    pub(crate) fn kept(&self) -> Range<u64> {
        let span = self
            .vdso
            .as_ref()
            .map_or(0, |vdso| vdso.span.end - vdso.span.start);
        self.nursery.start..self.park + span
    }
}

/// The lowest hole of `size` bytes in `busy`, with a margin around it, below `highest`.
pub(crate) fn hole(mut busy: Vec<Range<u64>>, size: u64, highest: u64) -> Option<u64> {
    busy.sort_by_key(|range| range.start);
    [FROM, page_size().max(0x1_0000)]
        .into_iter()
        .find_map(|from| {
            let mut at = from;
            for range in &busy {
                if range.start.saturating_sub(MARGIN) >= at.checked_add(size)? {
                    break;
                }
                // 64 KiB: the largest page of any machine here.
                let behind = range.end.checked_add(MARGIN)?;
                at = at.max(behind.checked_next_multiple_of(0x1_0000)?);
            }
            let free = busy
                .iter()
                .all(|range| range.end <= at || range.start.saturating_sub(MARGIN) >= at + size);
            (free && at.checked_add(size)? <= highest).then_some(at)
        })
}

#[cfg(test)]
#[allow(
    clippy::single_range_in_vec_init,
    reason = "a list of one range is meant"
)]
mod tests {
    use super::*;

    const TOP: u64 = 1 << 47;

    #[test]
    fn the_first_hole_that_fits() {
        assert_eq!(hole(vec![], 0x1000, TOP), Some(FROM));
        // A gap that an address to start from just misses is none.
        let (size, most) = (0x8_1000, FROM);
        let tight = [0x1_0000..0x1_8000, 0x49_a000..FROM - 0x100_0000];
        assert_eq!(
            hole(tight.to_vec(), size, most),
            Some(FROM - 0x100_0000 + MARGIN)
        );
        let low = 0x5000..FROM + 0x1000;
        assert_eq!(
            hole(vec![low.clone()], 0x1000, TOP),
            Some(FROM + MARGIN + 0x1_0000)
        );
        // Too small a gap between the two.
        let next = FROM + 4 * MARGIN..FROM + 5 * MARGIN;
        let at = hole(vec![next, low], 3 * MARGIN, TOP).expect("above");
        assert_eq!(at, FROM + 6 * MARGIN);
    }

    #[test]
    fn below_when_all_above_is_taken() {
        assert_eq!(
            hole(vec![FROM - (1 << 30)..TOP], 1 << 20, TOP),
            Some(0x1_0000)
        );
        assert_eq!(hole(vec![0..TOP], 1 << 20, TOP), None);
        assert_eq!(hole(vec![0..u64::MAX], 1 << 20, u64::MAX), None);
        assert_eq!(hole(vec![], u64::MAX, TOP), None);
    }
}
