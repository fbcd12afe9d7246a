//! What a command takes: time from before its creation to its end, its peak memory, and when it locks the network.

use std::process::Command;
use std::time::Instant;

use anyhow::Context;
use nix::sys::resource::{UsageWho, getrusage};

use crate::tables::Watch;

/// `time FILE COMMAND…`: writes nanoseconds, KiB, 0 if it exited with success, and the nanoseconds until there was a
/// table of nf_tables more than before and until there was one less; 0: never.
pub(crate) fn run(args: &[String]) -> anyhow::Result<()> {
    let [file, program, args @ ..] = args else {
        anyhow::bail!("usage: workload time FILE COMMAND…");
    };
    let mut command = Command::new(program);
    command.args(args);
    let start = Instant::now();
    // Where there is no nf_tables, nothing can be seen of it.
    let watch = Watch::start(start).ok();
    let begun = start.elapsed();
    let status = command.status().with_context(|| program.clone())?;
    let nanos = (start.elapsed() - begun).as_nanos();
    let seen = watch.map(Watch::end).transpose()?.unwrap_or_default();
    let [locked, free] = [seen.made, seen.gone].map(|at| {
        let since = at.map(|at| at.saturating_sub(begun).as_nanos());
        since.unwrap_or(0)
    });
    let kib = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    let failed = i32::from(!status.success());
    std::fs::write(file, format!("{nanos} {kib} {failed} {locked} {free}"))?;
    Ok(())
}
