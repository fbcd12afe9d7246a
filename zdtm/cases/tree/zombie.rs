//! Children that are dead but not waited for.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zdtm::{Case, Child, Result, exit_code, exit_signal, wait_exit};

pub(crate) const CASES: &[Case] = &[
    Case::new("zombie", small),
    Case::new("zombie-exit-255", large),
    Case::new("zombie-many", many),
];

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

fn small() -> Result<()> {
    statuses(
        &[0, 1, 42, 127],
        &[Signal::SIGKILL, Signal::SIGUSR1, Signal::SIGSEGV],
    )
}

/// All eight bits of the code.
fn large() -> Result<()> {
    statuses(&[128, 200, 255], &[])
}

fn many() -> Result<()> {
    statuses(&[3; 100], &[])
}

fn statuses(codes: &[i32], signals: &[Signal]) -> Result<()> {
    let codes: Vec<(Pid, i32)> = codes
        .iter()
        .map(|code| Ok((exited(*code)?, *code)))
        .collect::<Result<_>>()?;
    let signals: Vec<(Pid, Signal)> = signals
        .iter()
        .map(|signal| Ok((killed(*signal)?, *signal)))
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
