//! What `criu` was asked, and how it answers.
//!
//! Words and configuration files become one plain struct a verb ([`options`]); what happens is told in a
//! [`log`], to [`scripts`], and when it fails in one record ([`error`]). Knows nothing of tasks and images.
//!
//! Invariants: every option of CRIU 4.2 is in one [`table`], and what is not implemented is refused by name;
//! nothing here reads the environment but [`config::Surroundings::current`]; nothing installs a subscriber
//! for longer than [`log::Log::during`].
#![forbid(unsafe_code)]

pub mod argv;
pub mod config;
pub mod error;
pub mod external;
pub mod log;
pub mod options;
pub mod policy;
pub mod remap;
pub mod scripts;
pub mod table;
mod tcp;
pub mod typed;
pub mod verb;

pub use verb::Verb;
