//! Mappings of io_uring(7), put where they were.
//!
//! The kernel chooses where a ring is mapped and does not let it be moved: `io_uring_get_unmapped_area` in
//! `io_uring/memmap.c` refuses every address. So all other holes are closed for the moment.

use std::ops::Range;

use criu_image::pb;
use criu_kind::{Error, FileFds, Result};
use criu_proc::{MapName, ProcDir, Vmas};
use criu_tracee::arch::Arch;
use criu_tracee::{Native, Program, Site, Tracee};

use crate::bits::{madv, map, prot};
use crate::fill::file_id;
use crate::image::{Backing, SpaceImage, backing};
use crate::page_size;

/// Maps the rings of a process, when all else is mapped.
pub(crate) fn restore(tracee: &mut Tracee, image: &SpaceImage, files: &dyn FileFds) -> Result<()> {
    for vma in image.vmas() {
        if backing(vma) == Backing::Ring {
            map_one(tracee, vma, files.fd(file_id(vma)?)?)?;
        }
    }
    Ok(())
}

fn map_one(tracee: &mut Tracee, vma: &pb::VmaEntry, fd: i32) -> Result<()> {
    const PLUG: u32 = map::PRIVATE | map::ANONYMOUS | map::NORESERVE | map::FIXED_NOREPLACE;
    let maps = ProcDir::open(tracee.pid())?.read("maps")?;
    let mut busy = Vec::new();
    for vma in Vmas::new(&maps) {
        let vma = vma.map_err(criu_proc::Error::from)?;
        if !matches!(vma.name, MapName::Vsyscall | MapName::Vectors) {
            busy.push(vma.start..vma.end);
        }
    }
    let wanted = vma.start..vma.end;
    let size = wanted.end - wanted.start;
    let lowest = lowest();
    // Some kernels take what is below for who may have it, others for nobody.
    let low = page_size()..lowest;
    let holes = holes(&busy, &wanted, lowest);
    let mut program = Program::new();
    if !low.is_empty() {
        program.mmap(low.start, low.end - low.start, 0, PLUG, -1, 0);
        program.tolerate();
    }
    for hole in &holes {
        program.mmap(hole.start, hole.end - hole.start, 0, PLUG, -1, 0);
    }
    let at = program.mmap(0, size, vma.prot & prot::KNOWN, map::SHARED, fd, vma.pgoff);
    for hole in holes.iter().chain([&low]).filter(|hole| !hole.is_empty()) {
        program.munmap(hole.start, hole.end - hole.start);
    }
    let kept = madv::KEPT.iter().map(|(advice, _)| *advice);
    for advice in kept.filter(|advice| vma.madv() >> advice & 1 == 1) {
        program.madvise(vma.start, size, advice);
        program.tolerate();
    }
    let at = tracee.run(&program)?.word(at);
    if at == vma.start {
        return Ok(());
    }
    Err(Error::unsupported(
        format!("the kernel puts the ring of {:#x} at {at:#x}", vma.start),
        "restore it on the kernel of the dump",
    ))
}

/// All that is free below the highest mapping, except for what is wanted.
fn holes(busy: &[Range<u64>], wanted: &Range<u64>, lowest: u64) -> Vec<Range<u64>> {
    let mut busy = busy.to_vec();
    busy.push(wanted.clone());
    busy.sort_by_key(|range| range.start);
    let mut at = lowest;
    let mut holes = Vec::new();
    for range in busy {
        if at < range.start {
            holes.push(at..range.start);
        }
        at = at.max(range.end);
    }
    holes
}

/// Where mappings may begin: `vm.mmap_min_addr`, and what the machine has reserved.
fn lowest() -> u64 {
    let set = std::fs::read_to_string("/proc/sys/vm/mmap_min_addr").ok();
    let set = set.and_then(|set| set.trim().parse().ok());
    set.unwrap_or(0)
        .max(Native::CALLS.first_user_page * page_size())
        .next_multiple_of(page_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_hole_is_closed() {
        let busy = [0x8000..0x9000, 0x1_0000..0x2_0000];
        assert_eq!(
            holes(&busy, &(0x9000..0xa000), 0x1000),
            [0x1000..0x8000, 0xa000..0x1_0000]
        );
        // Above all others too.
        assert_eq!(
            holes(&busy, &(0x4_0000..0x4_1000), 0x1000),
            [0x1000..0x8000, 0x9000..0x1_0000, 0x2_0000..0x4_0000]
        );
    }
}
