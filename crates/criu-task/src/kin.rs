//! Whose children somebody is, without asking every thread of thousands: each keeps a list of its own.

use std::collections::HashSet;
use std::ffi::OsString;

use criu_proc::{Error, ProcDir};
use nix::unistd::Pid;

/// Threads from which on it is worth to ask who has children at all.
const MANY_THREADS: usize = 64;

/// Who of all processes has children, as of the first time that was worth to know.
#[derive(Debug, Default)]
pub(crate) struct Kin {
    /// `None` within: not to be known.
    bearers: Option<Option<HashSet<Pid>>>,
}

impl Kin {
    /// The children of a process with these threads.
    pub(crate) fn children(&mut self, proc: &ProcDir, threads: &[Pid]) -> Result<Vec<Pid>, Error> {
        if threads.len() > MANY_THREADS
            && let Some(bearers) = (self.bearers).get_or_insert_with(|| bearers_of(threads.len()))
            && !bearers.contains(&proc.pid())
        {
            return Ok(Vec::new());
        }
        proc.children_of(threads)
    }
}

/// A process and all that come from it, as they are at the moment; who ends meanwhile may be missing.
pub fn family(root: Pid) -> Vec<Pid> {
    let mut kin = Kin::default();
    let mut all = vec![root];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        let children = ProcDir::open(pid)
            .and_then(|process| kin.children(&process, &process.threads()?))
            .unwrap_or_default();
        all.extend(children);
        next += 1;
    }
    all
}

/// Who of all processes has children, if they are fewer than `limit` and all can be seen.
fn bearers_of(limit: usize) -> Option<HashSet<Pid>> {
    let names = std::fs::read_dir("/proc").ok()?.flatten();
    let pid = |name: OsString| Some(Pid::from_raw(name.to_str()?.parse().ok()?));
    let pids: Vec<Pid> = names.filter_map(|entry| pid(entry.file_name())).collect();
    // The mount option `hidepid` hides the first of all from whoever may not see all.
    if pids.len() >= limit || !pids.contains(&Pid::from_raw(1)) {
        return None;
    }
    let mut bearers = HashSet::new();
    for pid in pids {
        match ProcDir::open(pid).and_then(|proc| proc.stat()) {
            Ok(stat) => drop(bearers.insert(stat.ppid)),
            Err(Error::Gone(_)) => {}
            Err(_) => return None,
        }
    }
    Some(bearers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    fn sleeper() -> Child {
        Command::new("sleep")
            .arg("60")
            .stdin(Stdio::null())
            .spawn()
            .expect("sleep runs")
    }

    #[test]
    fn who_has_children_is_known() {
        let mut child = sleeper();
        // `None` where /proc does not show everybody.
        if let Some(bearers) = bearers_of(usize::MAX) {
            assert!(bearers.contains(&Pid::this()));
            assert!(!bearers.contains(&Pid::from_raw(child.id().cast_signed())));
        }
        assert_eq!(bearers_of(1), None);
        child.kill().expect("our child");
        child.wait().expect("our child");
    }

    #[test]
    fn all_that_come_from_one() {
        let mut child = sleeper();
        let pid = Pid::from_raw(child.id().cast_signed());
        assert_eq!(family(pid), [pid]);
        let ours = family(Pid::this());
        assert_eq!(ours[0], Pid::this());
        assert!(ours.contains(&pid));
        child.kill().expect("our child");
        child.wait().expect("our child");
    }

    /// Many threads, of which one of the last has a child.
    #[test]
    fn the_child_of_one_of_many_threads() {
        use std::io::{BufRead as _, BufReader};

        let script = "import os, threading, time
def sleep(): time.sleep(1000)
def bear():
    if os.fork() == 0: time.sleep(1000)
    print('ready', flush=True)
    time.sleep(1000)
for number in range(200): threading.Thread(target=sleep, daemon=True).start()
threading.Thread(target=bear, daemon=True).start()
time.sleep(1000)";
        let mut python = Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is there");
        let mut line = String::new();
        let said = python.stdout.take().expect("a pipe");
        BufReader::new(said).read_line(&mut line).expect("it talks");
        let pid = Pid::from_raw(python.id().cast_signed());
        let found = family(pid);
        for pid in &found {
            nix::sys::signal::kill(*pid, nix::sys::signal::Signal::SIGKILL).ok();
        }
        python.wait().expect("our child");
        assert_eq!((found[0], found.len()), (pid, 2));
    }
}
