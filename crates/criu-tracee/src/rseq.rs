//! Restartable sequences: rseq(2).
//!
//! A thread stopped inside a critical section must not go on there after it ran our calls: the kernel
//! forgets the section as soon as the thread returns to user mode anywhere else, so the rest of it
//! would run unprotected. It goes on at the section's abort handler instead, as after any preemption.
//!
//! `kernel/rseq.c`, `rseq_ip_fixup`; `include/uapi/linux/rseq.h`.

use crate::error::Result;
use crate::memory::Memory;
use crate::ptrace::RseqConfiguration;
use crate::stop::Stopped;

/// Offset in `struct rseq` of the pointer to the critical section; flags follow it.
const RSEQ_CS: u64 = 8;

/// `RSEQ_CS_FLAG_NO_RESTART_ON_SIGNAL`; kernels since 6.0 know it no more.
const NO_RESTART_ON_SIGNAL: u32 = 1 << 1;

/// What a thread has registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rseq {
    /// Where, and how large.
    pub configuration: RseqConfiguration,
    /// The descriptor of a critical section that wants to go on even after a signal: whoever resumes
    /// the thread puts its address back into the area.
    pub kept: Option<u64>,
}

impl Rseq {
    /// What `stopped` has registered, and where it goes on if it stands at `ip` in a critical section.
    pub(crate) fn of(
        stopped: &Stopped,
        memory: &Memory,
        ip: u64,
    ) -> Result<(Option<Self>, Option<u64>)> {
        let Some(configuration) = stopped.rseq()? else {
            return Ok((None, None));
        };
        if configuration.rseq_abi_pointer == 0 {
            return Ok((None, None));
        }
        let area = Area::read(memory, configuration.rseq_abi_pointer);
        let keeps = area.is_some_and(|area| area.flags & NO_RESTART_ON_SIGNAL != 0);
        let rseq = Self {
            configuration,
            kept: area.filter(|_| keeps).map(|area| area.section),
        };
        let abort = area.filter(|area| !keeps && area.holds(ip));
        Ok((Some(rseq), abort.map(|area| area.abort)))
    }

    /// Puts a section back that wants to go on.
    pub(crate) fn put_back(&self, memory: &Memory) -> Result<()> {
        match self.kept {
            Some(section) => memory.write(
                self.configuration.rseq_abi_pointer + RSEQ_CS,
                &section.to_ne_bytes(),
            ),
            None => Ok(()),
        }
    }
}

/// The critical section that an area names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Area {
    section: u64,
    start: u64,
    length: u64,
    abort: u64,
    flags: u32,
}

impl Area {
    /// `None` without a section, or where the program keeps nonsense there: that is between it and the
    /// kernel.
    fn read(memory: &Memory, at: u64) -> Option<Self> {
        let mut head = [0; 12];
        memory.read(at + RSEQ_CS, &mut head).ok()?;
        let section = u64::from_ne_bytes(head[..8].try_into().ok()?);
        let area_flags = u32::from_ne_bytes(head[8..].try_into().ok()?);
        if section == 0 {
            return None;
        }
        let mut descriptor = [0; 32];
        memory.read(section, &mut descriptor).ok()?;
        Self::parse(section, area_flags, &descriptor)
    }

    /// `struct rseq_cs`: version, flags, start, length, abort handler.
    fn parse(section: u64, area_flags: u32, descriptor: &[u8; 32]) -> Option<Self> {
        let half = |at: usize| Some(u32::from_ne_bytes(descriptor[at..at + 4].try_into().ok()?));
        let word = |at: usize| Some(u64::from_ne_bytes(descriptor[at..at + 8].try_into().ok()?));
        (half(0)? == 0).then_some(Self {
            section,
            flags: half(4)? | area_flags,
            start: word(8)?,
            length: word(16)?,
            abort: word(24)?,
        })
    }

    fn holds(&self, ip: u64) -> bool {
        ip.wrapping_sub(self.start) < self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(version: u32, flags: u32, words: [u64; 3]) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&version.to_ne_bytes());
        bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
        for (slot, word) in bytes[8..].chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn a_section_holds_its_instructions_only() {
        let area = Area::parse(0x10, 2, &descriptor(0, 1, [0x1000, 0x20, 0x2000])).expect("known");
        assert!(area.holds(0x1000) && area.holds(0x101f));
        assert!(!area.holds(0xfff) && !area.holds(0x1020));
        assert_eq!((area.abort, area.flags), (0x2000, 3));
    }

    #[test]
    fn a_version_from_the_future_is_left_alone() {
        assert_eq!(Area::parse(0x10, 0, &descriptor(1, 0, [0, 9, 0])), None);
    }
}
