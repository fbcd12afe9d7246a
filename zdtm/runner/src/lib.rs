//! Runs zdtm cases against a criu binary: start, look, dump, kill, restore, look again, ask the case.
//!
//! Reading order: [`options`] (what to run) → `schedule` (when) → `place` (where: a fresh pid and mount namespace, or
//! the host) → `drive` (the course of one run) → `visible` (what a task looks like from outside) → `report`.
//!
//! Invariants:
//! - Every process a run starts is a descendant of that run's driver, which is PID 1 of its own pid namespace (or a
//!   subreaper on the host). Cleaning up is the death of the driver's children, never a signal by name.
//! - A run has three voices and all must agree: criu's exit code, the case's own checks, and the visible state.
//! - Nothing here knows what a case is about; its wishes come from `zdtm-cases --list`.

#![forbid(unsafe_code)]

mod carry;
mod catalog;
mod criu;
mod drive;
mod job;
mod known;
mod options;
mod outcome;
mod place;
mod report;
mod schedule;
mod visible;

pub use options::{Mode, Options, Place};

use std::process::ExitCode;

/// The whole program, from arguments to exit code: 0 when nothing failed, 1 otherwise, 2 when it could not run.
pub fn main(args: Vec<String>) -> ExitCode {
    // The runner starts itself again inside of namespaces; those two stages have a verb of their own.
    let result = match args.first().map(String::as_str) {
        Some(place::NEST) => place::nest(&args[1..]),
        Some(place::DRIVE) => place::drive(&args[1..]),
        _ => Options::parse(args).and_then(|options| match options {
            Some(options) => run(&options),
            None => Ok(true),
        }),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("zdtm-run: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs what the options select and prints the report; true when nothing failed.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let cases = catalog::load(options)?;
    if options.list {
        for case in &cases {
            println!("{}", case.name);
        }
        return Ok(true);
    }
    let columns = options.columns();
    let known = known::Known::load(options.known.as_deref())?;
    let report = report::Report::new(&columns);
    schedule::run(options, &cases, &columns, &known, &report)?;
    report.finish(options)
}
