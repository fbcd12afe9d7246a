//! What stat(2) tells, in widths that do not depend on the machine.
//!
//! `struct stat` of 32-bit machines has no room for large files and inode numbers; statx(2) has.
#![allow(unsafe_code, reason = "statx(2) takes raw addresses")]

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

/// The fields of `struct stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of stat(2)")]
pub struct FileStat {
    pub st_dev: u64,
    pub st_ino: u64,
    pub st_mode: u32,
    pub st_nlink: u64,
    pub st_uid: u32,
    pub st_gid: u32,
    pub st_rdev: u64,
    pub st_size: u64,
    pub st_blocks: u64,
    pub st_atime: i64,
    pub st_atime_nsec: i64,
    pub st_mtime: i64,
    pub st_mtime_nsec: i64,
}

/// `fstat(2)`.
pub fn fstat(fd: impl AsFd) -> nix::Result<FileStat> {
    statx(fd.as_fd().as_raw_fd(), Path::new(""), libc::AT_EMPTY_PATH)
}

/// `lstat(2)`.
pub fn lstat(path: &(impl AsRef<Path> + ?Sized)) -> nix::Result<FileStat> {
    statx(libc::AT_FDCWD, path.as_ref(), libc::AT_SYMLINK_NOFOLLOW)
}

/// `fstatat(2)`.
pub fn fstatat(dir: impl AsFd, path: &Path, flags: i32) -> nix::Result<FileStat> {
    statx(dir.as_fd().as_raw_fd(), path, flags)
}

fn statx(dir: i32, path: &Path, flags: i32) -> nix::Result<FileStat> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: a plain structure of numbers.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let flags = flags | libc::AT_NO_AUTOMOUNT;
    let mask = libc::STATX_BASIC_STATS;
    // SAFETY: the path is a string and `found` a structure, and both live through the call.
    let done = unsafe { libc::statx(dir, path.as_ptr(), flags, mask, &raw mut found) };
    Errno::result(done)?;
    Ok(FileStat {
        st_dev: nix::sys::stat::makedev(found.stx_dev_major.into(), found.stx_dev_minor.into()),
        st_ino: found.stx_ino,
        st_mode: found.stx_mode.into(),
        st_nlink: found.stx_nlink.into(),
        st_uid: found.stx_uid,
        st_gid: found.stx_gid,
        st_rdev: nix::sys::stat::makedev(found.stx_rdev_major.into(), found.stx_rdev_minor.into()),
        st_size: found.stx_size,
        st_blocks: found.stx_blocks,
        st_atime: found.stx_atime.tv_sec,
        st_atime_nsec: found.stx_atime.tv_nsec.into(),
        st_mtime: found.stx_mtime.tv_sec,
        st_mtime_nsec: found.stx_mtime.tv_nsec.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_what_stat_tells() {
        let file = std::fs::File::open("/proc/self/exe").expect("we run");
        let (ours, theirs) = (fstat(&file).expect("open"), nix::sys::stat::fstat(&file));
        let theirs = theirs.expect("open");
        #[allow(
            clippy::unnecessary_cast,
            reason = "the widths of struct stat differ between machines"
        )]
        let wanted = (theirs.st_dev as u64, theirs.st_ino as u64, theirs.st_mode);
        assert_eq!((ours.st_dev, ours.st_ino, ours.st_mode), wanted);
        assert_eq!(ours.st_mtime_nsec, i64::from(theirs.st_mtime_nsec));
        assert_eq!(lstat("/nowhere at all"), Err(Errno::ENOENT));
    }
}
