//! A few bytes that a task keeps when it is let go: the rest of a time to wait.
//!
//! A call that is issued again reads its timeout from memory. The program's own time must not change:
//! it may be a constant of a loop. So what is left of it lies at the very end of the vdso, where neither
//! the image nor the place of the stub reach, and the argument points there. Nothing else uses these
//! bytes, the page is the task's own copy from then on, and no mapping is added. There is room for some;
//! who finds none waits longer.

use std::ops::Range;
use std::time::Duration;

use criu_arch::{Timeout, TimeoutForm};
use nix::unistd::Pid;

use crate::memory::Memory;
use crate::place;

/// Bytes of a time.
const SLOT: usize = 16;
/// Bytes at the end of the vdso for such times.
pub(crate) const SIZE: usize = 16 * SLOT;

/// The end of a vdso.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// Where there is room for a time.
    free: Vec<u64>,
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
        place::tail(memory, &(start..end))?;
        let mut bytes = [0; SIZE];
        memory.read(end - SIZE as u64, &mut bytes).ok()?;
        Some(Self {
            free: free(&bytes, end - SIZE as u64),
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
        // Zeros would count as free.
        let rest = rest.max(Duration::from_nanos(1));
        let mut bytes = rest.as_secs().to_le_bytes()[..half].to_vec();
        bytes.extend(&u64::from(rest.subsec_nanos()).to_le_bytes()[..half]);
        // It was let go with one before, and still waits.
        let at = match self.vdso.contains(&timeout.value) {
            true => timeout.value,
            false => self.free.pop()?,
        };
        memory.write(at, &bytes).ok()?;
        Some(at)
    }
}

/// The slots that hold zeros. One that another call has finished with stays taken.
fn free(bytes: &[u8; SIZE], at: u64) -> Vec<u64> {
    let slots = bytes.chunks_exact(SLOT).enumerate();
    slots
        .filter(|(_, slot)| slot.iter().all(|byte| *byte == 0))
        .map(|(index, _)| at + (index * SLOT) as u64)
        .collect()
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
    fn what_is_not_zero_is_taken() {
        let mut bytes = [0; SIZE];
        (bytes[0], bytes[47]) = (1, 1);
        let slots = free(&bytes, 0x1000);
        assert_eq!((slots.len(), slots[0], slots[1]), (14, 0x1010, 0x1030));
    }
}
