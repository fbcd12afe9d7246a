//! A fact of a task or of a thread: credentials, signal actions, timers …
//!
//! One thread is asked everything in one batch: each aspect adds its calls and gives back how the
//! answers are read. At restore each adds its calls to one program, in the order of the table.

use criu_image::pb;
use criu_proc::{ProcDir, Stat, Status};
use criu_tracee::{Outcome, Program, Thread};

use crate::error::Result;

/// A held thread, as an aspect sees it at dump.
#[derive(Clone, Copy, Debug)]
pub struct ThreadView<'a> {
    /// `/proc/PID` of its process.
    pub process: &'a ProcDir,
    /// The parsed `stat` of its process.
    pub stat: &'a Stat,
    /// Its parsed `status`.
    pub status: &'a Status,
    /// The held thread: registers, mask, ptrace.
    pub thread: &'a Thread,
    /// The processors that there are: `/sys/devices/system/cpu/online`.
    pub online: &'a str,
    /// Whether it leads its process: facts of the whole process are asked of it only.
    pub leader: bool,
}

/// What is written of a thread.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Its core image; `tc` and `ids` are present for leaders.
    pub core: pb::CoreEntry,
    /// What CRIU's format has no field for.
    pub ext: pb::TaskExtEntry,
    /// For the memory image of a leader: `PR_GET_DUMPABLE`.
    pub dumpable: Option<i32>,
    /// For the memory image of a leader: `PR_GET_THP_DISABLE`.
    pub thp_disabled: Option<bool>,
}

/// What a new thread has of whoever built it, until it is dressed.
#[derive(Clone, Debug)]
pub struct Now {
    /// The parsed `status` of its process: credentials, capabilities.
    pub status: Status,
    /// The login it belongs to; `None` where the kernel does not audit.
    pub loginuid: Option<u32>,
    /// Where it may run if it has no wish of its own, as words of 64 processors; `None`: where it may run already.
    pub processors: Option<Vec<u64>>,
}

/// What is known of a thread at restore.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// Its core image.
    pub core: &'a pb::CoreEntry,
    /// The core image of its leader (itself for a leader).
    pub leader_core: &'a pb::CoreEntry,
    /// Its extension, if the dump was ours.
    pub ext: Option<&'a pb::TaskExtEntry>,
    /// Its memory image (of its process).
    pub mm: &'a pb::MmEntry,
    /// The seccomp filters of the whole tree.
    pub filters: &'a [pb::SeccompFilter],
    /// What the new thread is so far.
    pub now: &'a Now,
    /// Whether it leads its process.
    pub leader: bool,
    /// Its id in its own pid namespace.
    pub vtid: i32,
    /// The id of its process there.
    pub vpid: i32,
}

/// Reads the answers to what an aspect asked. It gets its own view of the thread: running the calls
/// needs the thread for itself, so nothing of an earlier view outlives that.
pub type Answer = Box<dyn FnOnce(&ThreadView<'_>, &Outcome, &mut Draft) -> Result<()>>;

/// One fact of a thread or, on its leader, of a process.
pub trait Aspect: Sync {
    /// Its name in errors and logs.
    fn name(&self) -> &'static str;

    /// Adds the calls that only the thread itself can make, and says how to read the results. What
    /// `/proc` or ptrace tells needs no call.
    fn ask(&self, view: &ThreadView<'_>, program: &mut Program) -> Result<Answer>;

    /// Adds the calls that give the fact to a new thread. They run in the thread itself: those of the
    /// leader after those of all other threads of its process.
    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()>;

    /// Gives a new thread what can only be given from outside: through the `/proc` directory of its
    /// process. Nothing of ours runs in the thread any more after this.
    fn push(&self, saved: &Saved<'_>, process: &ProcDir) -> Result<()> {
        let _nothing = (saved, process);
        Ok(())
    }
}
