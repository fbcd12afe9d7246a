//! A process that is dumped, and what can be seen of it from outside.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Pid;

use crate::room;

/// A process that was started here, with a session, a directory and a log of its own, and nothing else from us.
#[derive(Debug)]
pub(crate) struct Target {
    child: Child,
    pub(crate) dir: PathBuf,
}

impl Target {
    /// Starts `words`. What they name must call setsid(2) itself, or be started by setsid(1).
    pub(crate) fn start(words: &[impl AsRef<OsStr>], dir: &Path) -> Result<Self> {
        let log = File::create(dir.join("log"))?;
        let (program, args) = words.split_first().context("nothing to start")?;
        let child = Command::new(program)
            .args(args)
            .env_remove("XTASK_ROOM")
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| program.as_ref().display().to_string())?;
        let dir = dir.to_owned();
        Ok(Self { child, dir })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until there is a file of this name in the directory of the target.
    pub(crate) fn file(&mut self, name: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !self.dir.join(name).exists() {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "the target ended early: {status}: {}",
                    last_line(&self.dir.join("log"))
                );
            }
            ensure!(
                Instant::now() < deadline,
                "no file {name} after {patience:?}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits for its death by the dump, which must come.
    pub(crate) fn killed(mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        self.end()?;
        bail!("the target is alive after the dump")
    }

    /// Kills and reaps it, however it is.
    pub(crate) fn end(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        room::empty()
    }
}

/// The last line of a file, for errors.
pub(crate) fn last_line(file: &Path) -> String {
    let text = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().last().unwrap_or_default().to_owned()
}

/// All threads of all processes in the room but PID 1, zombies left out.
pub(crate) fn census() -> Result<BTreeMap<i32, Vec<i32>>> {
    let mut census = BTreeMap::new();
    for pid in room::others()? {
        // It may be gone by now.
        if let Ok(threads) = room::numbers(format!("/proc/{pid}/task"))
            && state(pid).is_some_and(|state| state != 'Z' && state != 'X')
        {
            census.insert(pid.as_raw(), threads);
        }
    }
    Ok(census)
}

/// The letter that stands for the state of a process.
pub(crate) fn state(pid: Pid) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may have blanks and parentheses in it.
    stat.rsplit_once(") ")?.1.chars().next()
}
