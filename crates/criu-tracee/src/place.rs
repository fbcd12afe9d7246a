//! Where the stub lies in a task that we only visit.
//!
//! It goes into the tail of the vdso, behind the ELF image, where every task has some two kilobytes
//! that nothing uses; failing that, into the end of another executable mapping. Nobody runs there
//! while the whole process is stopped, and what was there is put back. So not even the first
//! call has to be made from a borrowed syscall instruction, after which a task without a tracer would
//! run into whatever follows: there is no moment at which the tracer may not die.

use std::fs;
use std::ops::Range;

use criu_arch::Arch;
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::native::Native;

/// Bytes taken: the stub and the leader's healing context.
pub(crate) const SIZE: usize = 512;
const HEAL_AT: usize = 256;

const _: () = assert!(Native::STUB.code.len() <= HEAL_AT && Native::HEAL_SIZE <= SIZE - HEAL_AT);

/// The borrowed bytes.
#[derive(Debug)]
pub(crate) struct Place {
    at: u64,
    before: Vec<u8>,
}

impl Place {
    /// Finds and fills a place. The process must be stopped as a whole.
    pub(crate) fn take(pid: Pid, memory: &Memory) -> Result<Self> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).map_err(|_| Error::Gone(pid))?;
        let mut spots: Vec<(bool, Range<u64>)> = maps.lines().filter_map(executable).collect();
        spots.sort_by_key(|(vdso, _)| !vdso);
        let mut fallback = None;
        for (_, range) in &spots {
            let at = range.end - SIZE as u64;
            let mut before = vec![0; SIZE];
            if memory.read(at, &mut before).is_err() {
                continue;
            }
            let free = before.iter().all(|byte| *byte == 0);
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

/// An executable mapping of at least a page, and whether it is the vdso.
fn executable(line: &str) -> Option<(bool, Range<u64>)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    if !fields.next()?.starts_with("r-x") || line.ends_with("[vsyscall]") {
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
}
