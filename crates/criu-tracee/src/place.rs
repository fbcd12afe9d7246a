//! Where the stub lies in a task that we only visit.
//!
//! It goes into the tail of the vdso, behind the segment that a program can see there, where every task
//! has one or two kilobytes that nothing uses; failing that, into the end of another executable mapping.
//! Nobody runs there while the whole process is stopped, and what was there is put back. So not even the first
//! call has to be made from a borrowed syscall instruction, after which a task without a tracer would
//! run into whatever follows: there is no moment at which the tracer may not die.

use std::ops::Range;

use criu_arch::Arch;
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::keep;
use crate::look::read;
use crate::memory::Memory;
use crate::native::Native;

/// Where the leader's healing context lies: behind the stub.
const HEAL_AT: usize = Native::STUB.code.len().next_multiple_of(16);

/// Bytes taken: the stub and the leader's healing context.
pub(crate) const SIZE: usize = (HEAL_AT + Native::HEAL_SIZE).next_multiple_of(16);

/// The borrowed bytes.
#[derive(Debug)]
pub(crate) struct Place {
    at: u64,
    before: Vec<u8>,
}

impl Place {
    /// Finds and fills a place. The process must be stopped as a whole.
    pub(crate) fn take(pid: Pid, memory: &Memory) -> Result<Self> {
        let maps = read(&format!("/proc/{pid}/maps")).map_err(|_| Error::Gone(pid))?;
        // Files may have names of any bytes.
        let maps = String::from_utf8_lossy(&maps);
        let mut spots: Vec<(bool, Range<u64>)> = maps.lines().filter_map(executable).collect();
        spots.sort_by_key(|(vdso, _)| !vdso);
        let mut fallback = None;
        for (is_vdso, range) in &spots {
            let tail = if *is_vdso { tail(memory, range) } else { None };
            let (at, known_free) = match tail {
                Some(at) => (at, true),
                None => (range.end - SIZE as u64, false),
            };
            let mut before = vec![0; SIZE];
            if memory.read(at, &mut before).is_err() {
                continue;
            }
            let free = known_free || is_filler(&before);
            let place = Self { at, before };
            if free {
                return place.fill(memory);
            }
            fallback.get_or_insert(place);
        }
        fallback.ok_or(Error::NoPlace(pid))?.fill(memory)
    }

    fn fill(self, memory: &Memory) -> Result<Self> {
        memory.write(self.at, Native::STUB.code)?;
        Ok(self)
    }

    pub(crate) fn code(&self) -> u64 {
        self.at
    }

    pub(crate) fn heal(&self) -> u64 {
        self.at + HEAL_AT as u64
    }

    /// Where it is, and what was there.
    pub(crate) fn before(&self) -> (u64, &[u8]) {
        (self.at, &self.before)
    }

    /// Puts back what was there.
    pub(crate) fn give_back(self, memory: &Memory) -> Result<()> {
        memory.write(self.at, &self.before)
    }
}

/// The first byte behind what a vdso shows of itself, if the stub fits there below the bytes that
/// [`crate::keep`] takes. Section headers may follow: they are for debuggers, and are put back.
pub(crate) fn tail(memory: &Memory, vdso: &Range<u64>) -> Option<u64> {
    let mut head = [0; 1024];
    memory.read(vdso.start, &mut head).ok()?;
    let at = (vdso.start + loaded(&head)?).next_multiple_of(16);
    (at + (SIZE + keep::SIZE) as u64 <= vdso.end).then_some(at)
}

/// The end of the last loadable segment of an ELF image that is mapped as it is.
fn loaded(head: &[u8; 1024]) -> Option<u64> {
    const PT_LOAD: u64 = 1;
    let number = |at: usize, width: usize| {
        let bytes = head.get(at..at + width)?.iter().rev();
        Some(bytes.fold(0u64, |all, byte| all << 8 | u64::from(*byte)))
    };
    // Header: offset, size and number of program headers; program header: offset and size in the file.
    let (phoff, phentsize, phnum, offset, filesz, word) = match head.get(..5)? {
        b"\x7fELF\x02" => (32, 54, 56, 8, 32, 8),
        b"\x7fELF\x01" => (28, 42, 44, 4, 16, 4),
        _ => return None,
    };
    let (table, size) = (number(phoff, word)?, number(phentsize, 2)?);
    let mut end = None;
    for index in 0..number(phnum, 2)? {
        let at = usize::try_from(table.checked_add(index * size)?).ok()?;
        if number(at, 4)? == PT_LOAD {
            let last = number(at + offset, word)?.checked_add(number(at + filesz, word)?)?;
            end = end.max(Some(last));
        }
    }
    end
}

/// Zeros, or one instruction all over, as in what 32-bit ARM leaves of its `[sigpage]`.
fn is_filler(bytes: &[u8]) -> bool {
    bytes.chunks_exact(4).all(|word| word == &bytes[..4])
}

/// An executable mapping of at least a page, and whether it is the vdso.
fn executable(line: &str) -> Option<(bool, Range<u64>)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    if !fields.next()?.starts_with("r-x")
        || line.ends_with("[vsyscall]")
        || line.ends_with("[vectors]")
    {
        return None;
    }
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    (end - start >= SIZE as u64).then_some((line.ends_with("[vdso]"), start..end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_readable_executable_mappings_count() {
        let vdso = "7ffd1000-7ffd3000 r-xp 00000000 00:00 0                          [vdso]";
        assert_eq!(executable(vdso), Some((true, 0x7ffd_1000..0x7ffd_3000)));
        assert_eq!(executable("7ffd1000-7ffd3000 rw-p 00000000 00:00 0"), None);
        assert_eq!(
            executable("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]"),
            None
        );
    }

    #[test]
    fn the_segment_ends_where_the_header_says() {
        let mut head = [0; 1024];
        head[..5].copy_from_slice(b"\x7fELF\x02");
        (head[32], head[54], head[56]) = (64, 56, 2);
        (head[64], head[64 + 33]) = (1, 9);
        (head[120], head[120 + 8], head[120 + 32]) = (2, 9, 9);
        assert_eq!(loaded(&head), Some(0x900));
        head[56] = 200;
        assert_eq!(loaded(&head), None);
        assert_eq!(loaded(&[0; 1024]), None);
    }

    #[test]
    fn filler_is_one_word() {
        assert!(is_filler(&[0; 32]) && is_filler(&[1, 2, 3, 4].repeat(8)));
        assert!(!is_filler(&[0, 0, 0, 0, 0, 0, 0, 1]));
    }
}
