//! The contract: what a kind is, what it is given, and how it fails.
//!
//! Invariants: no I/O, no syscalls (but in [`testing`]); subsystems depend on this crate and not on each other. A leaf
//! returns a bare [`Error`]; the walker that called it adds the [`Subject`], once.
#![forbid(unsafe_code)]

mod aspect;
mod entry;
mod error;
mod file;
mod inode;
mod kernel;
mod mapped;
pub mod testing;

pub use aspect::{Answer, Aspect, Draft, Now, Saved, ThreadView};
pub use entry::FileEntry;
pub use error::{Error, Result, Subject, Within};
pub use file::{
    AnyFileKind, Cache, DumpCx, FileKind, OpenFile, Opened, RestoreCx, Shift, Slot, Tie,
};
pub use inode::Inode;
pub use kernel::Kernel;
pub use mapped::{FileFds, MappedFiles};
