//! Descriptors of a process that is no more.
#![allow(unsafe_code, reason = "a process must be made to be gone")]

use std::os::fd::OwnedFd;

use nix::unistd::{ForkResult, Pid, fork};

use crate::error::{Context, Result};
use crate::fds::pidfd_open_with;
use crate::wait;

/// Makes a process, opens it once for each of these flags of pidfd_open(2), and buries it.
pub fn pidfds_of_the_gone(flags: &[u32]) -> Result<Vec<OwnedFd>> {
    // SAFETY: the child makes one call, which touches no state that another thread may have left in disorder.
    let child: Pid = match unsafe { fork() }.call("fork")? {
        // SAFETY: ends the child, and runs nothing of ours on the way.
        ForkResult::Child => unsafe { libc::_exit(0) },
        ForkResult::Parent { child } => child,
    };
    // It can be opened until it is reaped.
    let opened = flags.iter().map(|flags| pidfd_open_with(child, *flags));
    let opened = opened.collect();
    wait::reap(child)?;
    opened
}
