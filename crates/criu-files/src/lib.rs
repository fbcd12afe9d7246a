//! Descriptor tables and open files, dumped and restored in CRIU's format.
//!
//! Knows no ptrace and no order of stages. Invariants:
//! * a dump runs nothing in a task and changes nothing in it: descriptors are fetched, pipes are looked
//!   into, and names given to files are taken back unless the dump is complete;
//! * one struct file has one id, and exactly one kind describes it: none is a refusal, two a mistake;
//! * all refusals of a table are in one error, all files that changed are in one error;
//! * no reference in the images is followed before it is checked;
//! * a restore makes every file once, and tasks get copies under their own numbers.
//!
//! Start at [`Collector`] for the dump, at [`Files`] for the restore, and at [`kinds`] for what there is.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]
#![forbid(unsafe_code)]

mod build_id;
mod check;
mod collector;
mod describe;
mod files;
mod ghost;
mod handle;
mod identity;
mod last;
mod late;
mod legacy;
mod link;
mod locks;
mod look;
mod make;
mod map_files;
mod mapped;
mod numbers;
mod open;
mod options;
mod overflow;
mod owner;
mod passage;
mod path;
mod pipe_data;
mod place;
mod raise;
mod terminal;
mod terminal_data;
mod terminal_open;
mod watched;
mod xattr;

/// The kinds of open files, a file each.
pub mod kinds {
    mod epoll;
    mod eventfd;
    mod fanotify;
    mod fifo;
    mod inotify;
    pub(crate) mod io_uring;
    pub(crate) mod memfd;
    mod ns_file;
    mod pidfd;
    mod pipe;
    mod regular;
    mod signalfd;
    mod timerfd;
    mod tty;

    pub use epoll::Epoll;
    pub use eventfd::Eventfd;
    pub use fanotify::Fanotify;
    pub use fifo::Fifo;
    pub use inotify::Inotify;
    pub use io_uring::IoUring;
    pub use memfd::Memfd;
    pub use ns_file::NsFile;
    pub use pidfd::Pidfd;
    pub use pipe::Pipe;
    pub use regular::Regular;
    pub use signalfd::Signalfd;
    pub use timerfd::Timerfd;
    pub use tty::Tty;
}

/// Every kind of this crate, by name.
pub const KINDS: &[&dyn criu_kind::AnyFileKind] = &[
    &kinds::Epoll,
    &kinds::Eventfd,
    &kinds::Fanotify,
    &kinds::Fifo,
    &kinds::Inotify,
    &kinds::IoUring,
    &kinds::Memfd,
    &kinds::NsFile,
    &kinds::Pidfd,
    &kinds::Pipe,
    &kinds::Regular,
    &kinds::Signalfd,
    &kinds::Timerfd,
    &kinds::Tty,
];

pub use collector::{Collector, FdTable, Memory};
pub use files::Files;
pub use late::Sites;
pub use link::Names;
pub use look::{Looked, look, look_ahead};
pub use options::{DumpOptions, FilePolicy, Policies, RestoreOptions, Validation};
pub use passage::Arrivals;
