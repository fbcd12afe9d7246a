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

/// Lets this process have as many descriptors as it may, if those are few enough to be used up; otherwise so many as most
/// processes may have. How many that are.
pub fn descriptors() -> crate::Result<u32> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const MANY: libc::rlim_t = 20_000;
    const USUAL: libc::rlim_t = 1024;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let limit = if hard > MANY { USUAL } else { hard };
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard)?;
    #[allow(
        clippy::useless_conversion,
        reason = "limits have 32 bits on 32-bit machines"
    )]
    Ok(u32::try_from(limit)?)
}
