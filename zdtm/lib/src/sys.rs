//! Raw system calls with their errors as `Result`.

use std::io;

/// What libc returns, with -1 turned into the error it stands for.
pub fn ret<T: From<i8> + PartialEq>(value: T) -> io::Result<T> {
    if value == T::from(-1) {
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
    let value = ret(unsafe { libc::syscall(number, a, b, c, d, e, f) })?;
    #[allow(
        clippy::useless_conversion,
        reason = "a long has 32 bits on 32-bit machines"
    )]
    Ok(value.into())
}

/// Lets this process have as many descriptors as it may, but no more than `most`; how many that are.
pub fn descriptors(most: u32) -> crate::Result<u32> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let limit = hard.min(most.into());
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard)?;
    Ok(u32::try_from(limit)?)
}
