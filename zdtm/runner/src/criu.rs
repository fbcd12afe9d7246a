//! Calls of the criu under test.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How a call ended.
pub(crate) enum Call {
    Done,
    /// Nonzero exit: the status, and the errors its log mentions.
    Refused(String),
    /// Did not end in time and was killed.
    Hung(String),
}

/// Runs `criu VERB` with its images and its log in the given directory.
pub(crate) fn call(
    binary: &Path,
    verb: &str,
    images: &Path,
    arguments: &[String],
    deadline: Instant,
) -> Result<Call> {
    std::fs::create_dir_all(images)?;
    let output = std::fs::File::create(images.join(format!("{verb}.out")))?;
    let log = format!("{verb}.log");
    let mut child = Command::new(binary)
        .args([verb, "-D"])
        .arg(images)
        .args(["-o", &log, "-v4"])
        .args(arguments)
        .current_dir(images)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .with_context(|| binary.display().to_string())?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(match status.success() {
                true => Call::Done,
                false => Call::Refused(format!("{verb}: {status}{}", errors(images, verb))),
            });
        }
        if Instant::now() > deadline {
            kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGKILL)?;
            child.wait()?;
            return Ok(Call::Hung(format!("{verb}: hung{}", errors(images, verb))));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether `criu check` finds this feature.
pub(crate) fn check(binary: &Path, feature: &str) -> Result<bool> {
    let output = Command::new(binary)
        .args(["check", "--feature", feature])
        .stdin(Stdio::null())
        .output()
        .with_context(|| binary.display().to_string())?;
    Ok(output.status.success())
}

/// The telling lines of criu's log, or of its standard error when it wrote no log.
fn errors(images: &Path, verb: &str) -> String {
    let read = |name: String| std::fs::read(images.join(name)).unwrap_or_default();
    let log = String::from_utf8_lossy(&read(format!("{verb}.log"))).into_owned();
    let mut lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("Error") || line.contains("ERROR"))
        .collect();
    let output = String::from_utf8_lossy(&read(format!("{verb}.out"))).into_owned();
    if lines.is_empty() {
        lines = output.lines().rev().take(5).collect();
        lines.reverse();
    }
    lines
        .iter()
        .take(6)
        .map(|line| format!("\n    {line}"))
        .collect()
}
