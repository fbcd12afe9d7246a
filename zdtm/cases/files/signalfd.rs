//! Signals read from a descriptor: signalfd(2).

use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use zdtm::{Case, Result, check, check_eq, ret};

pub(crate) const CASES: &[Case] = &[
    Case::new("signalfd", run),
    Case::new("signalfd-highest", highest),
];

fn run() -> Result<()> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGUSR1);
    mask.add(Signal::SIGUSR2);
    mask.thread_block()?;
    let both = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK)?;
    let one = SignalFd::with_flags(&SigSet::from(Signal::SIGUSR2), SfdFlags::SFD_NONBLOCK)?;
    raise(Signal::SIGUSR1)?;
    zdtm::checkpoint()?;
    check!(one.read_signal()?.is_none());
    let number = |signal: Signal| u32::try_from(signal as i32).ok();
    check_eq!(
        both.read_signal()?.map(|info| info.ssi_signo),
        number(Signal::SIGUSR1)
    );
    raise(Signal::SIGUSR2)?;
    check_eq!(
        one.read_signal()?.map(|info| info.ssi_signo),
        number(Signal::SIGUSR2)
    );
    check!(both.read_signal()?.is_none());
    Ok(())
}

/// The last signal there is: MIPS has more of them than fit into 64 bits.
fn highest() -> Result<()> {
    let signal = libc::SIGRTMAX();
    // SAFETY: the set is emptied before use.
    let set = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        set
    };
    // SAFETY: the set lives through the calls.
    let fd = unsafe {
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        ret(libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK))?
    };
    zdtm::checkpoint()?;
    // SAFETY: it is blocked.
    ret(unsafe { libc::raise(signal) })?;
    let mut info = [0u32; 32];
    // SAFETY: a signalfd_siginfo is 128 bytes, which this is; its first word is the signal.
    let got = ret(unsafe { libc::read(fd, info.as_mut_ptr().cast(), 128) })?;
    check_eq!((got, info[0]), (128, u32::try_from(signal)?));
    Ok(())
}
