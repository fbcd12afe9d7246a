//! Where a run happens, and how nothing of it survives.
//!
//! In a namespace: the runner re-executes itself twice. `nest` leaves the host's mount namespace and asks for a new pid
//! namespace for its children; `drive` is then PID 1 in there, gives it a /proc and a /run of its own, and does the run.
//! Whatever happens, the death of `drive` is the death of all. On the host `drive` is a subreaper, and kills its own
//! children until it has none: orphans come to it, so no process is out of reach and no foreign one is within.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::job::Job;
use crate::options::Place;
use crate::outcome::Outcome;

pub(crate) const NEST: &str = "__nest";
pub(crate) const DRIVE: &str = "__drive";

/// Runs one job to its outcome, from the outside.
pub(crate) fn run(job: &Job) -> Outcome {
    attempt(job).unwrap_or_else(|error| Outcome::Fail(format!("runner: {error:#}")))
}

fn attempt(job: &Job) -> Result<Outcome> {
    let log = std::fs::File::create(job.dir.join("driver.log"))?;
    let verb = match job.place {
        Place::Namespace => NEST,
        Place::Host => DRIVE,
    };
    let mut child = Command::new(std::env::current_exe()?)
        .arg(verb)
        .args(job.arguments())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    // The driver keeps its own, shorter deadlines; this is for the driver itself.
    let deadline = Instant::now() + job.timeout + Duration::from_secs(20);
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill()?;
                child.wait()?;
                return Ok(Outcome::Fail("the driver hung and was killed".to_owned()));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    Outcome::load(&job.dir.join("outcome")).with_context(|| {
        let log = std::fs::read_to_string(job.dir.join("driver.log")).unwrap_or_default();
        format!("the driver ended without a verdict: {status} {log}")
    })
}

/// The first stage: new namespaces, then wait for PID 1 in there.
pub(crate) fn nest(arguments: &[String]) -> Result<bool> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC)
        .context("unshare (root is needed)")?;
    let status = Command::new("/proc/self/exe")
        .arg(DRIVE)
        .args(arguments)
        .status()?;
    Ok(status.success())
}

/// The second stage: the run itself, then the end of everything it left.
pub(crate) fn drive(arguments: &[String]) -> Result<bool> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let job = Job::parse(arguments)?;
    match job.place {
        Place::Namespace => furnish()?,
        Place::Host => prctl::set_child_subreaper(true)?,
    }
    let outcome = crate::drive::run(&job);
    outcome.save(&job.dir.join("outcome.new"))?;
    std::fs::rename(job.dir.join("outcome.new"), job.dir.join("outcome"))?;
    kill_children()?;
    Ok(true)
}

/// Mounts what belongs to the new namespaces. The old /proc goes, so that the mount tree has no hidden twin of it.
fn furnish() -> Result<()> {
    let none = None::<&Path>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("make mounts private")?;
    umount2("/proc", MntFlags::MNT_DETACH).context("umount /proc")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none).context("mount /proc")?;
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        Some("mode=755"),
    )
    .context("mount /run")?;
    Ok(())
}

/// Kills the children until there are none; grandchildren become children on the way.
fn kill_children() -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        for pid in children()? {
            // Our child until we reap it, so the number cannot mean anybody else.
            let _ = kill(pid, Signal::SIGKILL);
        }
        match waitpid(
            None::<Pid>,
            Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL),
        ) {
            Err(nix::errno::Errno::ECHILD) => return Ok(()),
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(1)),
            _ => {}
        }
    }
    anyhow::bail!("children would not die")
}

fn children() -> Result<Vec<Pid>> {
    let own = std::process::id();
    Ok(crate::visible::processes()?
        .into_iter()
        .filter(|process| process.parent == own && process.pid != own)
        .filter_map(|process| i32::try_from(process.pid).ok())
        .map(Pid::from_raw)
        .collect())
}
