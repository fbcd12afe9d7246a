//! Files that are mapped and cannot be opened anew: they are found among the descriptors.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;

use criu_image::id::FileId;
use criu_kind::{Error, Inode, Result, Slot, Subject, Within};
use criu_proc::ProcDir;
use criu_tracee::stat::{fstat, fstatat};
use criu_tracee::{fetch_fd, pidfd_open};
use nix::unistd::Pid;

use crate::collector::{Collector, O_CLOEXEC};
use crate::kinds::io_uring;

impl Collector<'_> {
    /// The ring behind a mapping: its file is one that the process has open, for no other way leads to it.
    pub(crate) fn ring(&mut self, pid: Pid, proc: &ProcDir, mapping: &str) -> Result<FileId> {
        let inode = fstatat(proc, std::path::Path::new(mapping), 0);
        let inode = Inode::from(&inode.map_err(Error::kernel("newfstatat(map_files)"))?);
        let of_mapping = |copy: &OwnedFd| {
            let found = fstat(copy).map_err(Error::kernel("fstat"))?;
            Ok(Inode::from(&found).is(&inode))
        };
        let known = self.descriptor(pid, proc, io_uring::is_ring, of_mapping)?;
        known.ok_or_else(|| {
            Error::unsupported(
                "a ring of io_uring(7) whose descriptor is closed",
                "let the program keep the descriptor open, or run it without io_uring",
            )
        })
    }

    /// The socket behind a mapping, which some process of the tree has open.
    pub(crate) fn socket_memory(
        &mut self,
        pid: Pid,
        range: &Range<u64>,
        link: &[u8],
    ) -> Result<FileId> {
        let tree = self.options.tree.clone();
        let others = tree.into_iter().filter(|other| *other != pid);
        let mut known = None;
        for pid in [pid].into_iter().chain(others) {
            // Threads have the descriptors of their process, and zombies none.
            let Ok(proc) = ProcDir::open(pid) else {
                continue;
            };
            known = self.descriptor(pid, &proc, |other| other == link, |_| Ok(true))?;
            if known.is_some() {
                break;
            }
        }
        let Some(id) = known else {
            return Err(Error::unsupported(
                "memory of a socket whose descriptor is closed",
                "let the program keep the descriptor open, or unmap it before the dump",
            ));
        };
        let entry = self.entries.iter().rfind(|entry| entry.id == id.get());
        let size = entry.and_then(|entry| {
            let kind = self
                .kinds
                .iter()
                .find(|kind| i32::from(kind.tag()) == entry.r#type);
            kind.and_then(|kind| kind.mapped(entry))
        });
        match size {
            Some(size) if size == range.end - range.start => Ok(id),
            Some(size) => Err(Error::unsupported(
                format!("a part of the {size} bytes of memory of a socket"),
                "map, protect and unmap it as a whole",
            )),
            None => Err(Error::unsupported(
                "memory of a socket, but not the ring of a packet socket",
                "unmap it before the dump",
            )),
        }
    }

    /// The file of the first descriptor of a process whose link and file fit.
    fn descriptor(
        &mut self,
        pid: Pid,
        proc: &ProcDir,
        is_likely: impl Fn(&[u8]) -> bool,
        fits: impl Fn(&OwnedFd) -> Result<bool>,
    ) -> Result<Option<FileId>> {
        let mut pidfd = None;
        for fd in proc.fds()? {
            let link = proc.readlink(&format!("fd/{fd}"))?.into_vec();
            if !is_likely(&link) {
                continue;
            }
            let pidfd = match &pidfd {
                Some(known) => known,
                None => pidfd.insert(pidfd_open(pid)?),
            };
            let Some(copy) = fetch_fd(pidfd, fd)? else {
                continue;
            };
            if !fits(&copy)? {
                continue;
            }
            let mut info = proc.fdinfo(fd)?;
            info.flags &= !O_CLOEXEC;
            let known = self.identify(proc, Slot { pid, fd }, &info, || Ok(Some(copy.into())));
            let link = String::from_utf8_lossy(&link).into_owned();
            if let Some((id, _)) = known.within(|| Subject::Fd { fd, link })? {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }
}
