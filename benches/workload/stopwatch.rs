//! What a command takes: time from before its creation to its end, and its peak memory.

use std::process::Command;
use std::time::Instant;

use anyhow::Context;
use nix::sys::resource::{UsageWho, getrusage};

/// `time FILE COMMAND…`: writes nanoseconds, KiB, and 0 if it exited with success.
pub(crate) fn run(args: &[String]) -> anyhow::Result<()> {
    let [file, program, args @ ..] = args else {
        anyhow::bail!("usage: workload time FILE COMMAND…");
    };
    let mut command = Command::new(program);
    command.args(args);
    let start = Instant::now();
    let status = command.status().with_context(|| program.clone())?;
    let nanos = start.elapsed().as_nanos();
    let kib = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    let failed = i32::from(!status.success());
    std::fs::write(file, format!("{nanos} {kib} {failed}"))?;
    Ok(())
}
