//! Threads on paper, and what they are dressed in.

use criu_image::pb;
use criu_kind::{Aspect, Now, Saved};
use criu_proc::Status;
use criu_tracee::{Dry, Program, Site};
use expect_test::Expect;

/// Everything a [`Saved`] borrows.
pub(crate) struct Thread {
    pub(crate) core: pb::CoreEntry,
    leader: Option<pb::CoreEntry>,
    pub(crate) ext: pb::TaskExtEntry,
    pub(crate) mm: pb::MmEntry,
    pub(crate) filters: Vec<pb::SeccompFilter>,
    pub(crate) now: Now,
}

const STATUS: &[u8] = include_bytes!("../fixtures/status.root");

impl Thread {
    /// The leader of process 7.
    pub(crate) fn new() -> Self {
        let core = pb::CoreEntry {
            tc: Some(pb::TaskCoreEntry::default()),
            thread_core: Some(pb::ThreadCoreEntry::default()),
            ..pb::CoreEntry::default()
        };
        Self {
            core,
            leader: None,
            ext: pb::TaskExtEntry::default(),
            mm: pb::MmEntry::default(),
            filters: Vec::new(),
            now: Now {
                status: Status::parse(STATUS).expect("a fixture"),
                loginuid: None,
                processors: None,
            },
        }
    }

    /// Thread 8 of process 7.
    pub(crate) fn follower() -> Self {
        let mut thread = Self::new();
        thread.leader = Some(thread.core.clone());
        thread.core.tc = None;
        thread
    }

    pub(crate) fn core_thread(&mut self) -> &mut pb::ThreadCoreEntry {
        self.core.thread_core.get_or_insert_default()
    }

    pub(crate) fn task(&mut self) -> &mut pb::TaskCoreEntry {
        self.leader
            .as_mut()
            .unwrap_or(&mut self.core)
            .tc
            .get_or_insert_default()
    }

    pub(crate) fn saved(&self) -> Saved<'_> {
        Saved {
            core: &self.core,
            leader_core: self.leader.as_ref().unwrap_or(&self.core),
            ext: Some(&self.ext),
            mm: &self.mm,
            filters: &self.filters,
            now: &self.now,
            leader: self.leader.is_none(),
            vtid: if self.leader.is_none() { 7 } else { 8 },
            vpid: 7,
        }
    }
}

/// The listing of what an aspect adds to a thread's program.
#[track_caller]
pub(crate) fn check_dress(aspect: &dyn Aspect, thread: &Thread, expect: Expect) {
    let mut program = Program::new();
    aspect
        .dress(&thread.saved(), &mut program)
        .expect("nothing to refuse");
    let mut paper = Dry::new();
    paper.run(&program).expect("paper is patient");
    expect.assert_eq(paper.listing());
}
