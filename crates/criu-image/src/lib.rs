//! The image format of CRIU: every message, every file, read and written byte for byte.
//!
//! Knows no kernel: nothing here looks at a process, and everything here runs without privilege.
//! Invariants:
//! * decoding and encoding again gives the same bytes, or [`Entry::is_exact`] says that it does not;
//! * no input makes a reader panic, and memory taken is bounded by the size of the file read;
//! * a name, a magic number or a message is written down once: in `proto/` or in [`desc`];
//! * a dump that died does not look like a complete image ([`store`]).
//!
//! Start at [`desc`] for what the files are, at [`store`] for where they are, and at [`ImageReader`]
//! and [`ImageWriter`] for what is in one.
#![forbid(unsafe_code)]

mod checked;
pub mod desc;
mod directory;
mod error;
mod follow;
pub mod id;
mod layout;
pub mod manifest;
mod memory;
pub mod pages;
mod parse;
mod read;
pub mod schema;
pub mod shmem;
mod skip;
pub mod store;
mod write;

/// The messages, as prost writes them from `proto/`.
///
/// Most `string` fields are `Vec<u8>` here: paths and names are bytes to the kernel and to CRIU.
#[allow(
    missing_docs,
    reason = "generated; most fields are named by the kernel's own word"
)]
#[allow(clippy::all, reason = "generated")]
pub mod pb {
    include!("pb/messages.rs");
}

pub use checked::Checked;
pub use desc::{Desc, ImageId};
pub use directory::{Directory, Durability};
pub use error::{Error, Result, Why};
pub use manifest::Manifest;
pub use memory::Memory;
pub use parse::{Parsed, parse_any};
pub use prost::bytes::Bytes;
pub use read::{AnyEntry, Entry, ImageReader};
pub use skip::{SkippedEntry, SkippingReader};
pub use store::{Store, StoreExt};
pub use write::ImageWriter;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
