//! Raw system calls with their errors as `Result`.

use std::io;
use std::time::{Duration, Instant};

use crate::Result;

/// What libc returns, with -1 turned into the error it stands for.
pub fn ret<T: Into<i64> + Copy>(value: T) -> io::Result<T> {
    if value.into() == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

/// A system call libc has no function for.
///
/// # Safety
/// As with the call itself: every argument that is an address must be good for what the call does there.
pub unsafe fn syscall(number: libc::c_long, arguments: [usize; 6]) -> io::Result<i64> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: passed on to our caller.
    ret(unsafe { libc::syscall(number, a, b, c, d, e, f) })
}

/// Checks that something that sleeps for a set time took that long altogether, with the restore in the middle.
pub struct Timing {
    started: Instant,
    length: Duration,
}

impl Timing {
    /// Starts measuring a sleep of this length.
    pub fn start(length: Duration) -> Self {
        Self {
            started: Instant::now(),
            length,
        }
    }

    /// The sleep is over: not too early, and it did not start anew either.
    ///
    /// CLOCK_MONOTONIC goes on while nothing runs, so the elapsed time has the outage in it: a relative sleep goes
    /// on with what was left and ends later by the outage, an absolute one ends on time. Early is always wrong.
    pub fn finish(&self) -> Result<Duration> {
        let took = self.started.elapsed();
        crate::check!(
            took + Duration::from_millis(2) >= self.length,
            "slept {took:?} of {:?}",
            self.length
        );
        Ok(took)
    }
}
