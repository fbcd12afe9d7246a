//! Tasks: who exists, and how a tree of them is born again.
#![forbid(unsafe_code)]

pub mod birth;
mod plan;
mod tree;

pub use plan::{End, Plan, PlanNode, Role, Step};
pub use tree::{Node, Tree, freeze};
