//! The build-id of an ELF file: `NT_GNU_BUILD_ID` in its notes.

use std::fs::File;
use std::os::unix::fs::FileExt;

use criu_kind::{Error, OpenFile, Result};
use criu_proc::LockKind;
use nix::fcntl::OFlag;

use crate::describe::reopen;
use crate::options::Validation;

const PT_NOTE: u64 = 4;
const NT_GNU_BUILD_ID: u64 = 3;
/// Notes are small; a file that claims more is not looked at.
const MAX_NOTES: u64 = 64 << 10;

/// The build-id of an open file as images have it; empty if it has none or none is wanted.
pub(crate) fn of(file: &OpenFile, validation: Validation) -> Result<Vec<u32>> {
    if validation == Validation::Size
        || file.inode.format() != libc::S_IFREG
        || file.inode.size < 64
    {
        return Ok(Vec::new());
    }
    if file
        .info
        .locks
        .iter()
        .any(|lock| lock.kind == LockKind::Lease)
    {
        return Ok(Vec::new()); // To open it would break the lease.
    }
    match reopen(&file.fd, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        Ok(fd) => Ok(read(&File::from(fd)).unwrap_or_default()),
        Err(nix::errno::Errno::EACCES | nix::errno::Errno::EPERM) => Ok(Vec::new()),
        Err(errno) => Err(Error::Kernel {
            call: "openat",
            errno,
        }),
    }
}

/// The build-id in words of the machine, the last one padded with zeros.
pub(crate) fn read(file: &File) -> Option<Vec<u32>> {
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0).ok()?;
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    let elf = Elf {
        wide: head[4] == 2,
        big: head[5] == 2,
    };
    let (phoff, entsize, count) = if elf.wide {
        (
            elf.number(&head, 32, 8)?,
            elf.number(&head, 54, 2)?,
            elf.number(&head, 56, 2)?,
        )
    } else {
        (
            elf.number(&head, 28, 4)?,
            elf.number(&head, 42, 2)?,
            elf.number(&head, 44, 2)?,
        )
    };
    let mut table = vec![0; usize::try_from((entsize * count).min(MAX_NOTES)).ok()?];
    file.read_exact_at(&mut table, phoff).ok()?;
    for header in table.chunks_exact(usize::try_from(entsize).ok()?.max(1)) {
        if elf.number(header, 0, 4)? != PT_NOTE {
            continue;
        }
        let (offset, size) = if elf.wide {
            (elf.number(header, 8, 8)?, elf.number(header, 32, 8)?)
        } else {
            (elf.number(header, 4, 4)?, elf.number(header, 16, 4)?)
        };
        let mut notes = vec![0; usize::try_from(size.min(MAX_NOTES)).ok()?];
        if file.read_exact_at(&mut notes, offset).is_err() {
            continue;
        }
        if let Some(id) = elf.build_id(&notes) {
            return Some(words(id));
        }
    }
    None
}

struct Elf {
    wide: bool,
    big: bool,
}

impl Elf {
    fn number(&self, bytes: &[u8], at: usize, size: usize) -> Option<u64> {
        let bytes = bytes.get(at..at + size)?;
        let join = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if self.big {
            bytes.iter().fold(0, join)
        } else {
            bytes.iter().rev().fold(0, join)
        })
    }

    fn build_id<'a>(&self, mut notes: &'a [u8]) -> Option<&'a [u8]> {
        loop {
            let name_size = usize::try_from(self.number(notes, 0, 4)?).ok()?;
            let size = usize::try_from(self.number(notes, 4, 4)?).ok()?;
            let kind = self.number(notes, 8, 4)?;
            let name_end = 12usize.checked_add(name_size)?;
            let start = name_end.checked_next_multiple_of(4)?;
            let end = start.checked_add(size)?;
            let (name, value) = (notes.get(12..name_end)?, notes.get(start..end)?);
            if kind == NT_GNU_BUILD_ID && name == b"GNU\0" {
                return Some(value);
            }
            notes = notes.get(end.checked_next_multiple_of(4)?..)?;
        }
    }
}

fn words(id: &[u8]) -> Vec<u32> {
    id.chunks(4)
        .map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            u32::from_ne_bytes(word)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_either_order() {
        let note = |big: bool| {
            let word = |word: u32| {
                if big {
                    word.to_be_bytes()
                } else {
                    word.to_le_bytes()
                }
            };
            let other = [&word(4)[..], &word(2), &word(1), b"GNU\0", b"ab\0\0"].concat();
            let wanted = [
                &word(4)[..],
                &word(5),
                &word(3),
                b"GNU\0",
                b"\x01\x02\x03\x04\x05\0\0\0",
            ]
            .concat();
            [other, wanted].concat()
        };
        for big in [false, true] {
            let elf = Elf { wide: true, big };
            assert_eq!(elf.build_id(&note(big)), Some(&[1, 2, 3, 4, 5][..]));
            assert_eq!(elf.build_id(&note(!big)), None);
        }
        assert_eq!(words(&[1, 0, 0, 0, 2]), [1u32.to_le(), 2u32.to_le()]);
    }

    #[test]
    fn an_executable_has_one_and_text_has_none() {
        let exe = File::open("/proc/self/exe").expect("ours");
        let text = File::open("/proc/self/maps").expect("ours");
        assert!(read(&text).is_none());
        drop(read(&exe)); // Present or not is the linker's choice; it must not fail on a large file.
    }
}
