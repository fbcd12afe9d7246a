//! BPF objects that tasks have open, dumped and restored in CRIU's format.
//!
//! Knows no ptrace and no descriptor table. Invariants:
//! * a map is made once, whoever has it open and in whichever other maps it is;
//! * what has a name in a BPF file system and is found there is taken as it is;
//! * what the kernel does not let one read back is refused by type, tag and name.
//!
//! All of it is [`BpfMap`], one kind of open file.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]
#![forbid(unsafe_code)]

mod call;
mod content;
mod link;
mod map;
mod maps;
mod pin;
mod shape;

pub use map::BpfMap;

/// Every kind of this crate.
pub const KINDS: &[&dyn criu_kind::AnyFileKind] = &[&BpfMap];
