//! Which descriptors a stopped process has, and what `/proc` says of them.

use std::path::Path;

use criu_kind::{Error, Result};
use criu_proc::{Fdinfo, ProcDir};
use criu_tracee::stat::fstatat;
use nix::errno::Errno;

/// The descriptors of a process, with what fdinfo says of each.
#[derive(Debug)]
pub struct Looked(pub(crate) Told);

/// So many free numbers in a row are tried before the rest is listed.
const FREE: usize = 16;

/// Reads what is said of all descriptors of a stopped process. For a list the kernel makes an inode for each; but it tells
/// how many there are, since Linux 6.2, and most have low numbers: those are tried in turn.
pub fn look(proc: &ProcDir) -> Result<Looked> {
    let stat = fstatat(proc, Path::new("fd"), 0);
    let count = stat.map_err(Error::kernel("newfstatat(fd)"))?.st_size;
    let mut all: Told = Vec::new();
    let (mut next, mut free) = (0, 0);
    while (all.len() as u64) < count && free < FREE {
        match proc.fdinfo(next) {
            Err(criu_proc::Error::Kernel {
                errno: Errno::ENOENT,
                ..
            }) => free += 1,
            told => {
                all.push((next, told));
                free = 0;
            }
        }
        next += 1;
    }
    if all.is_empty() || (all.len() as u64) < count {
        let rest = proc.fds()?.into_iter().filter(|fd| *fd >= next);
        all.extend(rest.map(|fd| (fd, proc.fdinfo(fd))));
    }
    Ok(Looked(all))
}

type Told = Vec<(i32, Result<Fdinfo, criu_proc::Error>)>;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use nix::fcntl::{FcntlArg, fcntl};
    use nix::unistd::Pid;

    use super::*;

    /// Low ones and a far one. Other tests open and close files meanwhile, and what listed them is among them.
    #[test]
    fn in_turn_as_in_a_list() {
        let file = File::open("/dev/null").expect("a device");
        let far = fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(900)).expect("free");
        let me = ProcDir::open(Pid::this()).expect("we live");
        let looked = look(&me).expect("ours").0;
        let has = |fd: i32| {
            let mut all = looked.iter();
            all.any(|(known, told)| *known == fd && told.is_ok())
        };
        assert!(has(file.as_raw_fd()) && has(far));
        assert!(looked.is_sorted_by_key(|(fd, _)| *fd));
        nix::unistd::close(far).expect("ours");
    }
}
