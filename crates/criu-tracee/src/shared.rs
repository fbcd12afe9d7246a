//! Anonymous shared memory as a file.
#![allow(unsafe_code, reason = "only mmap makes such an object")]

use std::fs::{File, OpenOptions};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::error::{Context, Error, Result};

/// A new object of anonymous shared memory, as `mmap(MAP_SHARED | MAP_ANONYMOUS)` makes it, open for
/// reading and writing. `reserve`: its pages are accounted for at once.
///
/// Without the privilege to open `/proc/self/map_files` it is a memfd: the same to all who map it, but
/// for its name in `maps`.
pub fn shared_anonymous(size: u64, reserve: bool) -> Result<File> {
    let length = usize::try_from(size).map_err(|_| Error::Kernel {
        call: "mmap",
        errno: Errno::ENOMEM,
    })?;
    let extra = if reserve { 0 } else { libc::MAP_NORESERVE };
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | extra;
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
            let file = File::from(memfd_create("", MFdFlags::MFD_CLOEXEC).call("memfd_create")?);
            file.set_len(size).map_err(|error| Error::Kernel {
                call: "ftruncate",
                errno: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
            })?;
            Ok(file)
        }
    }
}
