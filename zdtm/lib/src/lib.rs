//! What a zdtm case links: the protocol with the runner, and the few tools every case needs.
//!
//! A case builds some state, calls [`checkpoint`], and afterwards looks whether the state is still there:
//!
//! ```no_run
//! fn run() -> zdtm::Result<()> {
//!     let before = std::process::id();
//!     zdtm::checkpoint()?; // dumped, killed and restored while it sleeps in here
//!     zdtm::check_eq!(std::process::id(), before);
//!     Ok(())
//! }
//! ```
//!
//! Invariants:
//! - This crate itself leaves only plain state behind: no socket, no pipe, no descriptor but the standard three
//!   (/dev/null and a regular log), no thread. What a case then fails on is its own subject.
//! - Everything goes through files in one directory (`ZDTM_DIR`), because files survive the program being killed.

#![allow(
    unsafe_code,
    reason = "test programs make raw system calls; each block says why it is sound"
)]

mod case;
mod checks;
mod memory;
mod process;
mod procfs;
mod protocol;
mod sys;
mod threads;

pub use anyhow::{Context, Result, bail};
pub use case::{Area, Case, main};
pub use checks::{Skip, skip};
pub use memory::{Mapping, PAGE, checksum, fill, huge_pages, page_size, pattern, verify};
pub use process::{Child, children, exit_code, exit_signal, wait_exit};
pub use procfs::{proc_text, stat_field, status_field};
pub use protocol::{checkpoint, dir, over, over_word, ready, wait};
pub use sys::{descriptors, ret, syscall};
pub use threads::Team;
