//! The programs that are dumped and restored by `cargo xtask bench` and `cargo xtask kill`, and a stopwatch.
//!
//! `workload SHAPE NUMBER…` sets up one shape of state, creates the file `ready` in its working directory, and
//! sleeps; `workload time FILE COMMAND…` runs a command and writes what it took. A small binary of its own, because
//! the pages of its own image are part of what is measured, and because the peak memory of a command is never
//! reported as less than that of the process that started it.
#![forbid(unsafe_code)]

mod checked;
mod connections;
mod named;
mod shapes;
mod stopwatch;
mod tables;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("workload: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> anyhow::Result<()> {
    let (shape, rest) = args
        .split_first()
        .context("usage: workload SHAPE NUMBER…")?;
    if shape == "time" {
        return stopwatch::run(rest);
    }
    // Fails for a group leader, which one is that was started by hand from a shell.
    let _ = nix::unistd::setsid();
    let numbers = rest
        .iter()
        .map(|word| word.parse::<usize>())
        .collect::<Result<Vec<_>, _>>()?;
    match (shape.as_str(), numbers[..].as_ref()) {
        ("minimal", []) => shapes::minimal(),
        ("threads", &[count]) => shapes::threads(count),
        ("mappings", &[count]) => shapes::mappings(count),
        ("processes", &[count, mib]) => shapes::processes(count, mib),
        ("memory", &[mib, zero]) => shapes::memory(mib, zero != 0),
        ("descriptors", &[count, each]) => shapes::descriptors(count, each),
        ("connections", &[count]) => connections::run(count),
        ("usher", &[count]) => connections::usher(count),
        ("other-side", &[count]) => connections::other_side(count),
        ("files", &[count]) => shapes::files(count),
        ("checked", []) => checked::run(),
        _ => bail!("unknown shape {shape} {numbers:?}"),
    }
}

/// Says that everything is set up: the file appears with its content.
fn ready() -> anyhow::Result<()> {
    std::fs::write("ready.new", std::process::id().to_string())?;
    std::fs::rename("ready.new", Path::new("ready"))?;
    Ok(())
}

/// Sleeps until it is killed.
fn sleep() -> ! {
    loop {
        nix::unistd::pause();
    }
}
