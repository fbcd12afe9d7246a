//! Signals read from a descriptor: signalfd(2).

use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use zdtm::{Case, Result, check, check_eq};

pub(crate) const CASES: &[Case] = &[Case::new("signalfd", run)];

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
