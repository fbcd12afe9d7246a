//! Event counters: eventfd(2).

use std::os::fd::AsFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use zdtm::{Case, Result, check, check_eq};

pub(crate) const CASES: &[Case] = &[Case::new("eventfd", run)];

fn run() -> Result<()> {
    // More than 32 bits: the counter is wider than the argument of eventfd(2).
    const LARGE: u64 = 0x1234_5678_9abc_def0;
    let large = EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
    large.write(LARGE)?;
    let empty = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
    zdtm::checkpoint()?;
    check_eq!(large.read()?, LARGE);
    check!(large.read().is_err(), "the counter was reset by reading it");
    check!(empty.read().is_err(), "the other one was empty");
    empty.write(3)?;
    check_eq!(empty.read()?, 3);
    let flags = nix::fcntl::fcntl(empty.as_fd(), nix::fcntl::FcntlArg::F_GETFD)?;
    check_eq!(flags, libc::FD_CLOEXEC);
    Ok(())
}
