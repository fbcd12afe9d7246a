//! Memory that a file of the kernel shares with whoever maps it: rings.
#![allow(unsafe_code, reason = "it is read and written through a mapping")]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

use crate::error::{Error, Result};

pub(crate) fn page() -> usize {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| usize::try_from(size).ok())
        .unwrap_or(1 << 16)
}

pub(crate) fn round(length: usize) -> usize {
    length.next_multiple_of(page())
}

/// A part of such memory, mapped in the tracer. It is looked at and changed word by word, and a place outside is a
/// mistake that ends the program.
#[derive(Debug)]
pub struct Window {
    at: NonNull<u8>,
    length: usize,
}

impl Window {
    /// Maps what is open, in whole pages.
    pub fn map(file: BorrowedFd<'_>, length: usize, offset: i64) -> Result<Self> {
        let length = round(length);
        let failed = |errno| Error::Kernel {
            call: "mmap",
            errno,
        };
        let offset = libc::off_t::try_from(offset).map_err(|_| failed(Errno::EOVERFLOW))?;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(failed(Errno::last()));
        }
        let at = NonNull::new(at.cast()).ok_or_else(|| failed(Errno::ENOMEM))?;
        Ok(Self { at, length })
    }

    /// How much is mapped.
    pub fn length(&self) -> usize {
        self.length
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.length);
        // SAFETY: inside of the mapping, which lives as long as `self`, and aligned; the kernel and other
        // tasks change it as one word.
        unsafe { AtomicU32::from_ptr(self.at.as_ptr().add(at).cast()) }
    }

    /// A word, at a multiple of four.
    pub fn get(&self, at: usize) -> u32 {
        self.word(at).load(Ordering::Acquire)
    }

    /// Changes a word; whoever sees it sees what was changed before.
    pub fn set(&self, at: usize, word: u32) {
        self.word(at).store(word, Ordering::Release);
    }

    /// Some words, as bytes.
    pub fn bytes(&self, at: usize, length: usize) -> Vec<u8> {
        let words = (at..at + length).step_by(4).map(|at| self.get(at));
        words.flat_map(u32::to_ne_bytes).collect()
    }

    /// Changes some words.
    pub fn put(&self, at: usize, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<4>();
        assert!(rest.is_empty());
        for (index, word) in words.iter().enumerate() {
            self.set(at + index * 4, u32::from_ne_bytes(*word));
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.length) };
    }
}
