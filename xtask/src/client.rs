//! Who is served by a tree that is dumped, and knows nothing of it.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::target::last_line;

/// Somebody outside of the tree who is served by it.
pub(crate) struct Client {
    child: Child,
    log: PathBuf,
}

impl Client {
    /// Starts it.
    pub(crate) fn start(words: &[OsString], dir: &Path) -> Result<Self> {
        let log = dir.join("client.log");
        let out = File::create(&log)?;
        let child = Command::new(&words[0])
            .args(&words[1..])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        Ok(Self { child, log })
    }

    pub(crate) fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    /// Fails if it has ended: it does that only when it has found something wrong.
    pub(crate) fn lives(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the client ended early: {status}: {}", last_line(&self.log)),
        }
    }

    /// Tells it to end, and hears what it has found.
    pub(crate) fn end(mut self) -> Result<()> {
        self.lives()?;
        kill(self.pid()?, Signal::SIGTERM)?;
        let deadline = Instant::now() + Duration::from_secs(60);
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    self.child.kill()?;
                    self.child.wait()?;
                    bail!("the client does not end");
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        ensure!(
            status.success(),
            "the client: {status}: {}",
            last_line(&self.log)
        );
        Ok(())
    }
}
