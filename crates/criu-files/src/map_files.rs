//! The file behind a mapping.
//!
//! `/proc/PID/map_files` leads to it whatever its name, but only with `CAP_CHECKPOINT_RESTORE` in the
//! first user namespace (`proc_map_files_get_link` in `fs/proc/base.c`). Without it the name is tried,
//! and believed if it leads to the inode that `maps` shows.

use std::ops::Range;
use std::os::fd::OwnedFd;

use criu_kind::{Error, Result};
use criu_proc::{Dev, ProcDir, Vmas};
use criu_tracee::stat::fstat;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// Opens the file as a place (`O_PATH`). `link` is its name.
pub(crate) fn open_path(proc: &ProcDir, range: &Range<u64>, link: &[u8]) -> Result<OwnedFd> {
    let name = format!("map_files/{:x}-{:x}", range.start, range.end);
    match proc.open_file(&name, OFlag::O_PATH) {
        Err(criu_proc::Error::Kernel {
            errno: Errno::EPERM,
            ..
        }) => by_name(proc, range, link),
        other => Ok(other?),
    }
}

fn by_name(proc: &ProcDir, range: &Range<u64>, link: &[u8]) -> Result<OwnedFd> {
    let maps = proc.read("maps")?;
    let mut shown = None;
    for vma in Vmas::new(&maps) {
        let vma = vma.map_err(criu_proc::Error::from)?;
        if vma.start == range.start {
            shown = Some((vma.dev, vma.inode));
            break;
        }
    }
    let found = open(link, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let found = found.map_err(Error::kernel("open")).ok().filter(|fd| {
        let stat = fstat(fd);
        stat.is_ok_and(|stat| Some((Dev::from_st_dev(stat.st_dev), stat.st_ino)) == shown)
    });
    found.ok_or_else(|| {
        Error::unsupported(
            "the mapped file has no name that leads to it",
            "run criu as root, or with CAP_CHECKPOINT_RESTORE",
        )
    })
}
