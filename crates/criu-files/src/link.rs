//! Names for open files whose own name is gone while others exist (`--link-remap`).
//!
//! Such a file cannot be copied into the images: it would become another file. And nobody knows where
//! its other names are. So it gets a name beside its old one, which the restore takes away again.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use criu_kind::{Error, OpenFile, Result};
use criu_tracee::{Heir, Identity};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;

use crate::collector::Collector;
use crate::path::Named;

/// The names given to files in a dump. Dropped, it removes them: the dump failed, or the tasks go on. So does a process
/// that outlives the driver if that is killed.
#[derive(Debug, Default)]
#[must_use]
pub struct Names {
    given: criu_tracee::Names,
    /// From the first name on.
    heir: Option<Heir>,
}

impl Names {
    /// The dump is complete and the tasks end: the restore needs the names, and removes them.
    pub fn keep(mut self) -> Result<()> {
        if let Some(heir) = &mut self.heir {
            heir.commit()?;
            heir.dismiss()?;
        }
        self.given.keep();
        Ok(())
    }

    /// Gives a file one more name; `false` if that is taken.
    fn give(&mut self, file: &OpenFile, path: &Path) -> Result<bool> {
        if self.heir.is_none() {
            self.given.begin()?;
            self.heir = Some(Heir::appoint(&[], || self.given.undo(), || ())?);
        }
        let copy = file
            .fd
            .as_fd()
            .try_clone_to_owned()
            .map_err(Error::io("dup"))?;
        let identity = Identity::of(&copy.into())?;
        let copy = format!("/proc/self/fd/{}", file.fd.as_raw_fd());
        let follow = AtFlags::AT_SYMLINK_FOLLOW;
        let link = || linkat(AT_FDCWD, copy.as_str(), AT_FDCWD, path, follow);
        self.given.lend(identity, path, link).map_err(|errno| {
            Error::unsupported(
                format!("it cannot get a temporary name beside its old one: {errno}"),
                "make the directory writable, or let the task close the file before the dump",
            )
        })
    }
}

/// The names given so far, by inode.
#[derive(Debug, Default)]
pub(crate) struct Links {
    names: Names,
    files: HashMap<(u64, u64), u32>,
}

impl Links {
    pub(crate) fn into_names(self) -> Names {
        self.names
    }
}

/// Gives the file a name, and describes that. One inode gets one name.
pub(crate) fn give_name(
    collector: &mut Collector<'_>,
    file: &OpenFile,
    named: &Named,
) -> Result<u32> {
    let key = (file.inode.dev, file.inode.ino);
    if let Some(id) = collector.links.files.get(&key) {
        return Ok(*id);
    }
    if !collector.options.link_remap {
        return Err(Error::unsupported(
            format!(
                "its name {} is gone, but it has {} others",
                String::from_utf8_lossy(&named.path),
                file.inode.links
            ),
            "give --link-remap, so that it gets a temporary name",
        ));
    }
    if file.inode.format() == libc::S_IFDIR {
        return Err(Error::unsupported(
            "a directory that was moved while we looked",
            "try again",
        ));
    }
    let slash = named.path.iter().rposition(|byte| *byte == b'/');
    let directory = &named.path[..=slash.unwrap_or(0)];
    for number in collector.last + 1.. {
        let name = format!("link_remap.{number}");
        let path = [directory, name.as_bytes()].concat();
        let reach = [named.base.as_bytes(), &path].concat();
        let reach = PathBuf::from(OsString::from_vec(reach));
        if collector.links.names.give(file, &reach)? {
            let id = collector.link_entry(path, collector.mount_of(file));
            collector.links.files.insert(key, id);
            return Ok(id);
        }
    }
    Err(Error::Kernel {
        call: "linkat",
        errno: Errno::EEXIST,
    })
}
