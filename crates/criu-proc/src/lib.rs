//! A pinned `/proc/PID`, and exact parsers for what is in it.
//!
//! Knows nothing of ptrace, images or namespaces, and holds no `unsafe`. Two halves that do not need each other:
//!
//! * [`ProcDir`] is `/proc/PID` held open, so that a reused pid cannot redirect a later read.
//! * The parsers are pure functions from bytes to plain data. They never panic, and when the text is not what the
//!   kernel prints they say which file, which line and what was expected there ([`ParseError`]).
//!
//! Kernel sources are named by their path in
//! [Linux 6.18](https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git/tree/?h=v6.18), the version the
//! fixtures are from.
//!
//! Invariants:
//!
//! * Text is bytes. Names of files and tasks are whatever userspace chose, so nothing here asks for UTF-8.
//! * Numbers have the exact width the kernel prints; one that does not fit is an error, never a wrap.
//! * Lines a newer kernel adds are ignored only in files of `Key: value` lines (status, smaps), where the kernel
//!   promises to add only that way. Everywhere else the unknown is an error.
//! * Kinds parse their own fdinfo lines; only the head that all descriptors share is understood here.
//!
//! ```
//! use criu_proc::{ProcDir, Vmas};
//! let me = ProcDir::open(nix::unistd::Pid::this())?;
//! println!("{:?}", me.stat()?.comm);
//! let maps = me.read("maps")?;
//! for vma in Vmas::new(&maps) {
//!     let vma = vma?;
//!     println!("{:x}-{:x} {:?}", vma.start, vma.end, vma.name);
//! }
//! # Ok::<(), criu_proc::Error>(())
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

mod ahead;
mod auxv;
mod cgroup;
mod dev;
mod dir;
mod error;
mod escape;
mod fdinfo;
mod idmap;
mod limits;
mod lock;
mod map_name;
mod maps;
mod mountinfo;
mod ns;
mod pagemap;
mod read;
mod signals;
mod smaps;
mod stat;
mod state;
mod status;
mod status_value;
mod syscall;
mod text;
mod timers;
mod value;
mod vm_flags;

pub use auxv::{WordSize, auxv};
pub use cgroup::{Cgroup, cgroups};
pub use dev::Dev;
pub use dir::ProcDir;
pub use error::{Error, ParseError};
pub use escape::octal as unescape;
pub use fdinfo::{Fdinfo, InfoLine};
pub use idmap::{IdRange, id_map};
pub use limits::{Limit, Limits, Resource, Rlim};
pub use lock::{Lock, LockAccess, LockKind, LockMode, locks};
pub use map_name::MapName;
pub use maps::{Perms, Vma, Vmas};
pub use mountinfo::{Mount, MountId, Propagation, mountinfo};
pub use ns::{NsKind, NsLink};
pub use pagemap::{PageEntry, page_entries};
pub use signals::SignalMask;
pub use smaps::{Smap, Smaps};
pub use stat::Stat;
pub use state::TaskState;
pub use status::{Ids, Seccomp, Status, status_field};
pub use syscall::{Blocked, syscall, wchan};
pub use timers::{Notify, PosixTimer, Target, timers};
pub use value::{
    Autogroup, TimensOffsets, autogroup, dec, decs, hex, oct, pids, strings, timens_offsets, unset,
};
pub use vm_flags::VmFlags;
