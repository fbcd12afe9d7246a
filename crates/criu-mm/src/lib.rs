//! Address spaces: which mappings and pages a process has, out of it and into another.
//!
//! Dump: [`survey`] reads, [`drain`] writes pages. Restore: [`SpaceImage::load`] checks, [`Ground`]
//! finds room, then a task is cleared ([`clear`]), filled ([`fill`]) and finished ([`finish`]).
//!
//! Invariants. Pages are never pinned from outside: the kernel would unshare them. Nothing is created
//! for an image that does not hold together. Who files are is asked ([`criu_kind::MappedFiles`],
//! [`criu_kind::FileFds`]) and never looked into.
#![forbid(unsafe_code)]
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

mod aio;
mod barred;
mod bits;
mod clear;
mod drain;
mod fill;
mod finish;
mod ground;
mod image;
mod inherit;
mod mm_map;
mod page;
mod pages;
mod ring;
mod scan;
mod segment;
mod shared;
mod survey;
mod symbols;
mod transfer;
mod vdso;
mod vma;

pub use clear::clear;
pub use drain::{DrainOptions, Stats, drain};
pub use fill::{FillJob, FillStats, Materials, fill};
pub use finish::finish;
pub use ground::Ground;
pub use image::SpaceImage;
pub use page::page_size;
pub use pages::Pages;
pub use segment::Segments;
pub use shared::{Shared, bring_object, drain_object};
pub use survey::{Questions, Space, SurveyOptions, survey};
