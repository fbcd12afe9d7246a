//! Anonymous shared memory as a file.
#![allow(unsafe_code, reason = "only mmap makes such an object")]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::error::{Context, Error, Result};

/// `MAP_HUGE_SHIFT`, which is `MFD_HUGE_SHIFT` too.
const HUGE_SHIFT: u32 = 26;

/// A new object of anonymous shared memory, as `mmap(MAP_SHARED | MAP_ANONYMOUS)` makes it, open for
/// reading and writing. `reserve`: its pages are accounted for at once. `huge`: the base-2 logarithm of
/// the size of its pages, if they are huge ones.
///
/// Without the privilege to open `/proc/self/map_files` it is a memfd: the same to all who map it, but
/// for its name in `maps`.
pub fn shared_anonymous(size: u64, reserve: bool, huge: Option<u32>) -> Result<File> {
    let length = usize::try_from(size).map_err(|_| Error::Kernel {
        call: "mmap",
        errno: Errno::ENOMEM,
    })?;
    let extra = if reserve { 0 } else { libc::MAP_NORESERVE };
    let page = huge.map_or(0, |size| size << HUGE_SHIFT).cast_signed();
    let tlb = if huge.is_some() { libc::MAP_HUGETLB } else { 0 };
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | extra | tlb | page;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), length, prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(Error::Kernel {
            call: "mmap",
            errno: Errno::last(),
        });
    }
    let start = at.addr();
    let link = format!("/proc/self/map_files/{start:x}-{:x}", start + length);
    let file = OpenOptions::new().read(true).write(true).open(link);
    // SAFETY: the mapping is ours and nothing refers to it.
    unsafe { libc::munmap(at, length) };
    match file {
        Ok(file) => Ok(file),
        Err(_) => {
            let tlb = if huge.is_some() { libc::MFD_HUGETLB } else { 0 } | page.cast_unsigned();
            let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::from_bits_retain(tlb);
            let file = File::from(memfd_create("", flags).call("memfd_create")?);
            file.set_len(size).map_err(|error| Error::Kernel {
                call: "ftruncate",
                errno: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
            })?;
            Ok(file)
        }
    }
}

/// Writes into a file of huge pages, which can only be mapped for that. `page`: their size; `at`: where.
pub fn write_huge(file: &File, page: u64, at: u64, bytes: &[u8]) -> Result<()> {
    let failed = |errno| Error::Kernel {
        call: "mmap(hugetlbfs)",
        errno,
    };
    let first = at & !(page - 1);
    let end = (at + bytes.len() as u64).next_multiple_of(page);
    let length = usize::try_from(end - first).map_err(|_| failed(Errno::ENOMEM))?;
    let skip = usize::try_from(at - first).map_err(|_| failed(Errno::ENOMEM))?;
    let offset = libc::off_t::try_from(first).map_err(|_| failed(Errno::EOVERFLOW))?;
    let populate = libc::MAP_SHARED | libc::MAP_POPULATE;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let map = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            prot,
            populate,
            file.as_raw_fd(),
            offset,
        )
    };
    if map == libc::MAP_FAILED {
        return Err(failed(Errno::last()));
    }
    // By the kernel, which gives an error where there are no more huge pages, and no signal.
    let memory = File::options().write(true).open("/proc/self/mem");
    let place = map.addr() as u64 + skip as u64;
    let written = memory.and_then(|memory| memory.write_all_at(bytes, place));
    // SAFETY: the mapping is ours and nothing refers to it.
    unsafe { libc::munmap(map, length) };
    written.map_err(|_| failed(Errno::ENOMEM))
}
