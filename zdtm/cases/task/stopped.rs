//! Stopped processes.

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, setpgid};
use zdtm::{Case, Child, Result, check_eq, exit_signal, status_field};

pub(crate) const CASES: &[Case] = &[
    Case::new("stopped", || continued(Signal::SIGSTOP)),
    Case::new("stopped-tstp", || continued(Signal::SIGTSTP)),
    Case::new("stopped-ttin", || continued(Signal::SIGTTIN)),
    Case::new("stopped-ttou", || continued(Signal::SIGTTOU)),
    Case::new("stopped-then-killed", killed),
    Case::new("stopped-waited-for", waited_for),
    Case::new("stopped-threads", threads),
    Case::new("stopped-pending", pending),
    Case::new("continued-before", continued_before),
];

/// A child in a group of its own: job control does not stop orphaned groups, which ours is.
fn child(body: impl FnOnce() -> Result<()>) -> Result<Child> {
    let child = Child::spawn("stopped", body)?;
    setpgid(child.pid(), child.pid())?;
    Ok(child)
}

fn waits() -> Result<()> {
    Child::checkpoint();
    Ok(())
}

/// Stops it and sees that it did, leaving the report for others to find.
fn stop(pid: Pid, signal: Signal) -> Result<()> {
    kill(pid, signal)?;
    check_eq!(stop_report(pid)?, WaitStatus::Stopped(pid, signal));
    Ok(())
}

fn stop_report(pid: Pid) -> Result<WaitStatus> {
    Ok(waitid(
        Id::Pid(pid),
        WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT,
    )?)
}

fn check_stopped(pid: Pid) -> Result<()> {
    check_eq!(status_field(pid, "State")?, "T (stopped)");
    Ok(())
}

fn continued(signal: Signal) -> Result<()> {
    let child = child(waits)?;
    stop(child.pid(), signal)?;
    zdtm::checkpoint()?;
    check_stopped(child.pid())?;
    check_eq!(
        stop_report(child.pid())?,
        WaitStatus::Stopped(child.pid(), signal)
    );
    kill(child.pid(), Signal::SIGCONT)?;
    check_eq!(
        waitid(Id::Pid(child.pid()), WaitPidFlag::WCONTINUED)?,
        WaitStatus::Continued(child.pid())
    );
    child.finish()
}

fn killed() -> Result<()> {
    let child = child(waits)?;
    stop(child.pid(), Signal::SIGSTOP)?;
    zdtm::checkpoint()?;
    check_stopped(child.pid())?;
    kill(child.pid(), Signal::SIGKILL)?;
    exit_signal(child.pid(), Signal::SIGKILL)
}

/// The parent has taken the report before; it does not get it twice.
fn waited_for() -> Result<()> {
    let child = child(waits)?;
    stop(child.pid(), Signal::SIGSTOP)?;
    waitpid(child.pid(), Some(WaitPidFlag::WUNTRACED))?;
    zdtm::checkpoint()?;
    check_stopped(child.pid())?;
    let again = waitid(
        Id::Pid(child.pid()),
        WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG,
    )?;
    check_eq!(again, WaitStatus::StillAlive);
    kill(child.pid(), Signal::SIGCONT)?;
    child.finish()
}

/// All threads stop and all go on.
fn threads() -> Result<()> {
    let child = child(|| {
        let team = zdtm::Team::start(5, |_, set_up| {
            set_up();
            zdtm::wait();
            Ok(())
        })?;
        Child::checkpoint();
        team.join()?;
        Ok(())
    })?;
    stop(child.pid(), Signal::SIGSTOP)?;
    zdtm::checkpoint()?;
    for thread in std::fs::read_dir(format!("/proc/{}/task", child.pid()))? {
        let tid = thread?.file_name();
        let who = format!("{}/task/{}", child.pid(), tid.to_string_lossy());
        check_eq!(status_field(who, "State")?, "T (stopped)");
    }
    kill(child.pid(), Signal::SIGCONT)?;
    child.finish()
}

/// A signal sent to a stopped process is delivered when it goes on, not earlier.
fn pending() -> Result<()> {
    let child = child(waits)?;
    stop(child.pid(), Signal::SIGSTOP)?;
    kill(child.pid(), Signal::SIGUSR1)?;
    zdtm::checkpoint()?;
    check_stopped(child.pid())?;
    kill(child.pid(), Signal::SIGCONT)?;
    exit_signal(child.pid(), Signal::SIGUSR1)
}

/// Stopped once and gone on since: it is not stopped.
fn continued_before() -> Result<()> {
    let child = child(waits)?;
    stop(child.pid(), Signal::SIGSTOP)?;
    kill(child.pid(), Signal::SIGCONT)?;
    waitid(Id::Pid(child.pid()), WaitPidFlag::WCONTINUED)?;
    zdtm::checkpoint()?;
    check_eq!(&status_field(child.pid(), "State")?[..1], "S");
    child.finish()
}
