//! Unlinked files, into the images: what lives only by being open would be gone.
//!
//! One image an inode, however many files are open on it. Beyond CRIU's fields: extended attributes
//! (with them ACLs and file capabilities) and full timestamps go to `criu-rs-files.img`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;

use criu_image::{ImageId, desc, pb};
use criu_kind::{DumpCx, Error, Inode, OpenFile, Result};
use criu_proc::{Dev, LockKind};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek64};

use crate::collector::Collector;
use crate::describe::reopen;
use crate::xattr;

/// Writes the image of an unlinked file unless it is there, and gives its number.
pub(crate) fn keep(collector: &mut Collector<'_>, file: &OpenFile) -> Result<u32> {
    let key = (file.inode.dev, file.inode.ino);
    if let Some(id) = collector.ghosts.get(&key) {
        return Ok(*id);
    }
    let content = content(file, collector.options.ghost_limit)?;
    let id = u32::try_from(collector.ghosts.len()).unwrap_or(u32::MAX) + 1;
    collector.ghosts.insert(key, id);
    let symlnk_target = target(file)?;
    let mut entry = entry(&file.inode);
    entry.symlnk_target = symlnk_target;
    let runs = match &content {
        Some(content) if file.inode.blocks * 512 < file.inode.size => {
            (entry.chunks, entry.size) = (Some(true), Some(file.inode.size));
            runs(content, file.inode.size)?
        }
        _ => Vec::new(),
    };
    collector.with_image(desc::GHOST_FILE, ImageId::from(id), &mut |image| {
        let whole = if entry.chunks() {
            None
        } else {
            content.as_ref()
        };
        let length = whole.map_or(0, |_| file.inode.size);
        let mut source = Positioned { file: whole, at: 0 };
        image.write_from(&entry, length, &mut source)?;
        for (off, len) in &runs {
            let chunk = pb::GhostChunkEntry {
                len: *len,
                off: *off,
            };
            image.write_from(
                &chunk,
                *len,
                &mut Positioned {
                    file: content.as_ref(),
                    at: *off,
                },
            )?;
        }
        Ok(())
    })?;
    let ext = pb::GhostExtEntry {
        ghost_id: id,
        xattrs: xattr::read(file)?,
        atim_nsec: Some(below_micro(file.inode.atime.1)),
        mtim_nsec: Some(below_micro(file.inode.mtime.1)),
    };
    let ext = pb::FilesExtEntry {
        ghost: Some(ext),
        ..pb::FilesExtEntry::default()
    };
    let cx: &mut dyn DumpCx = collector;
    cx.append(desc::FILES_EXT, (), &ext, &[])?;
    Ok(id)
}

/// The content of a regular file; `None` for others. Refused if it takes more than `limit` bytes.
fn content(file: &OpenFile, limit: u64) -> Result<Option<File>> {
    if file.inode.format() != libc::S_IFREG {
        return Ok(None);
    }
    let size = file.inode.blocks * 512;
    if size > limit {
        return Err(Error::unsupported(
            format!("an unlinked file of {size} bytes is more than the limit of {limit}"),
            format!("give --ghost-limit {size}"),
        ));
    }
    if file
        .info
        .locks
        .iter()
        .any(|lock| lock.kind == LockKind::Lease)
    {
        return Err(Error::unsupported(
            "an unlinked file with a lease, which reading it would break",
            "let the task give up the lease before the dump",
        ));
    }
    let fd = reopen(&file.fd, OFlag::O_RDONLY | OFlag::O_NOATIME)
        .or_else(|_| reopen(&file.fd, OFlag::O_RDONLY))
        .map_err(Error::kernel("openat"))?;
    Ok(Some(File::from(fd)))
}

fn entry(inode: &Inode) -> pb::GhostFileEntry {
    let time = |(seconds, nanos): (i64, i64)| pb::Timeval {
        tv_sec: seconds.cast_unsigned(),
        tv_usec: (nanos / 1000).cast_unsigned(),
    };
    let is_device = matches!(inode.format(), libc::S_IFCHR | libc::S_IFBLK);
    pb::GhostFileEntry {
        uid: inode.uid,
        gid: inode.gid,
        mode: inode.mode,
        dev: Dev::from_st_dev(inode.dev).to_kernel(),
        ino: Some(inode.ino),
        rdev: is_device.then(|| u32::try_from(inode.rdev).unwrap_or(0)),
        atim: Some(time(inode.atime)),
        mtim: Some(time(inode.mtime)),
        ..pb::GhostFileEntry::default()
    }
}

fn below_micro(nanos: i64) -> u32 {
    u32::try_from(nanos % 1000).unwrap_or(0)
}

fn target(file: &OpenFile) -> Result<Option<Vec<u8>>> {
    if file.inode.format() != libc::S_IFLNK {
        return Ok(None);
    }
    // An empty name: the link that the descriptor itself is.
    let target = nix::fcntl::readlinkat(&file.fd, "").map_err(Error::kernel("readlinkat"))?;
    Ok(Some(target.into_vec()))
}

/// The runs of data of a sparse file: offset and length.
fn runs(file: &File, size: u64) -> Result<Vec<(u64, u64)>> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < size {
        let offset = at.cast_signed();
        let start = match lseek64(file, offset, Whence::SeekData) {
            Ok(start) => start.cast_unsigned(),
            Err(Errno::ENXIO) => break,
            Err(errno) => {
                return Err(Error::Kernel {
                    call: "lseek",
                    errno,
                });
            }
        };
        let end =
            lseek64(file, start.cast_signed(), Whence::SeekHole).map_err(Error::kernel("lseek"))?;
        let end = end.cast_unsigned().min(size);
        if end <= start {
            break;
        }
        runs.push((start, end - start));
        at = end;
    }
    Ok(runs)
}

/// Reads from a place on, without moving anybody's position.
struct Positioned<'a> {
    file: Option<&'a File>,
    at: u64,
}

impl std::io::Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Some(file) = self.file else { return Ok(0) };
        let got = file.read_at(buffer, self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

/// `/proc/self/fd/N` of a copy.
pub(crate) fn copy_path(file: &OpenFile) -> String {
    format!("/proc/self/fd/{}", file.fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparse_file_has_runs() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(b"start", 0).expect("room");
        file.write_all_at(b"end", 1 << 20).expect("room");
        let size = (1 << 20) + 3;
        let runs = runs(&file, size).expect("seek");
        assert_eq!(runs.first().map(|run| run.0), Some(0));
        assert_eq!(runs.last().map(|(off, len)| off + len), Some(size));
        assert!(
            runs.iter().map(|run| run.1).sum::<u64>() <= 1 << 18,
            "{runs:?}"
        );
    }
}
