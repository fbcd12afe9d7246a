//! What belongs to a namespace and to nothing in it: so far the clocks of time namespaces.
//!
//! Invariants: acts through a `Site` only, in the tasks whose namespaces they are; knows neither the tree nor the order
//! of its birth.
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod time;

pub use time::{Clocks, Going, go_on};
