//! What a file is called, and whether that name still leads to it.
//!
//! The text of a link is not enough: ` (deleted)` may be part of a name, and another file may have the
//! name by now. So the name is looked up and the inodes are compared.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use criu_kind::{Error, Inode, OpenFile, Result};
use criu_proc::{Dev, ProcDir};
use criu_tracee::stat::lstat;
use nix::errno::Errno;
use nix::sys::statfs::{FsType, PROC_SUPER_MAGIC, fstatfs};

const NFS_SUPER_MAGIC: FsType = nix::sys::statfs::NFS_SUPER_MAGIC;
/// `PID_MAX_LIMIT` of `include/linux/threads.h`.
const PID_MAX: u32 = 4 << 20;
const DELETED: &[u8] = b" (deleted)";

/// Where the name of a file leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// To the file.
    Here,
    /// Nowhere, and no other name does: the file lives only by being open.
    Unlinked,
    /// Elsewhere or nowhere; the file has other names.
    OtherNames,
    /// To the directory of a process that has gone.
    DeadProcess(u32),
}

/// A name and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// The path, absolute, as the process would say it.
    pub(crate) path: Vec<u8>,
    /// What to put before it to get there from here: empty, or `/proc/PID/root`.
    pub(crate) base: String,
    /// Where it leads.
    pub(crate) found: Found,
}

/// Finds out what the file is called.
pub(crate) fn name(file: &OpenFile) -> Result<Named> {
    let named = |path: &[u8], base: &str, found| {
        Ok(Named {
            path: path.to_owned(),
            base: base.to_owned(),
            found,
        })
    };
    let link = file.link.as_slice();
    if leads(b"", link, &file.inode)? {
        let found = if is_silly_name(file, link) {
            Found::OtherNames
        } else {
            Found::Here
        };
        return named(link, "", found);
    }
    let root = format!("/proc/{}/root", file.pid);
    let path = match link.strip_suffix(DELETED) {
        Some(path) => path,
        None if leads(root.as_bytes(), link, &file.inode)? => {
            return named(link, &root, Found::Here);
        }
        None => link,
    };
    if let Some(pid) = dead_process(file, path) {
        return named(path, "", Found::DeadProcess(pid));
    }
    if file.inode.links == 0 {
        return named(path, "", Found::Unlinked);
    }
    if path.len() == link.len() && file.inode.format() == libc::S_IFREG && !is_mounted(file)? {
        // A descriptor from another mount namespace: nobody who is restored here could open the file by
        // a name, so its content goes along, as of one without a name.
        return named(path, "", Found::Unlinked);
    }
    if path.len() == link.len() {
        return Err(Error::unsupported(
            "its path leads to another file: it is on another mount, or below one",
            "unmount what covers it, or close it before the dump",
        ));
    }
    named(path, "", Found::OtherNames)
}

/// Whether the file's file system is mounted where its process is, so that a name leads to it.
fn is_mounted(file: &OpenFile) -> Result<bool> {
    let dev = Dev::from_st_dev(file.inode.dev);
    let mounts = ProcDir::open(file.pid)?.mountinfo()?;
    Ok(mounts.iter().any(|mount| mount.dev == dev))
}

fn leads(base: &[u8], path: &[u8], inode: &Inode) -> Result<bool> {
    let full = [base, path].concat();
    match lstat(Path::new(OsStr::from_bytes(&full))) {
        Ok(stat) => Ok(Inode::from(&stat).is(inode)),
        Err(
            Errno::ENOENT
            | Errno::ENOTDIR
            | Errno::EACCES
            | Errno::ENAMETOOLONG
            | Errno::ESRCH
            | Errno::EINVAL,
        ) => Ok(false),
        Err(errno) => Err(Error::Kernel {
            call: "lstat",
            errno,
        }),
    }
}

/// The name that NFS gives to an open file when it is unlinked: it goes when the file is closed.
fn is_silly_name(file: &OpenFile, path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    name.starts_with(b".nfs")
        && fstatfs(&file.fd).is_ok_and(|fs| fs.filesystem_type() == NFS_SUPER_MAGIC)
}

/// The pid in `/proc/PID/…` if there is no such process any more.
fn dead_process(file: &OpenFile, path: &[u8]) -> Option<u32> {
    let pid = process_of(path)?;
    let is_proc = fstatfs(&file.fd).is_ok_and(|fs| fs.filesystem_type() == PROC_SUPER_MAGIC);
    (is_proc && !is_alive(pid)).then_some(pid)
}

/// Whether a process has its directory still.
pub(crate) fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// The pid in `/proc/PID/…`.
pub(crate) fn process_of(path: &[u8]) -> Option<u32> {
    let rest = path.strip_prefix(b"/proc/")?;
    let pid = rest.split(|byte| *byte == b'/').next()?;
    let pid = std::str::from_utf8(pid).ok()?.parse().ok();
    pid.filter(|pid| (1..=PID_MAX).contains(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_in_paths() {
        assert_eq!(process_of(b"/proc/12/maps"), Some(12));
        assert_eq!(process_of(b"/proc/12"), Some(12));
        assert_eq!(process_of(b"/proc/sys/kernel"), None);
        assert_eq!(process_of(b"/procs/12"), None);
        assert_eq!(process_of(b"/proc/0/maps"), None);
        assert_eq!(process_of(b"/proc/4194305/maps"), None);
    }
}
