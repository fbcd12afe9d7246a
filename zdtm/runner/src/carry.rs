//! A tree on its way from one machine to another: what the runner has to know of it beside the images.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::unistd::Pid;

use crate::job::Job;
use crate::outcome::Outcome;
use crate::visible::Visible;

/// In the directory of the run: the pid of the root in the first line, what the tree looked like in the others.
const RECORD: &str = "record";

/// What a case may look like elsewhere: numbers that a kernel gives, and lines that only one of them has.
pub(crate) const ELSEWHERE: &[&str] = &["ns/", "cgroup"];

/// Far above the pids of any case.
const OTHER_PIDS: &str = "30000";

/// Sees to it that criu itself gets none of the pids that it has to restore.
pub(crate) fn make_way() -> Result<()> {
    let path = "/proc/sys/kernel/ns_last_pid";
    fs::write(path, OTHER_PIDS).context(path)
}

/// Notes down what is needed to restore it.
pub(crate) fn leave(job: &Job, root: Pid, looks: &Visible) -> Result<()> {
    let text = format!("{root}\n{}", looks.to_text());
    fs::write(job.dir.join(RECORD), text).context(RECORD)
}

/// Reads that again.
pub(crate) fn take(job: &Job) -> Result<(Pid, Visible)> {
    let text = fs::read_to_string(job.dir.join(RECORD)).context(RECORD)?;
    let (root, looks) = text.split_once('\n').context(RECORD)?;
    Ok((Pid::from_raw(root.parse()?), Visible::from_text(looks)))
}

/// Why there is nothing to restore, if there is nothing.
pub(crate) fn nothing(dir: &Path) -> Option<Outcome> {
    if dir.join(RECORD).exists() {
        return None;
    }
    let before = Outcome::load(&dir.join("outcome"));
    let why = before.map_or("nothing was tried".to_owned(), |outcome| {
        let reason = outcome.reason().lines().next().unwrap_or_default();
        format!("{} {reason}", outcome.word())
    });
    Some(Outcome::Skip(format!("was not dumped: {why}")))
}

/// A case that may stay where it is has not failed when it does.
pub(crate) fn judge(outcome: Outcome, stays: &str) -> Outcome {
    match outcome {
        Outcome::Fail(why) if !stays.is_empty() => {
            let line = why.lines().last().unwrap_or_default().trim();
            Outcome::Skip(format!("{stays}: {line}"))
        }
        outcome => outcome,
    }
}
