//! Which descriptors a stopped process has, and what `/proc` says of them.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use criu_kind::{Error, Inode, Result};
use criu_proc::{Fdinfo, ProcDir};
use criu_tracee::stat::{fstat, fstatat};
use criu_tracee::{fetch_fd, pidfd_open};
use nix::errno::Errno;
use nix::unistd::Pid;

/// The descriptors of a process, with what fdinfo says of each.
#[derive(Debug)]
pub struct Looked(pub(crate) Vec<Descriptor>);

/// One of them.
#[derive(Debug)]
pub(crate) struct Descriptor {
    pub(crate) fd: i32,
    pub(crate) told: Result<Fdinfo, criu_proc::Error>,
    /// If it was fetched already.
    pub(crate) copy: Option<Copied>,
}

/// A copy of a descriptor, with its inode and its link if they were seen already.
#[derive(Debug)]
pub(crate) struct Copied {
    pub(crate) fd: OwnedFd,
    pub(crate) seen: Option<(Inode, Vec<u8>)>,
}

impl From<OwnedFd> for Copied {
    fn from(fd: OwnedFd) -> Self {
        Self { fd, seen: None }
    }
}

/// So many descriptors of a process are fetched ahead, and no more: each takes a number here.
const AHEAD: usize = 256;

/// The same as [`look`], for who does it ahead of what is done with it: descriptors are fetched too.
pub fn look_ahead(proc: &ProcDir) -> Result<Looked> {
    let mut looked = look(proc)?;
    // Whatever cannot be done ahead is done, and told, when it is needed.
    let (Ok(pidfd), Ok(own)) = (pidfd_open(proc.pid()), ProcDir::open(Pid::this())) else {
        return Ok(looked);
    };
    if looked.0.len() > AHEAD {
        return Ok(looked);
    }
    for one in &mut looked.0 {
        let Ok(info) = &one.told else { continue };
        if let Ok(Some(fd)) = fetch_fd(&pidfd, one.fd) {
            let seen = see(&own, &fd, info).ok();
            one.copy = Some(Copied { fd, seen });
        }
    }
    Ok(looked)
}

/// The inode of a descriptor of ours, and where its link points; `own` is the directory of this process.
pub(crate) fn see(own: &ProcDir, fd: &OwnedFd, info: &Fdinfo) -> Result<(Inode, Vec<u8>)> {
    let inode = Inode::from(&fstat(fd).map_err(Error::kernel("fstat"))?);
    let link = match plain_link(&inode, info) {
        Some(link) => link,
        // By our copy: of theirs the kernel would have to make an inode in /proc.
        None => own.readlink(&format!("fd/{}", fd.as_raw_fd()))?.into_vec(),
    };
    Ok((inode, link))
}

/// The link of a socket or an event counter, which is known without asking for it.
fn plain_link(inode: &Inode, info: &Fdinfo) -> Option<Vec<u8>> {
    let is_path = info.flags & libc::O_PATH.cast_unsigned() != 0;
    if inode.format() == libc::S_IFSOCK && !is_path {
        return Some(format!("socket:[{}]", inode.ino).into_bytes());
    }
    let counts = info.value("eventfd-count").is_some();
    counts.then(|| b"anon_inode:[eventfd]".to_vec())
}

/// So many free numbers in a row are tried before the rest is listed.
const FREE: usize = 16;

/// Reads what is said of all descriptors of a stopped process. For a list the kernel makes an inode for each; but it tells
/// how many there are, since Linux 6.2, and most have low numbers: those are tried in turn.
pub fn look(proc: &ProcDir) -> Result<Looked> {
    let stat = fstatat(proc, Path::new("fd"), 0);
    let count = stat.map_err(Error::kernel("newfstatat(fd)"))?.st_size;
    let mut all: Vec<Descriptor> = Vec::new();
    let descriptor = |fd, told| Descriptor {
        fd,
        told,
        copy: None,
    };
    let (mut next, mut free) = (0, 0);
    while (all.len() as u64) < count && free < FREE {
        match proc.fdinfo(next) {
            Err(criu_proc::Error::Kernel {
                errno: Errno::ENOENT,
                ..
            }) => free += 1,
            told => {
                all.push(descriptor(next, told));
                free = 0;
            }
        }
        next += 1;
    }
    if all.is_empty() || (all.len() as u64) < count {
        let rest = proc.fds()?.into_iter().filter(|fd| *fd >= next);
        all.extend(rest.map(|fd| descriptor(fd, proc.fdinfo(fd))));
    }
    Ok(Looked(all))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Command;

    use nix::fcntl::{FcntlArg, fcntl};
    use nix::sys::wait::{WaitPidFlag, waitpid};

    use super::*;

    /// Low ones and a far one, of a process that is stopped: one that runs may open some while they are counted. Other tests
    /// want numbers from 900 on.
    #[test]
    fn in_turn_as_in_a_list() {
        let file = File::open("/dev/null").expect("a device");
        let far = fcntl(&file, FcntlArg::F_DUPFD(700)).expect("free");
        let mut stopped = Command::new("sh")
            .args(["-c", "kill -STOP $$"])
            .spawn()
            .expect("a shell");
        nix::unistd::close(far).expect("ours");
        let pid = Pid::from_raw(stopped.id().cast_signed());
        waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("ours");
        let proc = ProcDir::open(pid).expect("it lives");
        let listed = proc.fds().expect("a list");
        let looked = look(&proc).expect("ours").0;
        let ahead = look_ahead(&proc).expect("ours").0;
        stopped.kill().expect("ours");
        stopped.wait().expect("ours");
        let numbers: Vec<i32> = looked.iter().map(|one| one.fd).collect();
        assert!(numbers.starts_with(&[0, 1, 2]) && numbers.contains(&far));
        assert_eq!(numbers, listed);
        assert!(looked.iter().all(|one| one.told.is_ok()));
        let copied = ahead.iter().find(|one| one.fd == far);
        let copied = copied.and_then(|one| one.copy.as_ref()).expect("fetched");
        let (inode, link) = copied.seen.as_ref().expect("seen");
        assert_eq!(
            (inode.format(), link.as_slice()),
            (libc::S_IFCHR, &b"/dev/null"[..])
        );
    }
}
