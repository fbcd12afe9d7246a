//! Children that are dead but not waited for.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zdtm::{Case, Child, Result, exit_code, exit_signal, wait_exit};

pub(crate) const CASES: &[Case] = &[Case::new("zombie", run)];

/// Ends with this code, and stays.
fn exited(code: i32) -> Result<Pid> {
    // SAFETY: _exit in a child that has done nothing.
    let child = Child::spawn("exits", move || unsafe { libc::_exit(code) })?;
    wait_exit(child.pid())?;
    Ok(child.pid())
}

/// Is killed by this signal, and stays.
fn killed(signal: Signal) -> Result<Pid> {
    let child = Child::spawn("is killed", || {
        Child::checkpoint();
        Ok(())
    })?;
    kill(child.pid(), signal)?;
    wait_exit(child.pid())?;
    Ok(child.pid())
}

fn run() -> Result<()> {
    let codes: Vec<(Pid, i32)> =
        [0, 1, 42, 255].into_iter().map(|code| Ok((exited(code)?, code))).collect::<Result<_>>()?;
    let signals: Vec<(Pid, Signal)> = [Signal::SIGKILL, Signal::SIGUSR1, Signal::SIGSEGV]
        .into_iter()
        .map(|signal| Ok((killed(signal)?, signal)))
        .collect::<Result<_>>()?;
    zdtm::checkpoint()?;
    for (pid, code) in codes {
        exit_code(pid, code)?;
    }
    for (pid, signal) in signals {
        exit_signal(pid, signal)?;
    }
    Ok(())
}
