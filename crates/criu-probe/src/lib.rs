//! What the running kernel can do for checkpoint and restore, by trying it.
//!
//! Invariants. Nothing is concluded from a version number. No program is spawned; what would leave traces in
//! this process is tried in a task cloned for one question and killed after it. What cannot be tried here is
//! [`Lack::Unknown`], never a guess. Knows no image and no option.
#![forbid(unsafe_code)]

mod feature;
mod files;
mod mm;
mod net;
mod netlink;
mod ns;
mod scratch;
mod table;
mod task;

pub use feature::{Answer, Class, Feature, Lack};
pub use table::FEATURES;

/// The feature with this name.
pub fn feature(name: &str) -> Option<&'static Feature> {
    FEATURES.iter().find(|feature| feature.name == name)
}
