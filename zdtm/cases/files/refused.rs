//! Descriptors of kinds that cannot be kept: a refused dump leaves their tasks as they were.

use std::os::fd::{FromRawFd, OwnedFd};

use zdtm::{Case, Child, Result, check, check_eq};

pub(crate) const CASES: &[Case] = &[
    Case::new("refused", several).refused("nobody keeps such descriptors"),
    Case::new("refused-secret", secret).refused("memory that only the process may read"),
];

fn new(number: libc::c_long, arguments: [usize; 6]) -> Option<OwnedFd> {
    // SAFETY: passes no address; the descriptor is new and ours.
    unsafe {
        let fd = zdtm::syscall(number, arguments).ok()?;
        Some(OwnedFd::from_raw_fd(i32::try_from(fd).ok()?))
    }
}

/// UFFD_USER_MODE_ONLY, which needs no privilege.
fn userfault() -> Option<OwnedFd> {
    new(libc::SYS_userfaultfd, [1, 0, 0, 0, 0, 0])
}

/// Several in two processes.
fn several() -> Result<()> {
    let ours = [userfault(), userfault()];
    if ours.iter().any(Option::is_none) {
        return zdtm::skip("no userfaultfd(2) here");
    }
    let child = Child::spawn("child", || {
        let theirs = userfault();
        Child::checkpoint();
        check!(theirs.is_some());
        Ok(())
    })?;
    zdtm::checkpoint()?;
    for fd in ours.iter().flatten() {
        let number = std::os::fd::AsRawFd::as_raw_fd(fd);
        let link = std::fs::read_link(format!("/proc/self/fd/{number}"))?;
        check_eq!(link.to_string_lossy(), "anon_inode:[userfaultfd]");
    }
    child.finish()
}

fn secret() -> Result<()> {
    let Some(fd) = new(libc::SYS_memfd_secret, [0; 6]) else {
        return zdtm::skip("no memfd_secret(2) here");
    };
    let file = std::fs::File::from(fd);
    file.set_len(4096)?;
    let memory = zdtm::Mapping::new(
        4096,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED,
        std::os::fd::AsRawFd::as_raw_fd(&file),
        0,
    )?;
    zdtm::fill(memory.bytes(), 1);
    zdtm::checkpoint()?;
    zdtm::verify(memory.bytes(), 1)
}
