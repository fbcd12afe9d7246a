//! What a killed criu may not have changed, seen from outside: tasks, their signals, mappings and descriptors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::room;
use crate::target::census;

/// All processes in the room but PID 1.
#[derive(Debug)]
pub(crate) struct View {
    processes: BTreeMap<i32, Process>,
}

#[derive(Debug)]
struct Process {
    maps: BTreeSet<String>,
    fds: BTreeMap<i32, String>,
    /// Of each thread, what must be the same before and after.
    threads: BTreeMap<i32, String>,
}

/// Lines of `/proc/PID/status` that a stopped task could come back with changed.
const STATUS: &[&str] = &[
    "Name",
    "SigPnd",
    "ShdPnd",
    "SigBlk",
    "SigIgn",
    "SigCgt",
    "CapEff",
    "NoNewPrivs",
    "Seccomp",
];

impl View {
    /// Fails if a task is stopped or traced, or goes while it is looked at.
    pub(crate) fn new() -> Result<Self> {
        let mut processes = BTreeMap::new();
        for (pid, tids) in census()? {
            let dir = format!("/proc/{pid}");
            let mut threads = BTreeMap::new();
            for tid in tids {
                threads.insert(tid, thread(&format!("{dir}/task/{tid}"), tid)?);
            }
            let maps = read(&format!("{dir}/maps"))?;
            let mut fds = BTreeMap::new();
            for fd in room::numbers(format!("{dir}/fd"))? {
                let link = std::fs::read_link(format!("{dir}/fd/{fd}"))?;
                let info = read(&format!("{dir}/fdinfo/{fd}"))?;
                fds.insert(fd, format!("{} {info}", link.display()));
            }
            let maps = maps.lines().map(str::to_owned).collect();
            processes.insert(pid, Process { maps, fds, threads });
        }
        Ok(Self { processes })
    }

    /// Refuses any difference but one mapping more in each process. Says how many have one.
    pub(crate) fn compare(&self, after: &Self) -> Result<usize> {
        for pid in after.processes.keys() {
            ensure!(self.processes.contains_key(pid), "process {pid} is new");
        }
        for pid in self.processes.keys() {
            ensure!(
                after.processes.contains_key(pid),
                "process {pid} is gone: {}",
                end(*pid)
            );
        }
        let mut more = 0;
        for ((pid, before), after) in self.processes.iter().zip(after.processes.values()) {
            same("thread", &before.threads, &after.threads)
                .with_context(|| format!("process {pid}"))?;
            same("descriptor", &before.fds, &after.fds)
                .with_context(|| format!("process {pid}"))?;
            more +=
                mappings(&before.maps, &after.maps).with_context(|| format!("process {pid}"))?;
        }
        Ok(more)
    }
}

fn same(what: &str, before: &BTreeMap<i32, String>, after: &BTreeMap<i32, String>) -> Result<()> {
    for number in before.keys() {
        ensure!(after.contains_key(number), "{what} {number} is gone");
    }
    for (number, after) in after {
        ensure!(
            before.contains_key(number),
            "{what} {number} is new: {after:?}"
        );
    }
    for ((number, before), after) in before.iter().zip(after.values()) {
        ensure!(
            before == after,
            "{what} {number} was {before:?}, is {after:?}"
        );
    }
    Ok(())
}

/// How a process ended that nobody has waited for: the last number of `/proc/PID/stat` is what wait(2) will say.
fn end(pid: i32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    match stat
        .split_whitespace()
        .last()
        .and_then(|word| word.parse::<i32>().ok())
    {
        Some(status) if status & 127 != 0 => format!("killed by signal {}", status & 127),
        Some(status) => format!("exited with {}", status >> 8),
        None => "no trace of it".to_owned(),
    }
}

/// Allows for one line more; or, as mappings that touch may merge, one in place of those it covers.
fn mappings(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Result<usize> {
    let added: Vec<_> = after.difference(before).collect();
    let gone: Vec<_> = before.difference(after).collect();
    match (&added[..], &gone[..]) {
        ([], []) => Ok(0),
        ([one], _) => {
            let (start, end) = range(one)?;
            for gone in &gone {
                let (from, to) = range(gone)?;
                ensure!(start <= from && to <= end, "the mapping {gone} is gone");
            }
            Ok(1)
        }
        _ => bail!("mappings {added:?} instead of {gone:?}"),
    }
}

fn range(line: &str) -> Result<(u64, u64)> {
    let (start, rest) = line.split_once('-').context("a range")?;
    let end = rest.split(' ').next().unwrap_or_default();
    Ok((
        u64::from_str_radix(start, 16)?,
        u64::from_str_radix(end, 16)?,
    ))
}

fn thread(dir: &str, tid: i32) -> Result<String> {
    let status = read(&format!("{dir}/status"))?;
    let value = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap_or_default()
    };
    let state = value("State");
    ensure!(
        !state.starts_with(['T', 't', 'Z', 'X']),
        "task {tid} is in state {state}"
    );
    ensure!(
        value("TracerPid") == "0",
        "task {tid} has the tracer {}",
        value("TracerPid")
    );
    let fields: Vec<_> = STATUS
        .iter()
        .map(|name| format!("{name} {}", value(name)))
        .collect();
    Ok(fields.join(", "))
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.to_owned())
}

/// The diary of `workload checked`: of each task, how often it has looked at itself.
#[derive(Debug)]
pub(crate) struct Diary(BTreeMap<String, u64>);

/// How many tasks the workload has.
const TASKS: usize = 10;

impl Diary {
    /// Fails if a task has found something wrong.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let text = std::fs::read(dir.join("diary")).context("diary")?;
        let mut ticks = BTreeMap::new();
        for line in String::from_utf8_lossy(&text).lines() {
            let mut words = line.split_whitespace();
            let (Some(name), Some(tick), Some(verdict)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            ensure!(verdict == "ok", "it found itself wrong: {}", line.trim());
            ticks.insert(name.to_owned(), tick.parse()?);
        }
        ensure!(
            ticks.len() == TASKS,
            "{} of {TASKS} tasks have said something",
            ticks.len()
        );
        Ok(Self(ticks))
    }

    /// Restored tasks count from where they were dumped: what others have come to since is not theirs. The size of
    /// the file stays: it is part of what a restore checks.
    pub(crate) fn blank(dir: &Path) -> Result<()> {
        let path = dir.join("diary");
        let size = std::fs::metadata(&path).context("diary")?.len();
        let file = File::options().write(true).open(&path)?;
        Ok(file.write_all_at(&vec![b' '; usize::try_from(size)?], 0)?)
    }

    /// Fails if a task has not looked at least twice since.
    pub(crate) fn goes_on(&self, later: &Self) -> Result<()> {
        for (name, before) in &self.0 {
            let now = later.0.get(name).copied().unwrap_or_default();
            ensure!(
                now >= before + 2,
                "{name} does not go on: {before}, then {now}"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(lines: &[&str]) -> BTreeSet<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn one_mapping_more_is_allowed() {
        let before = set(&["1000-2000 rw-p a", "3000-4000 rw-p b"]);
        let with =
            |more: &[&str]| mappings(&before, &set(&[&["1000-2000 rw-p a"], more].concat())).ok();
        assert_eq!(with(&["3000-4000 rw-p b"]), Some(0));
        assert_eq!(with(&["3000-4000 rw-p b", "8000-9000 rw-p"]), Some(1));
        assert_eq!(with(&["3000-5000 rw-p b"]), Some(1));
        assert_eq!(
            with(&["3000-4000 rw-p b", "8000-9000 rw-p", "a000-b000 rw-p"]),
            None
        );
        assert_eq!(with(&[]), None);
        assert_eq!(with(&["3000-3800 rw-p b"]), None);
    }
}
