//! The memory of another task, through `/proc/PID/mem`.
//!
//! Reading this way never breaks the sharing of pages between a parent and its children, as
//! `process_vm_readv` does: that pins pages, and the kernel unshares what is pinned. It also reaches
//! pages the task itself may not read, and writes pages it may not write (`FOLL_FORCE`).
#![allow(
    unsafe_code,
    reason = "PAGEMAP_SCAN is an ioctl with a structure of addresses"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::Pid;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::{Error, Result};

/// `/proc/PID/mem`, held open.
#[derive(Debug)]
pub struct Memory {
    pid: Pid,
    file: File,
}

impl Memory {
    /// Opens the memory of a task that may be traced.
    pub fn open(pid: Pid) -> Result<Self> {
        let path = format!("/proc/{pid}/mem");
        let file = OpenOptions::new().read(true).write(true).open(path);
        Ok(Self {
            pid,
            file: file.map_err(|error| kernel("open(/proc/PID/mem)", pid, &error))?,
        })
    }

    /// Fills `bytes` from `address`.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(bytes, address)
            .map_err(|error| kernel("pread(/proc/PID/mem)", self.pid, &error))
    }

    /// Reads as much as is there.
    pub fn read_some(&self, address: u64, bytes: &mut [u8]) -> Result<usize> {
        self.file
            .read_at(bytes, address)
            .map_err(|error| kernel("pread(/proc/PID/mem)", self.pid, &error))
    }

    /// Writes all of `bytes` at `address`.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, address)
            .map_err(|error| kernel("pwrite(/proc/PID/mem)", self.pid, &error))
    }
}

fn kernel(call: &'static str, pid: Pid, error: &io::Error) -> Error {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ESRCH) => Error::Gone(pid),
        Some(errno) => Error::Kernel { call, errno },
        // A short transfer: the address space ends there, or the task has none any more.
        None => Error::Kernel {
            call,
            errno: Errno::EFAULT,
        },
    }
}

/// A run of pages of one kind, from `PAGEMAP_SCAN`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// What the pages are: the bits asked for in [`PagemapScan::returned`].
    pub categories: u64,
}

/// `PAGEMAP_SCAN` of `/proc/PID/pagemap`, Linux 6.7 (`Documentation/admin-guide/mm/pagemap.rst`).
#[derive(Clone, Copy, Debug)]
pub struct PagemapScan {
    /// A page is reported if it has all of these …
    pub required: u64,
    /// … and any of these (0: no such condition).
    pub any_of: u64,
    /// Bits to take as their opposite.
    pub inverted: u64,
    /// Bits to report, and to join runs by.
    pub returned: u64,
}

impl PagemapScan {
    /// Asynchronous write-protect, and written to since.
    pub const WPALLOWED: u64 = 1;
    /// Written to.
    pub const WRITTEN: u64 = 1 << 1;
    /// Of a file or of shared memory.
    pub const FILE: u64 = 1 << 2;
    /// In memory.
    pub const PRESENT: u64 = 1 << 3;
    /// In swap.
    pub const SWAPPED: u64 = 1 << 4;
    /// The zero page.
    pub const PFNZERO: u64 = 1 << 5;
    /// Part of a huge page.
    pub const HUGE: u64 = 1 << 6;
    /// Soft-dirty.
    pub const SOFT_DIRTY: u64 = 1 << 7;
    /// A guard page (`MADV_GUARD_INSTALL`), Linux 6.15.
    pub const GUARD: u64 = 1 << 8;

    /// Scans `start..end` of `pagemap` and appends what it finds.
    ///
    /// `ENOTTY` before Linux 6.7.
    pub fn scan(
        &self,
        pagemap: &File,
        start: u64,
        end: u64,
        found: &mut Vec<Region>,
    ) -> Result<()> {
        const REQUEST: libc::c_ulong =
            nix::request_code_readwrite!(b'f', 16, size_of::<ScanArg>()) as libc::c_ulong;
        let mut at = start;
        let mut batch = [Region::default(); 256];
        while at < end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags: 0,
                start: at,
                end,
                walk_end: 0,
                vec: batch.as_mut_ptr().expose_provenance() as u64,
                vec_len: batch.len() as u64,
                max_pages: 0,
                category_inverted: self.inverted,
                category_mask: self.required,
                category_anyof_mask: self.any_of,
                return_mask: self.returned,
            };
            // SAFETY: `arg` has the layout of `struct pm_scan_arg`, and its vector is `batch`.
            let got = unsafe { libc::ioctl(pagemap.as_raw_fd(), REQUEST, &raw mut arg) };
            let got = Errno::result(got).map_err(|errno| Error::Kernel {
                call: "ioctl(PAGEMAP_SCAN)",
                errno,
            })?;
            found.extend_from_slice(&batch[..usize::try_from(got).unwrap_or(0)]);
            at = arg.walk_end;
        }
        Ok(())
    }
}

#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<ScanArg>() == 96);
