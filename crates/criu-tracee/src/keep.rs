//! A few bytes that a task keeps when it is let go: the rest of a time to wait.
//!
//! A call that is issued again reads its timeout from memory. The program's own time must not change:
//! it may be a constant of a loop. So what is left of it lies in the tail of the vdso, below the place
//! of the stub, and the argument points there. Nothing else uses these bytes, the page is the task's own
//! copy from then on, and no mapping is added. There is room for some; who finds none waits longer.

use std::ops::Range;
use std::time::Duration;

use criu_arch::{Timeout, TimeoutForm};
use nix::unistd::Pid;

use crate::memory::Memory;
use crate::place;

const PAGE: usize = 4096;
/// Bytes of a time.
const SLOT: u64 = 16;
/// Zeros at the end of the image that are left alone: they may be part of it.
const MARGIN: usize = 64;

/// The free tail of a vdso, filled from its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    free: Range<u64>,
    /// The whole vdso.
    vdso: Range<u64>,
}

impl Tail {
    /// Looks at the vdso of a process.
    pub(crate) fn of(pid: Pid, memory: &Memory) -> Option<Self> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
        let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
        let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        let mut page = vec![0; PAGE];
        memory.read(end - PAGE as u64, &mut page).ok()?;
        Some(Self {
            free: free(&page, place::SIZE, end - PAGE as u64),
            vdso: start..end,
        })
    }

    /// Keeps a time, of a form that is an address; where the call finds it.
    pub(crate) fn keep(
        &mut self,
        memory: &Memory,
        timeout: &Timeout,
        rest: Duration,
    ) -> Option<u64> {
        let TimeoutForm::Timespec(half) = timeout.form else {
            return None;
        };
        let mut bytes = rest.as_secs().to_le_bytes()[..half].to_vec();
        bytes.extend(&u64::from(rest.subsec_nanos()).to_le_bytes()[..half]);
        // It was let go with one before, and still waits.
        let again = self.vdso.contains(&timeout.value).then_some(timeout.value);
        let at = match again {
            Some(at) => at,
            None if self.free.end - self.free.start >= SLOT => {
                self.free.end -= SLOT;
                self.free.end
            }
            None => return None,
        };
        memory.write(at, &bytes).ok()?;
        Some(at)
    }
}

/// The zeros of the last page, above whatever is there.
fn free(page: &[u8], stub: usize, at: u64) -> Range<u64> {
    let end = page.len() - stub;
    let used = page[..end]
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| (last + 1 + MARGIN).next_multiple_of(16));
    at + used.min(end) as u64..at + end as u64
}

/// Reads the time of a call that is not over.
pub(crate) fn whole(timeout: &Timeout, memory: &Memory) -> Option<Duration> {
    match timeout.form {
        TimeoutForm::Millis => Some(Duration::from_millis(timeout.value)),
        TimeoutForm::Timespec(half) => {
            let mut bytes = vec![0; 2 * half];
            memory.read(timeout.value, &mut bytes).ok()?;
            let word = |part: &[u8]| {
                part.iter()
                    .rev()
                    .fold(0u64, |all, byte| all << 8 | u64::from(*byte))
            };
            let nanos = u32::try_from(word(&bytes[half..])).ok()?;
            (nanos < 1_000_000_000).then(|| Duration::new(word(&bytes[..half]), nanos))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_image_and_the_place_of_the_stub_are_left_alone() {
        let mut page = vec![0; PAGE];
        page[999] = 1;
        page[PAGE - 1] = 1;
        assert_eq!(free(&page, 512, 0x1000), 0x1000 + 1072..0x1000 + 3584);
        page[3500] = 1;
        assert_eq!(free(&page, 512, 0x1000), 0x1000 + 3568..0x1000 + 3584);
        page[3580] = 1;
        assert!(free(&page, 512, 0).is_empty());
    }
}
