//! Describe: every thread is asked in one batch what only it can tell, all threads at once.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use criu_image::id::VPid;
use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{Draft, Error, Result, Subject, ThreadView, Within};
use criu_mm::Space;
use criu_proc::Status;
use criu_task::{Node, SeccompTable, Tree};
use criu_tracee::{FpLayout, Job, Program, Tracee, run_all};

/// The core images of a tree.
#[derive(Debug)]
pub(crate) struct Described {
    processes: Vec<Process>,
    zombies: Vec<(u32, pb::CoreEntry)>,
    filters: pb::SeccompEntry,
}

#[derive(Debug)]
struct Process {
    pid: u32,
    /// Leader first.
    threads: Vec<(u32, Draft)>,
}

/// The processors that there are.
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// A thread, and what was read of it from outside.
struct Seen {
    tracee: usize,
    index: usize,
    status: Status,
}

/// Asks all threads, and completes `spaces`, which are those of `tracees`.
pub(crate) fn describe(
    tree: &Tree,
    tracees: &mut [Tracee],
    spaces: &mut [Space],
    layout: &FpLayout,
) -> Result<Described> {
    let mut nodes: Vec<Option<&Node>> = (0..tracees.len()).map(|_| None).collect();
    for node in &tree.nodes {
        if let Some(tracee) = node.tracee {
            nodes[tracee] = Some(node);
        }
    }
    let node = |tracee: usize| nodes[tracee].expect("every held process is a node of the tree");
    let online =
        fs::read_to_string(ONLINE).map_err(Error::io("read(/sys/devices/system/cpu/online)"))?;
    let mut seen = Vec::new();
    for (tracee, held) in tracees.iter().enumerate() {
        for (index, thread) in held.threads().iter().enumerate() {
            let status = Status::parse(thread.status()).map_err(criu_proc::Error::from)?;
            seen.push(Seen {
                tracee,
                index,
                status,
            });
        }
    }
    let mut programs = Vec::with_capacity(seen.len());
    let mut answers = Vec::with_capacity(seen.len());
    for one in &seen {
        let mut program = Program::new();
        let view = view(one, node(one.tracee), tracees, &online);
        let asked =
            criu_task::describe(&view, &mut program).within(|| node(one.tracee).subject())?;
        let questions = (one.index == 0).then(|| Space::ask(&mut program));
        programs.push(program);
        answers.push((asked, questions));
    }
    let jobs: Vec<Job<'_>> = seen
        .iter()
        .zip(&programs)
        .map(|(one, program)| Job {
            tracee: one.tracee,
            thread: one.index,
            program,
        })
        .collect();
    let outcomes = run_all(tracees, &jobs)?;
    let mut drafts = Vec::with_capacity(seen.len());
    for ((one, (asked, questions)), outcome) in seen.iter().zip(answers).zip(&outcomes) {
        let view = view(one, node(one.tracee), tracees, &online);
        let subject = || node(one.tracee).subject();
        let mut draft = criu_task::core(&view, layout).within(subject)?;
        criu_task::answer(asked, &view, outcome, &mut draft).within(subject)?;
        if let Some(questions) = questions {
            let space = &mut spaces[one.tracee];
            space.answer(outcome, questions);
            space.mm.dumpable = draft.dumpable;
            space.mm.thp_disabled = draft.thp_disabled;
        }
        drafts.push(draft);
    }
    collect(tree, tracees, &seen, drafts, &online)
}

fn view<'a>(
    seen: &'a Seen,
    node: &'a Node,
    tracees: &'a [Tracee],
    online: &'a str,
) -> ThreadView<'a> {
    ThreadView {
        process: &node.proc,
        stat: &node.stat,
        status: &seen.status,
        thread: &tracees[seen.tracee].threads()[seen.index],
        online,
        leader: seen.index == 0,
    }
}

fn collect(
    tree: &Tree,
    tracees: &[Tracee],
    seen: &[Seen],
    drafts: Vec<Draft>,
    online: &str,
) -> Result<Described> {
    let mut filters = SeccompTable::new();
    let mut processes = Vec::new();
    let mut rest = seen;
    let mut drafts = drafts.into_iter();
    while let Some(first) = rest.first() {
        let (own, others) = rest.split_at(
            rest.iter()
                .take_while(|one| one.tracee == first.tracee)
                .count(),
        );
        rest = others;
        let node = tree
            .nodes
            .iter()
            .find(|node| node.tracee == Some(first.tracee));
        let node = node.expect("every held process is a node of the tree");
        let mut threads: Vec<Draft> = drafts.by_ref().take(own.len()).collect();
        let mut pairs: Vec<_> = own
            .iter()
            .map(|one| view(one, node, tracees, online))
            .zip(threads.iter_mut())
            .collect();
        filters.process(&mut pairs).within(|| node.subject())?;
        let tids = own.iter().map(|one| {
            tracees[one.tracee].threads()[one.index]
                .vtid()
                .as_raw()
                .unsigned_abs()
        });
        processes.push(Process {
            pid: node.vpid.unsigned_abs(),
            threads: tids.zip(threads.drain(..)).collect(),
        });
    }
    let zombies = tree.nodes.iter().filter(|node| node.tracee.is_none());
    let zombies = zombies
        .map(|node| (node.vpid.unsigned_abs(), criu_task::zombie(&node.stat)))
        .collect();
    Ok(Described {
        processes,
        zombies,
        filters: filters.into_entry(),
    })
}

impl Described {
    /// How many threads there are in all processes.
    pub(crate) fn threads_in_all(&self) -> usize {
        let threads = self.processes.iter().map(|process| process.threads.len());
        threads.sum()
    }

    /// The threads of a process, leader first; a zombie has itself alone.
    pub(crate) fn threads(&self, pid: u32) -> Vec<u32> {
        let process = self.processes.iter().find(|process| process.pid == pid);
        process.map_or(vec![pid], |process| {
            process.threads.iter().map(|(tid, _)| *tid).collect()
        })
    }

    /// Writes `core-P` and `core-TID`. Each caller takes those that `next` has not come to, so that several may
    /// write side by side.
    pub(crate) fn write_cores(&self, store: &dyn Store, next: &AtomicUsize) -> Result<()> {
        /// Images that are taken at a time.
        const SHARE: usize = 16;
        let threads = self.processes.iter().flat_map(|process| &process.threads);
        let threads: Vec<_> = threads.collect();
        loop {
            let start = next.fetch_add(SHARE, Ordering::Relaxed);
            let Some(rest) = threads.get(start..).filter(|rest| !rest.is_empty()) else {
                return Ok(());
            };
            for (tid, draft) in rest.iter().take(SHARE) {
                store
                    .write_entry(desc::CORE, VPid::new(*tid), &draft.core)
                    .within(|| Subject::Thread(tid.cast_signed()))?;
            }
        }
    }

    /// Writes the cores of zombies, our extension, and `seccomp`.
    pub(crate) fn write(&self, store: &dyn Store) -> Result<()> {
        for process in &self.processes {
            let ext = process.threads.iter().map(|(_, draft)| &draft.ext);
            store.write_entries(desc::TASK_EXT, VPid::new(process.pid), ext)?;
        }
        for (pid, core) in &self.zombies {
            store.write_entry(desc::CORE, VPid::new(*pid), core)?;
        }
        // CRIU opens it whether or not a filter is used.
        store.write_entry(desc::SECCOMP, (), &self.filters)?;
        Ok(())
    }
}
