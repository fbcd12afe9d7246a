//! Sockets, dumped and restored in CRIU's format.
//!
//! Knows no ptrace, no descriptor tables and no order of stages: a socket is a kind of file
//! ([`criu_kind::FileKind`]), and whoever walks the files calls it. Invariants:
//! * what the kernel knows of sockets is asked once for each network namespace, not once for each socket;
//! * a queue is looked into, never drained;
//! * every option that is changed to look is put back;
//! * a socket is made by the process that the kernel is to remember as its maker.
//!
//! Start at [`kinds`].
#![cfg_attr(doctest, doc = include_str!("../README.md"))]
#![forbid(unsafe_code)]

mod sockets {
    pub(crate) mod diag;
    pub(crate) mod message;
    pub(crate) mod options;
    pub(crate) mod queue;
    pub(crate) mod unix {
        pub(crate) mod build;
        pub(crate) mod dump;
        mod join;
        pub(crate) mod kind;
        pub(crate) mod name;
        pub(crate) mod refill;
    }
}

/// The kinds of sockets.
pub mod kinds {
    pub use crate::sockets::unix::kind::Unix;
}

/// Every kind of this crate, by name.
pub const KINDS: &[&dyn criu_kind::AnyFileKind] = &[&kinds::Unix];
