//! Batches of syscalls as data, and the tasks that run them.
//!
//! A [`Program`] is a list of syscalls; a [`Site`] is where it runs: here ([`Local`]), in a stopped
//! task ([`Tracee`]), or on paper ([`Dry`]). A task runs a whole program in one go, by a stub of some
//! 200 bytes: one write, one resume, one wait, one read.
//!
//! Invariants. Knows no image format. Every wait for a task is in `wait.rs`. A task that is held goes
//! on unharmed if the tracer dies at any moment: the stub puts it back by itself. A stopped thread
//! is a value ([`Stopped`]) that resuming consumes and that does not leave the thread that seized it.

mod ask;
mod built;
mod calls;
mod dry;
mod encode;
mod error;
mod fds;
mod gone;
mod heir;
mod kcmp;
mod keep;
mod local;
mod look;
mod memory;
mod name;
mod names;
mod native;
mod near;
mod note;
mod passage;
mod place;
mod program;
mod ptrace;
mod ring;
mod rseq;
mod run;
mod shared;
mod shelter;
mod site;
mod sleep;
mod spawn;
pub mod stat;
mod stop;
mod thread;
mod tracee;
mod wait;
mod window;

pub use ask::{ready_signal, signal_owner, signal_owner_users, socket_option};
pub use built::leave_all;
pub use criu_arch as arch;
pub use dry::Dry;
pub use error::{CallError, Error, Result};
pub use fds::{copy_fd, fetch_fd, peek_whole, pidfd_open};
pub use gone::pidfds_of_the_gone;
pub use heir::Heir;
pub use kcmp::{Kcmp, find, kcmp};
pub use local::Local;
pub use memory::{Memory, PagemapScan, Region};
pub use name::{Identity, Name};
pub use names::Names;
pub use native::{FpLayout, Native, NativeRegs, fp_layout, identify};
pub use near::Near;
pub use passage::{Parcel, hand_over};
pub use program::{Arg, Blob, Call, Program, Ret};
pub use ptrace::{RseqConfiguration, SigInfo};
pub use ring::{RingState, RingTraits, make_ring, ring_layout, ring_state, ring_traits};
pub use rseq::Rseq;
pub use run::{Job, run_all, run_each};
pub use shared::{shared_anonymous, write_huge};
pub use shelter::sheltered;
pub use site::{Outcome, Site};
pub use spawn::{Nursery, newborn, spawn_root};
pub use stop::{Hold, Stop, Stopped};
pub use syscalls::Sysno;
pub use thread::Thread;
pub use tracee::{ThreadSite, Tracee};
pub use window::Window;
