//! The driver: it knows the order of things, and nothing of how they are done.
//!
//! `criu-cli` turns words into options, `verbs` finds who does what was asked, `dump` and `restore` name their stages
//! in order. What is dumped and how is in the crates below; their errors become one [`error::Failure`] here.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::Write;

mod blame;
pub mod check;
pub mod cpuinfo;
mod describe;
mod dump;
mod explain;
mod furnish;
mod inventory;
mod ipc;
mod load;
mod net;
pub mod progress;
mod restore;
mod shares;
mod stats;
mod tables;
pub mod verbs;
mod wake;
mod world;

use criu_cli::config::Surroundings;
use criu_cli::typed::{self, Asked};
use criu_cli::{error, log, options, policy, remap, scripts};

/// The CRIU release whose interfaces these are. Callers compare it as text, so its major number stays below 10.
pub const COMPATIBLE: &str = "4.2";
/// Who we are.
pub const NAME_AND_VERSION: &str = concat!("criu-rs ", env!("CARGO_PKG_VERSION"));

/// Runs one command line, without the program's name, and returns the exit status.
pub fn run(
    args: impl IntoIterator<Item = OsString>,
    around: &Surroundings,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let outcome = typed::read(args, around)
        .map_err(|failure| (failure, false))
        .and_then(|asked| match asked {
            Asked::Help(text) => print(out, &text),
            Asked::Version => print(out, &format!("Version: {COMPATIBLE}\n{NAME_AND_VERSION}\n")),
            Asked::Run(typed) => verbs::run(&typed, around, out),
        });
    match outcome {
        Ok(()) => 0,
        Err((failure, seen)) => {
            if !seen {
                // Standard error is the last resort; if it is closed there is no other.
                let _ = writeln!(err, "Error (criu): {failure}");
            }
            failure.exit_status
        }
    }
}

fn print(out: &mut dyn Write, text: &str) -> Result<(), (error::Failure, bool)> {
    out.write_all(text.as_bytes())
        .map_err(|error| (error::Failure::from_chain("output", &error), false))
}
