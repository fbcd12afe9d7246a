//! Event counters: eventfd(2).

use std::os::fd::{AsFd, AsRawFd};

use nix::sys::eventfd::{EfdFlags, EventFd};
use zdtm::{Case, Result, check, check_eq};

pub(crate) const CASES: &[Case] = &[
    Case::new("eventfd", || counter(12345)),
    // More than 32 bits: the counter is wider than the argument of eventfd(2).
    Case::new("eventfd-64-bit", || counter(0x1234_5678_9abc_def0)),
    Case::new("eventfd-semaphore", semaphore),
];

fn counter(value: u64) -> Result<()> {
    let full = EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
    full.write(value)?;
    let empty = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
    zdtm::checkpoint()?;
    check_eq!(full.read()?, value);
    check!(full.read().is_err(), "the counter was reset by reading it");
    check!(empty.read().is_err(), "the other one was empty");
    empty.write(3)?;
    check_eq!(empty.read()?, 3);
    let flags = nix::fcntl::fcntl(empty.as_fd(), nix::fcntl::FcntlArg::F_GETFD)?;
    check_eq!(flags, libc::FD_CLOEXEC);
    Ok(())
}

/// Reading one with EFD_SEMAPHORE takes one off.
fn semaphore() -> Result<()> {
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_SEMAPHORE)?;
    let info = zdtm::proc_text("self", &format!("fdinfo/{}", event.as_fd().as_raw_fd()))?;
    if !info.contains("eventfd-semaphore:") {
        return zdtm::skip("only Linux 6.5 and later tell which kind it is");
    }
    event.write(2)?;
    zdtm::checkpoint()?;
    check_eq!(event.read()?, 1);
    check_eq!(event.read()?, 1);
    check!(event.read().is_err(), "two were in there");
    Ok(())
}
