//! Who exists: the process tree, stopped.
//!
//! Parents are stopped before their children are listed, so what is listed can only shrink; the scan is
//! repeated until it finds nobody new, because orphans move to a subreaper.

use std::collections::HashMap;
use std::time::Duration;

use criu_kind::{Error, Result, Subject, Within};
use criu_proc::{ProcDir, Stat, Status, TaskState};
use criu_tracee::{Thread, Tracee};
use nix::unistd::Pid;

use crate::kin::Kin;

/// One process of a stopped tree. Ids are those of its own pid namespace.
#[derive(Debug)]
pub struct Node {
    /// As the dumper sees it.
    pub pid: Pid,
    /// In its own namespace.
    pub vpid: i32,
    /// Its parent there; 0 for the root of the tree.
    pub vppid: i32,
    /// Its process group.
    pub vpgid: i32,
    /// Its session.
    pub vsid: i32,
    /// `/proc/PID`, pinned.
    pub proc: ProcDir,
    /// `stat` at the time of the stop.
    pub stat: Stat,
    /// `status` at the time of the stop.
    pub status: Status,
    /// Which of the held processes it is; `None` for a zombie.
    pub tracee: Option<usize>,
}

impl Node {
    /// The subject of errors about this process.
    pub fn subject(&self) -> Subject {
        Subject::Task {
            pid: self.pid.as_raw(),
            comm: String::from_utf8_lossy(&self.stat.comm).into_owned(),
        }
    }
}

/// A stopped tree: every node after its parent, the root first.
#[derive(Debug)]
pub struct Tree {
    /// Its processes.
    pub nodes: Vec<Node>,
}

/// Stops a tree: every thread of the root and of all that descend from it.
///
/// If it fails, or when the returned processes are dropped, everything goes on as it was.
pub fn freeze(root: Pid, patience: Option<Duration>) -> Result<(Tree, Vec<Tracee>)> {
    let start = std::time::Instant::now();
    let mut order = vec![root];
    let mut known: HashMap<Pid, Option<usize>> = HashMap::new();
    let mut tracees: Vec<Tracee> = Vec::new();
    loop {
        let fresh: Vec<Pid> = order
            .iter()
            .copied()
            .filter(|pid| !known.contains_key(pid))
            .collect();
        if fresh.is_empty() {
            break;
        }
        if patience.is_some_and(|patience| start.elapsed() > patience) {
            return Err(Error::unsupported(
                format!("the tree of {root} kept growing and could not be stopped in time"),
                "give more time with --timeout, or stop whatever forks in a loop",
            ));
        }
        let mut alive = Vec::new();
        for pid in fresh {
            match ProcDir::open(pid).and_then(|proc| proc.stat()) {
                Ok(stat) if stat.state == TaskState::Zombie && stat.num_threads <= 1 => {
                    known.insert(pid, None);
                }
                Ok(stat) if stat.state == TaskState::Zombie => {
                    return Err(Error::unsupported(
                        "its first thread has exited while others run",
                        "wait until the process ends or let its main thread live",
                    ))
                    .within(|| subject(pid, &stat));
                }
                Ok(_) => alive.push(pid),
                Err(criu_proc::Error::Gone(_)) if pid != root => {
                    order.retain(|other| *other != pid)
                }
                Err(criu_proc::Error::Gone(_)) => return Err(Error::Gone(root)),
                Err(error) => return Err(error.into()),
            }
        }
        for tracee in Tracee::seize_all(&alive, patience.map(|patience| start + patience))? {
            known.insert(tracee.pid(), Some(tracees.len()));
            tracees.push(tracee);
        }
        // Who died between the look and the stop is a zombie or gone: look again.
        for pid in &alive {
            if known.contains_key(pid) {
                continue;
            }
            let zombie = ProcDir::open(*pid)
                .and_then(|proc| proc.stat())
                .is_ok_and(|stat| stat.state == TaskState::Zombie);
            if zombie {
                known.insert(*pid, None);
            } else {
                order.retain(|other| other != pid);
            }
        }
        let mut kin = Kin::default();
        for parent in order.clone() {
            // The dead have left theirs to others.
            let Some(held) = known.get(&parent).copied().flatten() else {
                continue;
            };
            let threads = tracees[held].threads().iter().map(Thread::tid);
            let threads: Vec<Pid> = threads.collect();
            match ProcDir::open(parent).and_then(|proc| kin.children(&proc, &threads)) {
                Ok(children) => {
                    for child in children {
                        if !order.contains(&child) {
                            order.push(child);
                        }
                    }
                }
                Err(criu_proc::Error::Gone(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    if !known.contains_key(&root) {
        return Err(Error::Gone(root));
    }
    let nodes = describe(root, &order, &known)?;
    Ok((Tree { nodes }, tracees))
}

fn subject(pid: Pid, stat: &Stat) -> Subject {
    Subject::Task {
        pid: pid.as_raw(),
        comm: String::from_utf8_lossy(&stat.comm).into_owned(),
    }
}

fn describe(root: Pid, order: &[Pid], known: &HashMap<Pid, Option<usize>>) -> Result<Vec<Node>> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut own: HashMap<Pid, i32> = HashMap::new();
    for pid in order {
        let proc = ProcDir::open(*pid)?;
        let stat = proc.stat()?;
        let status = proc.status()?;
        let inner = |list: &Option<Vec<Pid>>, outer: Pid| {
            list.as_ref()
                .and_then(|list| list.last().copied())
                .unwrap_or(outer)
                .as_raw()
        };
        let vpid = inner(&status.ns_tgid, *pid);
        own.insert(*pid, vpid);
        let vppid = if *pid == root {
            0
        } else {
            own.get(&stat.ppid).copied().unwrap_or(0)
        };
        nodes.push(Node {
            pid: *pid,
            vpid,
            vppid,
            vpgid: inner(&status.ns_pgid, stat.pgrp),
            vsid: inner(&status.ns_sid, stat.session),
            tracee: known[pid],
            proc,
            stat,
            status,
        });
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_tree_is_stopped_whole_and_goes_on() {
        let script = "import os, time
for end in (False, False, True):
    if os.fork() == 0:
        os._exit(3) if end else time.sleep(1000)
os.kill(os.getpid(), 19)
time.sleep(1000)";
        let mut python = Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 runs");
        let pid = Pid::from_raw(python.id().cast_signed());
        std::thread::sleep(Duration::from_millis(400));
        let frozen = freeze(pid, None);
        let children: Vec<Pid> = ProcDir::open(pid)
            .and_then(|proc| proc.children())
            .expect("children");
        for child in children {
            nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).ok();
        }
        python.kill().expect("our child");
        let (tree, tracees) = frozen.expect("freeze");
        assert_eq!(tree.nodes.len(), 4);
        assert_eq!(tracees.len(), 3);
        assert_eq!(
            tree.nodes
                .iter()
                .filter(|node| node.tracee.is_none())
                .count(),
            1
        );
        assert!(
            tree.nodes
                .iter()
                .skip(1)
                .all(|node| node.vppid == pid.as_raw())
        );
        drop(tracees);
        python.wait().expect("our child");
    }
}
