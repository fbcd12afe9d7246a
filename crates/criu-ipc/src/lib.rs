//! System V and POSIX IPC, dumped and restored in CRIU's format.
//!
//! Knows no ptrace, no address space and no order of stages. Invariants:
//! * objects are looked at and made through a [`criu_tracee::Site`] inside of their namespace: the driver, or a task of the tree;
//! * a dump changes nothing of System V objects: not a value, not a time, not a pid; what it takes out of a POSIX queue it puts back;
//! * in a namespace that others use too, only what the tree uses is taken, and nothing of others is touched;
//! * objects outlive processes, so a restore that fails removes what it made.
//!
//! Start at [`survey`] for the dump of System V objects, at [`Objects`] for their restore. [`Mqueue`] is a kind of file.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]
#![forbid(unsafe_code)]

mod mqueue;
mod msg;
mod notify;
mod objects;
mod perm;
mod sem;
pub mod shm;
mod survey;
mod sysvipc;
mod turn_over;
mod undo;
pub mod var;

pub use mqueue::Mqueue;
pub use notify::Notifications;
pub use objects::{Made, Objects};
pub use perm::Creator;
pub use shm::Segment;
pub use survey::{Scope, Survey, Task, Users, survey};

/// Every kind of file of this crate.
pub const KINDS: &[&dyn criu_kind::AnyFileKind] = &[&Mqueue];
