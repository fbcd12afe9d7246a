//! A new task's memory emptied of the driver's.

use std::ops::Range;

use criu_kind::Result;
use criu_proc::{MapName, ProcDir, Vmas};
use criu_tracee::{Program, Site, Tracee};

use crate::ground::Ground;

/// `RSEQ_FLAG_UNREGISTER`.
const UNREGISTER: u32 = 1;

/// Takes out of the first task all that it was cloned with, but the nursery and the vdso, which is
/// parked behind it.
pub fn clear(tracee: &mut Tracee, ground: &Ground) -> Result<()> {
    let mut program = Program::new();
    // First: the kernel writes to the registered area whenever the task returns to user mode.
    if let Some(rseq) = tracee.threads()[0].stopped()?.rseq()?
        && rseq.rseq_abi_pointer != 0
    {
        let (area, size) = (rseq.rseq_abi_pointer, rseq.rseq_abi_size);
        program.rseq(area, size, UNREGISTER, rseq.signature);
    }
    if let Some(vdso) = &ground.vdso {
        let sigpage = vdso.sigpage.iter().map(|(range, _)| range);
        for part in vdso.parts.iter().chain(sigpage) {
            remap(&mut program, part, ground.parked(vdso, part).start);
        }
    }
    tracee.run(&program)?;
    let maps = ProcDir::open(tracee.pid())?.read("maps")?;
    let mut program = Program::new();
    for range in foreign(&maps, &ground.kept())? {
        program.munmap(range.start, range.end - range.start);
    }
    tracee.run(&program)?;
    Ok(())
}

/// Adds the call that moves a mapping.
pub(crate) fn remap(program: &mut Program, from: &Range<u64>, to: u64) {
    let size = from.end - from.start;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    program.mremap(from.start, size, size, flags, to);
}

/// What is to go, in few ranges: all from the first mapping to what is kept, and from there to the last.
fn foreign(maps: &[u8], kept: &Range<u64>) -> Result<Vec<Range<u64>>> {
    let (mut below, mut above): (Option<Range<u64>>, Option<Range<u64>>) = (None, None);
    for vma in Vmas::new(maps) {
        let vma = vma.map_err(criu_proc::Error::from)?;
        if matches!(vma.name, MapName::Vsyscall | MapName::Vectors) {
            continue;
        }
        let side = if vma.end <= kept.start {
            &mut below
        } else if vma.start >= kept.end {
            &mut above
        } else {
            continue;
        };
        side.get_or_insert(vma.start..vma.end).end = vma.end;
    }
    Ok(below.into_iter().chain(above).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_what_is_kept() {
        let maps = b"1000-2000 r-xp 0 00:00 0\n5000-6000 rw-p 0 00:00 0\n8000-9000 rw-p 0 00:00 0\n\
            c000-d000 rw-p 0 00:00 0 [stack]\nffffffffff600000-ffffffffff601000 --xp 0 00:00 0 [vsyscall]\n";
        let ranges = foreign(maps, &(0x8000..0xa000)).expect("well-formed");
        assert_eq!(ranges, [0x1000..0x6000, 0xc000..0xd000]);
    }
}
