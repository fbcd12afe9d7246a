//! The mappings of a process with their flags and sizes: `/proc/PID/smaps`, proc_pid_smaps(5).
//!
//! Much slower than maps: the kernel walks the page tables of every mapping to count.

use crate::text::{self, Line, Lines};
use crate::{ParseError, VmFlags, Vma, maps};

/// A mapping with what smaps adds. Sizes are in bytes, and 0 where this kernel does not tell them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Smap<'a> {
    /// What maps says too.
    pub vma: Vma<'a>,
    /// `VmFlags:`, since Linux 3.8.
    pub flags: VmFlags,
    /// `KernelPageSize:`, larger than usual for hugetlbfs.
    pub kernel_page_size: u64,
    /// `Rss:` resident pages.
    pub rss: u64,
    /// `Anonymous:` resident pages of no file, copied ones included.
    pub anonymous: u64,
    /// `Swap:` pages of anonymous memory that are swapped out; for shmem, of the whole object.
    pub swap: u64,
    /// `Locked:` this mapping's share of locked pages.
    pub locked: u64,
    /// `ProtectionKey:`, where the machine has keys; pkeys(7).
    pub protection_key: Option<u32>,
}

impl Smap<'_> {
    /// A copy that does not borrow the file's text.
    pub fn into_owned(self) -> Smap<'static> {
        Smap {
            vma: self.vma.into_owned(),
            ..self
        }
    }
}

/// The mappings in the text of `/proc/PID/smaps`, lowest first. Stops after the first error.
#[derive(Debug, Clone)]
pub struct Smaps<'a> {
    lines: Lines<'a>,
}

impl<'a> Smaps<'a> {
    /// From all the bytes of the file.
    pub fn new(smaps: &'a [u8]) -> Self {
        Self {
            lines: text::lines("smaps", smaps),
        }
    }

    /// Of a later part of the file, behind so many lines.
    pub(crate) fn behind(line: u32, smaps: &'a [u8]) -> Self {
        Self {
            lines: text::lines_behind("smaps", line, smaps),
        }
    }

    /// How many lines of the file there were so far.
    pub(crate) fn line(&self) -> u32 {
        self.lines.number()
    }

    fn smap(&mut self, header: Line<'a>) -> Result<Smap<'a>, ParseError> {
        let mut smap = Smap {
            vma: maps::vma(header)?,
            flags: VmFlags::default(),
            kernel_page_size: 0,
            rss: 0,
            anonymous: 0,
            swap: 0,
            locked: 0,
            protection_key: None,
        };
        // VmFlags is the last line of a mapping, and has been since it came.
        loop {
            let mut line = self
                .lines
                .next()
                .ok_or_else(|| ParseError::missing("smaps", "a VmFlags line"))?;
            match line.until(b':', "a line like Rss: 4 kB")? {
                b"KernelPageSize" => smap.kernel_page_size = line.kilobytes()?,
                b"Rss" => smap.rss = line.kilobytes()?,
                b"Anonymous" => smap.anonymous = line.kilobytes()?,
                b"Swap" => smap.swap = line.kilobytes()?,
                b"Locked" => smap.locked = line.kilobytes()?,
                b"ProtectionKey" => smap.protection_key = Some(line.dec("a protection key")?),
                b"VmFlags" => {
                    smap.flags = VmFlags::parse(line)?;
                    return Ok(smap);
                }
                // The kernel adds statistics freely. A mapping's first line here would mean its VmFlags were missed.
                key if key.contains(&b'-') => {
                    return Err(line.error("a VmFlags line before the next mapping"));
                }
                _ => {}
            }
        }
    }
}

impl<'a> Iterator for Smaps<'a> {
    type Item = Result<Smap<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.lines.next()?;
        let smap = self.smap(header);
        if smap.is_err() {
            self.lines = text::lines("smaps", b"");
        }
        Some(smap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MapName;

    const FIXTURE: &[u8] = include_bytes!("../fixtures/smaps");

    #[test]
    fn a_real_process() {
        let smaps: Vec<_> = Smaps::new(FIXTURE)
            .collect::<Result<_, _>>()
            .expect("a real file");
        let stack = smaps
            .iter()
            .find(|smap| smap.vma.name == MapName::Stack)
            .expect("a stack");
        assert!(stack.flags.contains(VmFlags::GROWSDOWN | VmFlags::ACCOUNT));
        assert!(stack.rss > 0 && stack.rss == stack.anonymous);
        assert_eq!(
            (stack.kernel_page_size, stack.protection_key),
            (4096, Some(0))
        );
        assert!(smaps.iter().all(|smap| smap.flags.unknown.is_empty()));
        let gate = smaps.last().expect("not empty");
        assert_eq!(
            (&gate.vma.name, gate.flags.bits()),
            (&MapName::Vsyscall, VmFlags::EXEC)
        );
    }

    #[test]
    fn a_mapping_without_flags_is_refused() {
        let text = b"1000-2000 rw-p 0 0:0 0\nRss: 4 kB\n3000-4000 rw-p 0 0:0 0\nVmFlags: rd\n";
        let error = Smaps::new(text)
            .next()
            .expect("a mapping")
            .expect_err("no flags");
        assert_eq!(
            (error.line, &*error.expected),
            (3, "a VmFlags line before the next mapping")
        );
        let error = Smaps::new(&text[..33])
            .next()
            .expect("a mapping")
            .expect_err("no flags");
        assert_eq!((error.line, &*error.expected), (0, "a VmFlags line"));
    }
}
