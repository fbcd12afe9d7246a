//! What a process tree looks like from outside: /proc, read into lines that can be compared.
//!
//! Only what a restore has to reproduce is read; what is renumbered by nature (inode numbers of pipes, of anonymous
//! shared memory, of deleted files) is named by order of appearance, so that sharing still shows. Adjacent mappings
//! that differ in nothing are joined: the kernel may merge them or not, depending on how they came to be.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Result;

/// One line of the tree's look each: `PID/aspect...` and its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Visible(pub(crate) BTreeMap<String, String>);

/// A process, as far as the tree is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) state: char,
}

/// A file of /proc as text; a task's name may be anything but UTF-8.
pub(crate) fn read(path: impl AsRef<Path>) -> std::io::Result<String> {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// All processes of this pid namespace.
pub(crate) fn processes() -> Result<Vec<Process>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may be gone by now.
        let Ok(text) = read(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let fields = stat(&text);
        if let (Some(state), Some(parent)) = (fields.first(), fields.get(1)) {
            all.push(Process {
                pid,
                parent: parent.parse()?,
                state: state.chars().next().unwrap_or('?'),
            });
        }
    }
    Ok(all)
}

/// Where everybody of a tree hangs, for messages.
pub(crate) fn sleeping(root: u32) -> String {
    let line = |process: &Process| {
        let of = |name: &str| read(format!("/proc/{}/{name}", process.pid)).unwrap_or_default();
        format!(
            "\n    {} {} {} {}",
            process.pid,
            process.state,
            of("wchan").trim(),
            of("syscall").trim()
        )
    };
    let tree = tree(root).unwrap_or_default();
    tree.iter().take(10).map(line).collect()
}

/// The root and its descendants, parents first.
pub(crate) fn tree(root: u32) -> Result<Vec<Process>> {
    let all = processes()?;
    let mut tree: Vec<Process> = all
        .iter()
        .copied()
        .filter(|process| process.pid == root)
        .collect();
    let mut next = 0;
    while next < tree.len() {
        let parent = tree[next].pid;
        tree.extend(
            all.iter()
                .copied()
                .filter(|process| process.parent == parent && process.pid != root),
        );
        next += 1;
    }
    Ok(tree)
}

impl Visible {
    /// Looks at the tree once. What vanishes under the eye is left out; a second look will then differ.
    pub(crate) fn look(root: u32) -> Result<Self> {
        let mut lines = BTreeMap::new();
        let mut names = Names::default();
        let mut pids: Vec<u32> = tree(root)?.iter().map(|process| process.pid).collect();
        pids.sort_unstable();
        for pid in pids {
            let dir = format!("/proc/{pid}");
            let mut put = |key: &str, value: String| {
                lines.insert(format!("{pid:>5}/{key}"), value);
            };
            if !task(&dir, &mut put) {
                // A zombie has no more than a name and its place in the tree.
                continue;
            }
            threads(&dir, &mut put);
            descriptors(&dir, &mut names, &mut put);
            mappings(&dir, &mut names, &mut put);
        }
        Ok(Self(lines))
    }

    /// The differences, `-` gone and `+` come, except in keys a case lets change.
    pub(crate) fn differences(&self, after: &Self, changes: &[String]) -> Vec<String> {
        let allowed = |key: &str| {
            let aspect = key.split_once('/').map_or(key, |(_, aspect)| aspect);
            changes
                .iter()
                .any(|change| change == "*" || aspect.starts_with(change.as_str()))
        };
        let mut keys: Vec<&String> = self
            .0
            .keys()
            .chain(after.0.keys())
            .filter(|key| !allowed(key))
            .collect();
        keys.sort();
        keys.dedup();
        let mut lines = Vec::new();
        for key in keys {
            let (was, is) = (self.0.get(key), after.0.get(key));
            if was != is {
                lines.extend(was.map(|value| format!("- {key} {value}")));
                lines.extend(is.map(|value| format!("+ {key} {value}")));
            }
        }
        lines
    }
}

type Put<'a> = dyn FnMut(&str, String) + 'a;

/// Names for numbers that may change: the first to appear is #1.
#[derive(Default)]
struct Names(BTreeMap<String, usize>);

impl Names {
    fn of(&mut self, what: String) -> usize {
        let next = self.0.len() + 1;
        *self.0.entry(what).or_insert(next)
    }
}

/// The fields of a `stat` file from the third on; the second may contain blanks and parentheses.
fn stat(text: &str) -> Vec<&str> {
    text.rsplit_once(") ")
        .map_or_else(Vec::new, |(_, rest)| rest.split_whitespace().collect())
}

/// Fields of `stat` that a restore reproduces, numbered as in proc(5).
const STAT: &[(usize, &str)] = &[
    (4, "ppid"),
    (5, "pgrp"),
    (6, "session"),
    (7, "tty"),
    (8, "tpgid"),
    (19, "nice"),
    (20, "threads"),
    (26, "startcode"),
    (27, "endcode"),
    (28, "startstack"),
    (38, "exit_signal"),
    (40, "rt_priority"),
    (41, "policy"),
    (45, "start_data"),
    (46, "end_data"),
    (47, "start_brk"),
    (48, "arg_start"),
    (49, "arg_end"),
    (50, "env_start"),
    (51, "env_end"),
    (52, "exit_code"),
];

/// Lines of `status` that a restore reproduces.
const STATUS: &[&str] = &[
    "Name",
    "Umask",
    "Tgid",
    "TracerPid",
    "Uid",
    "Gid",
    "Groups",
    "NStgid",
    "NSpgid",
    "NSsid",
    "VmLck",
    "VmPin",
    "THP_enabled",
    "untag_mask",
    "SigPnd",
    "ShdPnd",
    "SigBlk",
    "SigIgn",
    "SigCgt",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Speculation_Store_Bypass",
    "SpeculationIndirectBranch",
    "Cpus_allowed",
    "Mems_allowed",
    "x86_Thread_features",
    "x86_Thread_features_locked",
];

/// Files compared as they are.
const FILES: &[&str] = &[
    "limits",
    "oom_score_adj",
    "personality",
    "coredump_filter",
    "timerslack_ns",
    "cmdline",
    "environ",
    "cgroup",
    "loginuid",
    "uid_map",
    "setgroups",
    "attr/current",
];

/// The process as a whole. False for a zombie, which has only this much.
fn task(dir: &str, put: &mut Put<'_>) -> bool {
    let Ok(text) = read(format!("{dir}/stat")) else {
        return false;
    };
    let fields = stat(&text);
    let state = match fields.first() {
        Some(&"T") => "stopped",
        Some(&"t") => "traced",
        Some(&("Z" | "X")) => "zombie",
        _ => "alive",
    };
    put("state", state.to_owned());
    let zombie = state == "zombie";
    for (number, name) in STAT {
        // A zombie has no memory; its addresses read as zero or not, depending on its age.
        if !zombie || *number < 20 || *name == "exit_code" || *name == "exit_signal" {
            put(
                &format!("stat/{name}"),
                fields.get(number - 3).copied().unwrap_or("").to_owned(),
            );
        }
    }
    if zombie {
        return false;
    }
    for name in FILES {
        if let Ok(bytes) = fs::read(format!("{dir}/{name}")) {
            put(
                name,
                String::from_utf8_lossy(&bytes).replace(['\0', '\n'], "|"),
            );
        }
    }
    if let Ok(bytes) = fs::read(format!("{dir}/auxv")) {
        put(
            "auxv",
            bytes
                .chunks(8)
                .map(|word| {
                    word.iter()
                        .rev()
                        .map(|b| format!("{b:02x}"))
                        .collect::<String>()
                })
                .collect::<Vec<_>>()
                .join(" "),
        );
    }
    if let Ok(text) = read(format!("{dir}/timers")) {
        // "signal: 10/0000..." carries a kernel address or user value; the timer's own value is the case's to check.
        put(
            "timers",
            text.replace('\n', "|").replace("ClockID", "clock"),
        );
    }
    for name in ["cwd", "root", "exe"] {
        if let Ok(target) = fs::read_link(format!("{dir}/{name}")) {
            put(name, target.to_string_lossy().into_owned());
        }
    }
    if let Ok(entries) = fs::read_dir(format!("{dir}/ns")) {
        for entry in entries.flatten() {
            // The clocks of a task go on by putting it into a new time namespace.
            let clocks = entry.file_name().to_string_lossy().starts_with("time");
            if let (Ok(target), false) = (fs::read_link(entry.path()), clocks) {
                put(
                    &format!("ns/{}", entry.file_name().to_string_lossy()),
                    target.to_string_lossy().into_owned(),
                );
            }
        }
    }
    true
}

fn threads(dir: &str, put: &mut Put<'_>) {
    let Ok(entries) = fs::read_dir(format!("{dir}/task")) else {
        return;
    };
    for entry in entries.flatten() {
        let tid = entry.file_name().to_string_lossy().into_owned();
        if let Ok(text) = read(entry.path().join("status")) {
            for line in text.lines() {
                if let Some((name, value)) = line.split_once(':')
                    && STATUS.contains(&name)
                {
                    put(&format!("thread/{tid}/{name}"), value.trim().to_owned());
                }
            }
        }
        if let Ok(text) = read(entry.path().join("stat")) {
            let fields = stat(&text);
            for number in [19, 40, 41] {
                put(
                    &format!("thread/{tid}/stat{number}"),
                    fields.get(number - 3).copied().unwrap_or("").to_owned(),
                );
            }
        }
    }
}

/// Lines of fdinfo that mean the same after a restore; others hold ids, inode numbers or times that run.
const FDINFO: &[&str] = &[
    "pos",
    "flags",
    "eventfd-count",
    "eventfd-semaphore",
    "sigmask",
    "clockid",
    "settime flags",
    "it_interval",
    "Pid",
];

fn descriptors(dir: &str, names: &mut Names, put: &mut Put<'_>) {
    let Ok(entries) = fs::read_dir(format!("{dir}/fd")) else {
        return;
    };
    let mut fds: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    fds.sort_unstable();
    for fd in fds {
        let path = format!("{dir}/fd/{fd}");
        let Ok(target) = fs::read_link(&path) else {
            continue;
        };
        let mut value = link_name(&target, names);
        if let Ok(meta) = fs::metadata(&path) {
            value += &format!(
                " mode={:o} owner={}:{} size={} rdev={:x}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.size(),
                meta.rdev()
            );
            if meta.is_file() {
                value += &format!(
                    " links={} file=#{}",
                    meta.nlink(),
                    names.of(format!("{}:{}", meta.dev(), meta.ino()))
                );
            }
        }
        let info = read(format!("{dir}/fdinfo/{fd}")).unwrap_or_default();
        for line in info.lines() {
            match line.split_once(':') {
                Some((name, text)) if FDINFO.contains(&name) => {
                    value += &format!(" {name}={}", text.trim())
                }
                Some(("lock", text)) => {
                    // "1: POSIX ADVISORY WRITE 7 fe:00:123 0 9": without the running number and the inode.
                    let words: Vec<&str> = text.split_whitespace().collect();
                    value += &format!(
                        " lock={}",
                        [&words[1..5.min(words.len())], &words[6.min(words.len())..]]
                            .concat()
                            .join(",")
                    );
                }
                _ => {}
            }
        }
        put(&format!("fd/{fd:04}"), value);
    }
}

/// `pipe:[123]` by order of appearance; anything else as it is.
fn link_name(target: &Path, names: &mut Names) -> String {
    let text = target.to_string_lossy();
    match text.split_once(":[") {
        Some((kind, _)) if kind == "pipe" || kind == "socket" => {
            format!("{kind}:[#{}]", names.of(text.to_string()))
        }
        _ => text.into_owned(),
    }
}

/// One line of `smaps`, with what joins it to its neighbour.
struct Mapping {
    start: u64,
    end: u64,
    permissions: String,
    offset: u64,
    file: String,
    flags: String,
}

fn mappings(dir: &str, names: &mut Names, put: &mut Put<'_>) {
    let Ok(text) = read(format!("{dir}/smaps")) else {
        return;
    };
    for mapping in joined(parse_smaps(&text, names)) {
        put(
            &format!("maps/{:012x}-{:012x}", mapping.start, mapping.end),
            format!(
                "{} {:x} {} [{}]",
                mapping.permissions, mapping.offset, mapping.file, mapping.flags
            ),
        );
    }
}

/// Flags the kernel keeps for itself: soft-dirty tracking, and whether the pages count as committed, which sticks to
/// a private mapping that was writable once.
const OWN_FLAGS: &[&str] = &["sd", "ac"];

fn parse_smaps(text: &str, names: &mut Names) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if let Some(last) = mappings.last_mut() {
                last.flags = flags
                    .split_whitespace()
                    .filter(|flag| !OWN_FLAGS.contains(flag))
                    .collect::<Vec<_>>()
                    .join(" ");
            }
            continue;
        }
        let mut words = line.splitn(6, ' ');
        let range = words.next().and_then(|range| range.split_once('-'));
        let (Some((start, end)), Some(permissions), Some(offset), Some(device), Some(inode)) = (
            range,
            words.next(),
            words.next(),
            words.next(),
            words.next(),
        ) else {
            continue;
        };
        let (Ok(start), Ok(end), Ok(offset)) = (
            u64::from_str_radix(start, 16),
            u64::from_str_radix(end, 16),
            u64::from_str_radix(offset, 16),
        ) else {
            continue;
        };
        // Anonymous shared memory stays that, though criu makes it anew out of a memfd.
        let name = words
            .next()
            .unwrap_or_default()
            .trim()
            .replace("/memfd:/dev/zero", "/dev/zero")
            .replace("/memfd: (deleted)", "/dev/zero (deleted)");
        let file = match inode {
            "0" => name,
            // By the same number as its descriptors.
            _ if name.starts_with("socket:[") => {
                format!("{} file=", link_name(Path::new(&name), names))
            }
            _ => format!("{name} file=#{}", names.of(format!("{device}:{inode}"))),
        };
        mappings.push(Mapping {
            start,
            end,
            permissions: permissions.to_owned(),
            offset,
            file,
            flags: String::new(),
        });
    }
    // The kernel's own, at the same place for all; listed or not by how the process came to be.
    mappings.retain(|mapping| mapping.file != "[vsyscall]");
    mappings
}

fn joined(mappings: Vec<Mapping>) -> Vec<Mapping> {
    let mut result: Vec<Mapping> = Vec::new();
    for mapping in mappings {
        match result.last_mut() {
            Some(last)
                if last.end == mapping.start
                    && last.permissions == mapping.permissions
                    && last.file == mapping.file
                    && last.flags == mapping.flags
                    && (!mapping.file.contains("file=")
                        || last.offset + (last.end - last.start) == mapping.offset) =>
            {
                last.end = mapping.end;
            }
            _ => result.push(mapping),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_equal_mappings_are_one() {
        let text = "\
1000-2000 rw-p 00000000 00:00 0 \nVmFlags: rd wr sd\n\
2000-3000 rw-p 00000000 00:00 0 \nVmFlags: rd wr\n\
3000-4000 r--p 00000000 00:00 0 \nVmFlags: rd\n\
4000-5000 r--p 00001000 fe:00 42     /lib/x\nVmFlags: rd\n\
5000-6000 r--p 00003000 fe:00 42     /lib/x\nVmFlags: rd\n";
        let all = joined(parse_smaps(text, &mut Names::default()));
        let ranges: Vec<_> = all
            .iter()
            .map(|mapping| (mapping.start, mapping.end))
            .collect();
        assert_eq!(
            ranges,
            [
                (0x1000, 0x3000),
                (0x3000, 0x4000),
                (0x4000, 0x5000),
                (0x5000, 0x6000)
            ]
        );
        assert_eq!(all[3].file, "/lib/x file=#1");
    }

    #[test]
    fn a_change_that_a_case_allows_is_none() {
        let see = |fd: &str| Visible([("    5/fd/0003".to_owned(), fd.to_owned())].into());
        let (before, after) = (see("/a pos=0"), see("/a pos=1"));
        assert_eq!(
            before.differences(&after, &[]),
            ["-     5/fd/0003 /a pos=0", "+     5/fd/0003 /a pos=1"]
        );
        assert!(before.differences(&after, &["fd".to_owned()]).is_empty());
        assert!(before.differences(&after, &["*".to_owned()]).is_empty());
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        assert_eq!(stat("7 (a) b) S 1 7 7")[..2], ["S", "1"]);
    }
}
