//! What a task and its threads are, apart from memory and files.
//!
//! An [aspect](criu_kind::Aspect) a file; [`ASPECTS`] is the list of them and the order in which a new
//! thread is dressed. At dump, [`core`] takes what ptrace tells and [`describe`] asks the thread the
//! rest in one batch; at restore, [`dress`] makes the batch that gives it all back, [`natural`] the
//! registers it goes on with, and [`push`] does what only works from outside.
//!
//! Invariants: knows nothing of memory, files and namespaces. A fact that the image cannot hold is
//! refused, or kept in the extension; nothing is dropped in silence. The other threads of a process are
//! dressed before its leader, which sets what they share.
#![forbid(unsafe_code)]

mod affinity;
mod altstack;
pub mod birth;
mod child_subreaper;
mod clear_tid;
mod comm;
mod coredump_filter;
mod creds;
mod dumpable;
mod entries;
mod io_flusher;
mod ioprio;
mod itimer;
mod kin;
mod loginuid;
mod mce_kill;
mod mdwe;
mod membarrier;
mod memory_merge;
mod no_new_privs;
mod oom_score;
mod pdeathsig;
mod pending;
mod personality;
mod plan;
mod posix_timer;
mod rlimit;
mod robust_list;
mod rseq;
mod sched;
mod seccomp;
mod seccomp_table;
mod share;
mod sigaction;
mod speculation;
mod state;
mod table;
#[cfg(test)]
mod testing;
mod thp;
mod timerslack;
mod tls;
mod tree;
mod wait;
mod words;

pub use kin::family;
pub use loginuid::read as loginuid;
pub use pending::closing_signal;
pub use plan::{End, Plan, PlanNode, Role, Step};
pub use rseq::forget as forget_rseq;
pub use seccomp_table::SeccompTable;
pub use share::{Conflict, Sharing, sharing};
pub use state::{
    Machine, NewThread, TaskState, core, fits, fits_told, natural, thread_areas, zombie,
};
pub use table::{ASPECTS, Dressed, answer, describe, dress, push};
pub use tree::{Node, Tree, freeze};
