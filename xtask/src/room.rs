//! A pid and mount namespace for targets: whatever a verb starts is in there, and dies with it.
//!
//! The verb runs twice. Outside it builds what it needs; inside it is PID 1, so that restored processes, which
//! nobody waits for, are its children, and no signal of it can reach a process that it did not start. /run and
//! /dev/shm are its own: in the one CRIU keeps what it found out about the kernel, in the other are images.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::{shell, target};

const INSIDE: &str = "XTASK_ROOM";

/// Whether this is the inner of the two.
pub(crate) fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some() && std::process::id() == 1
}

/// Outside: runs the same verb inside, and returns how it ended.
pub(crate) fn enter(verb: &str, words: &[String]) -> Result<ExitStatus> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC)
        .context("unshare (root is needed)")?;
    let status = Command::new("/proc/self/exe")
        .arg(verb)
        .args(words)
        .env(INSIDE, "1")
        .status()?;
    Ok(status)
}

/// Inside: a tmpfs of the room, for images and the files of targets.
const MEMORY: &str = "/dev/shm";

/// Inside: makes the namespaces fit to live in.
///
/// Descriptors that came from outside are closed: CRIU refuses a target with a file of a mount namespace that it
/// does not see.
pub(crate) fn furnish() -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    for fd in numbers("/proc/self/fd")?.into_iter().filter(|fd| *fd > 2) {
        // One of them was that of the listing itself.
        let _ = nix::unistd::close(fd);
    }
    let none = None::<&Path>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).context("make mounts private")?;
    for dir in ["/proc", MEMORY] {
        umount2(dir, MntFlags::MNT_DETACH).with_context(|| format!("umount {dir}"))?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none).context("mount /proc")?;
    let tmpfs = Some("tmpfs");
    for dir in ["/run", MEMORY] {
        let options = Some("mode=755,size=90%");
        mount(tmpfs, dir, tmpfs, MsFlags::MS_NOSUID, options)
            .with_context(|| format!("mount {dir}"))?;
    }
    Ok(())
}

/// Where the message queues of the room are.
pub(crate) const QUEUES: &str = "/run/queues";

/// Inside: lets them be seen.
pub(crate) fn mount_queues() -> Result<()> {
    std::fs::create_dir(QUEUES)?;
    let (kind, none) = (Some("mqueue"), None::<&Path>);
    mount(kind, QUEUES, kind, MsFlags::empty(), none).context("mount mqueue")
}

/// Inside: kills all that is left, until nothing is. A `Child` that has not been waited for must not be left.
pub(crate) fn empty() -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        for pid in others()? {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
        match waitpid(None::<Pid>, Some(flags)) {
            Err(Errno::ECHILD) => return Ok(()),
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(1)),
            _ => {}
        }
    }
    bail!("processes would not die: {:?}", others()?)
}

/// Inside: removes all objects of System V, which outlive processes.
pub(crate) fn remove_objects() -> Result<()> {
    let status = Command::new("ipcrm").arg("--all").status()?;
    anyhow::ensure!(status.success(), "ipcrm --all: {status}");
    Ok(())
}

/// Inside: reaps all who are dead but one, whom somebody else waits for.
pub(crate) fn bury(but: Pid) -> Result<()> {
    let dead = |pid: &Pid| *pid != but && matches!(target::state(*pid), Some('Z' | 'X'));
    for pid in others()?.iter().filter(|pid| dead(pid)) {
        match waitpid(*pid, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
            // Children of others.
            Ok(_) | Err(Errno::ECHILD) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Inside: every process but ourselves.
pub(crate) fn others() -> Result<Vec<Pid>> {
    let pids = numbers("/proc")?.into_iter().filter(|pid| *pid != 1);
    Ok(pids.map(Pid::from_raw).collect())
}

/// The entries of a directory that are numbers, in order.
pub(crate) fn numbers(dir: impl AsRef<Path>) -> Result<Vec<i32>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        numbers.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<i32>().ok()),
        );
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Inside: an empty directory in memory. What had the name before is gone.
pub(crate) fn fresh(name: &str) -> Result<PathBuf> {
    let dir = Path::new(MEMORY).join(name);
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    std::fs::create_dir(&dir)?;
    Ok(dir)
}

/// Inside: copies a directory to where it is seen outside, and says where.
pub(crate) fn keep(dir: &Path, name: &str) -> Result<PathBuf> {
    let kept = shell::target()?.join("kept");
    std::fs::create_dir_all(&kept)?;
    let kept = kept.join(name);
    let _ = std::fs::remove_dir_all(&kept);
    let words = [Path::new("-r"), dir, &kept];
    let status = Command::new("cp").args(words).status()?;
    anyhow::ensure!(status.success(), "cp {words:?}: {status}");
    Ok(kept)
}
