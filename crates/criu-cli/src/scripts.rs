//! Action scripts: programs run at fixed steps, which may look, act, and mostly also refuse.
//!
//! A script learns the step from `CRTOOLS_SCRIPT_ACTION`, the images from `CRTOOLS_IMAGE_DIR` and, once there is
//! a root task, its pid from `CRTOOLS_INIT_PID`. All scripts run, in the order given, also after one has refused.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;

use nix::unistd::Pid;

use crate::error::{Failure, Kind};

/// A step scripts are told of, in the order they happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The image streamer is ready, no image is written yet.
    PreStream,
    /// Before a dump begins.
    PreDump,
    /// Packets must be blocked now.
    NetworkLock,
    /// Packets may pass again.
    NetworkUnlock,
    /// The images are complete, the tasks still frozen. A refusal lets the tasks run on.
    PostDump,
    /// Before anything is restored.
    PreRestore,
    /// The root task exists, its namespaces are empty.
    SetupNamespaces,
    /// Its namespaces are filled.
    PostSetupNamespaces,
    /// All tasks exist and are stopped. A refusal kills them.
    PostRestore,
    /// About to let go; too late to refuse.
    PreResume,
    /// The tasks run.
    PostResume,
    /// A terminal's master has no owner in the tree.
    OrphanPtsMaster,
    /// A server accepts connections.
    StatusReady,
}

impl Action {
    /// The step as scripts and RPC clients spell it.
    pub fn name(self) -> &'static str {
        match self {
            Action::PreStream => "pre-stream",
            Action::PreDump => "pre-dump",
            Action::NetworkLock => "network-lock",
            Action::NetworkUnlock => "network-unlock",
            Action::PostDump => "post-dump",
            Action::PreRestore => "pre-restore",
            Action::SetupNamespaces => "setup-namespaces",
            Action::PostSetupNamespaces => "post-setup-namespaces",
            Action::PostRestore => "post-restore",
            Action::PreResume => "pre-resume",
            Action::PostResume => "post-resume",
            Action::OrphanPtsMaster => "orphan-pts-master",
            Action::StatusReady => "status-ready",
        }
    }
}

/// The scripts of one run.
#[derive(Clone, Debug)]
pub struct Scripts {
    /// The programs, as given.
    pub paths: Vec<OsString>,
    /// The images directory.
    pub images: PathBuf,
    /// Where they run.
    pub work: PathBuf,
}

impl Scripts {
    /// Tells all scripts of a step. The status of a refused `post-dump` becomes ours.
    pub fn run(&self, action: Action, root: Option<Pid>) -> Result<(), Failure> {
        let mut refused = Ok(());
        for path in &self.paths {
            tracing::debug!(action = action.name(), script = %path.display(), "script");
            let outcome = self
                .run_one(path, action, root)
                .map_err(|failure| failure.object(format!("script {}", path.display())));
            refused = refused.and(outcome);
        }
        refused
    }

    fn run_one(&self, path: &OsString, action: Action, root: Option<Pid>) -> Result<(), Failure> {
        let stage = action.name();
        let failed = |error: std::io::Error| Failure::from_chain(stage, &error);
        // By descriptor: the path may not lead there from where the script looks.
        let images = File::open(&self.images).map_err(failed)?;
        // The shell finds it in $PATH and runs it also without a `#!` line; "$0" is one word whatever is in it.
        let mut command = Command::new("sh");
        command
            .args(["-c", "\"$0\""])
            .arg(path)
            .current_dir(&self.work);
        command.env("CRTOOLS_SCRIPT_ACTION", stage);
        command.env(
            "CRTOOLS_IMAGE_DIR",
            format!("/proc/{}/fd/{}", std::process::id(), images.as_raw_fd()),
        );
        if let Some(root) = root {
            command.env("CRTOOLS_INIT_PID", root.to_string());
        }
        let status = command.status().map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        let own = status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .filter(|_| action == Action::PostDump);
        Err(Failure::new(Kind::Script, stage, status.to_string()).exits(own.unwrap_or(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::path::Path;

    fn scripts(dir: &Path, texts: &[&str]) -> io::Result<Scripts> {
        use std::os::unix::fs::PermissionsExt;
        let mut paths = Vec::new();
        for (number, text) in texts.iter().enumerate() {
            let path = dir.join(format!("a script {number}"));
            std::fs::write(&path, text)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
            paths.push(path.into());
        }
        Ok(Scripts {
            paths,
            images: dir.to_owned(),
            work: dir.to_owned(),
        })
    }

    #[test]
    fn a_script_learns_the_step() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let scripts = scripts(
            dir.path(),
            &["echo $CRTOOLS_SCRIPT_ACTION $CRTOOLS_INIT_PID > $CRTOOLS_IMAGE_DIR/seen"],
        )?;
        assert_eq!(
            scripts.run(Action::PreResume, Some(Pid::from_raw(42))),
            Ok(())
        );
        assert_eq!(
            std::fs::read_to_string(dir.path().join("seen"))?,
            "pre-resume 42\n"
        );
        Ok(())
    }

    #[test]
    fn a_refusal_stops_no_other_script_and_only_post_dump_gives_its_status() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let scripts = scripts(dir.path(), &["exit 3", "echo > second"])?;
        for (action, status) in [(Action::PostDump, 3), (Action::PreDump, 1)] {
            let failure = scripts
                .run(action, None)
                .expect_err("the first script exits with 3");
            assert_eq!((failure.kind, failure.exit_status), (Kind::Script, status));
            assert!(dir.path().join("second").exists());
        }
        Ok(())
    }
}
