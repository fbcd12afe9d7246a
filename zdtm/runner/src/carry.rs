//! A tree on its way from one machine to another: what the runner has to know of it beside the images.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::unistd::Pid;

use crate::job::Job;
use crate::outcome::Outcome;
use crate::visible::Visible;

/// In the directory of the run: the pid of the root and how many huge pages the machine had set aside in the first line,
/// what the tree looked like in the others.
const RECORD: &str = "record";

/// What a machine has to set aside before anybody asks for it.
const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

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
    let huge = fs::read_to_string(HUGE_PAGES).unwrap_or_default();
    let text = format!("{root} {}\n{}", huge.trim(), looks.to_text());
    fs::write(job.dir.join(RECORD), text).context(RECORD)
}

/// Reads that again. This machine sets aside what the other one had.
pub(crate) fn take(job: &Job) -> Result<(Pid, Visible)> {
    let text = fs::read_to_string(job.dir.join(RECORD)).context(RECORD)?;
    let (numbers, looks) = text.split_once('\n').context(RECORD)?;
    let (root, huge) = numbers.split_once(' ').context(RECORD)?;
    if !huge.is_empty() {
        fs::write(HUGE_PAGES, huge).context(HUGE_PAGES)?;
    }
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

impl Visible {
    /// A line each, to be read by [`Visible::from_text`].
    pub(crate) fn to_text(&self) -> String {
        let line = |(key, value): (&String, &String)| {
            format!("{key}\t{}\n", value.replace('\n', "\u{2424}"))
        };
        self.0.iter().map(line).collect()
    }

    /// What [`Visible::to_text`] wrote.
    pub(crate) fn from_text(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once('\t'));
        let pair = |(key, value): (&str, &str)| (key.to_owned(), value.replace('\u{2424}', "\n"));
        Self(lines.map(pair).collect())
    }

    /// Takes out of both looks what is a kernel's own: lines that only one of them has, how it guards itself against
    /// speculation, its numbers of namespaces, sizes it gives to directories of /proc, its way with pidfds, its vdso and
    /// page of signals, of which a restored task has two, and how much it keeps of an auxiliary vector.
    pub(crate) fn keep_common(&mut self, other: &mut Self) {
        let vdso = |value: &str| {
            let names = ["[vdso]", "[vvar", "[sigpage]"];
            names.iter().any(|name| value.contains(name))
        };
        let places: Vec<String> = self
            .0
            .iter()
            .filter(|(_, value)| vdso(value))
            .map(|(key, _)| key.clone())
            .collect();
        let keep = |key: &str, value: &str, other: &Self| {
            let own = key.contains("/Speculation") || vdso(value) || is_namespace(value);
            let thread = key.contains("/thread/");
            !own && !places.iter().any(|place| place == key)
                && (!thread || other.0.contains_key(key))
        };
        self.0.retain(|key, value| keep(key, value, other));
        other.0.retain(|key, value| keep(key, value, self));
        for (key, value) in &mut self.0 {
            if key.ends_with("/auxv")
                && let Some(there) = other.0.get_mut(key)
            {
                keep_shorter(value, there);
            }
        }
        for look in [self, other] {
            for (key, value) in &mut look.0 {
                if key.contains("/fd/") {
                    *value = without_own(value);
                }
                if key.contains("/maps/") {
                    // A lock on fault has no code of its own in older kernels.
                    *value = value.replace(" lo ??", " lo lf");
                }
            }
        }
    }
}

/// Of two auxiliary vectors, of which one is the beginning of the other, that one.
fn keep_shorter(one: &mut String, other: &mut String) {
    let filled = |words: &str| {
        let words = words.trim_end_matches(['0', ' ']);
        words.split(' ').count()
    };
    let common = filled(one).min(filled(other));
    let first =
        |words: &str| -> Vec<String> { words.split(' ').take(common).map(str::to_owned).collect() };
    if first(one) == first(other) {
        other.clone_from(one);
    }
}

/// A descriptor of a namespace: `ipc:[4026532152]`.
fn is_namespace(value: &str) -> bool {
    let kind = value.split_once(":[").map_or("", |(kind, _)| kind);
    !["", "pipe", "socket"].contains(&kind) && kind.bytes().all(|byte| byte.is_ascii_lowercase())
}

/// A descriptor without the words that differ by kernel.
fn without_own(value: &str) -> String {
    let (proc, pidfd) = (value.starts_with("/proc"), value.contains("[pidfd]"));
    let own = |word: &&str| {
        word.starts_with("eventfd-semaphore=")
            || (proc && word.starts_with("size="))
            || (pidfd
                && (word.starts_with("mode=")
                    || word.starts_with("links=")
                    || word.starts_with("file=")))
    };
    let words: Vec<&str> = value.split(' ').filter(|word| !own(word)).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_survives_the_file() {
        let look = Visible([("    5/cmdline".to_owned(), "a\tb\nc".to_owned())].into());
        assert_eq!(Visible::from_text(&look.to_text()), look);
    }

    #[test]
    fn what_differs_by_kernel_is_left_out() {
        let look = |values: &[(&str, &str)]| {
            Visible(
                values
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
            )
        };
        let mut old = look(&[
            ("    2/fd/0001", "ipc:[4026532151] mode=100444"),
            ("    2/fd/0002", "anon_inode:[eventfd] eventfd-count=2"),
            ("    2/maps/1-2", "r-xp 0 [vdso] []"),
            ("    2/auxv", "10 4000 6 10 0000"),
            ("    2/maps/4-5", "r-xp 0 [sigpage] []"),
            ("    2/state", "alive"),
        ]);
        let mut new = look(&[
            ("    2/fd/0001", "ipc:[4026532152] mode=100444"),
            (
                "    2/fd/0002",
                "anon_inode:[eventfd] eventfd-count=2 eventfd-semaphore=0",
            ),
            ("    2/maps/1-2", "r-xp 0  []"),
            ("    2/maps/3-4", "r-xp 0 [vdso] []"),
            ("    2/auxv", "10 4000 6 10 1b 20 0000"),
            ("    2/maps/4-5", "r-xp 0  []"),
            ("    2/maps/8-9", "r-xp 0 [sigpage] []"),
            ("    2/state", "alive"),
            ("    2/thread/2/untag_mask", "0xff"),
        ]);
        old.keep_common(&mut new);
        assert_eq!(old, new);
        assert_eq!(old.0.len(), 3);
    }

    #[test]
    fn vectors_that_differ_before_their_end_are_different() {
        let (mut one, mut other) = ("10 1 6 10 00".to_owned(), "10 2 6 10 1b 20 00".to_owned());
        keep_shorter(&mut one, &mut other);
        assert_ne!(one, other);
    }
}
