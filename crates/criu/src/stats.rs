//! What a run took: `stats-dump` and `stats-restore` in the work directory.

use std::path::Path;
use std::time::{Duration, Instant};

use criu_image::{ImageWriter, desc, pb};
use criu_kind::Error;

use crate::error::Failure;
use crate::explain;

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

fn write(work: &Path, name: &str, entry: &pb::StatsEntry, display: bool) -> Result<(), Failure> {
    let failed = |error: Error| explain::failure("stats", &error);
    let file = std::fs::File::create(work.join(name))
        .map_err(Error::io("open"))
        .map_err(failed)?;
    let mut writer =
        ImageWriter::new(desc::STATS, name, file).map_err(|error| failed(error.into()))?;
    writer.write(entry).map_err(|error| failed(error.into()))?;
    writer.finish().map_err(|error| failed(error.into()))?;
    if display {
        tracing::warn!(target: "criu", "statistics: {entry:?}");
    }
    Ok(())
}

/// What a dump took.
#[derive(Debug)]
pub(crate) struct DumpStats {
    start: Instant,
    frozen: Option<Instant>,
    entry: pb::DumpStatsEntry,
}

impl DumpStats {
    /// The run begins.
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
            frozen: None,
            entry: pb::DumpStatsEntry::default(),
        }
    }

    /// All tasks are stopped.
    pub(crate) fn frozen(&mut self) {
        self.entry.freezing_time = micros(self.start.elapsed());
        self.frozen = Some(Instant::now());
    }

    /// All pages are written.
    pub(crate) fn drained(&mut self, stats: &criu_mm::Stats) {
        self.entry.pages_scanned = stats.pages_scanned;
        self.entry.pages_written = stats.pages_written;
        self.entry.shpages_scanned = Some(stats.shared_scanned);
        self.entry.shpages_written = Some(stats.shared_written);
        self.entry.memdump_time = self.frozen.map_or(0, |frozen| micros(frozen.elapsed()));
        self.entry.memwrite_time = self.entry.memdump_time;
    }

    /// The tasks run again, or are dead.
    pub(crate) fn released(&mut self) {
        self.entry.frozen_time = self.frozen.map_or(0, |frozen| micros(frozen.elapsed()));
    }

    /// Writes `stats-dump`.
    pub(crate) fn write(&self, work: &Path, display: bool) -> Result<(), Failure> {
        let entry = pb::StatsEntry {
            dump: Some(self.entry),
            restore: None,
        };
        write(work, "stats-dump", &entry, display)
    }
}

/// What a restore took.
#[derive(Debug)]
pub(crate) struct RestoreStats {
    start: Instant,
    entry: pb::RestoreStatsEntry,
}

impl RestoreStats {
    /// The run begins.
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
            entry: pb::RestoreStatsEntry::default(),
        }
    }

    /// All tasks exist.
    pub(crate) fn forked(&mut self) {
        self.entry.forking_time = micros(self.start.elapsed());
    }

    /// What became of the pages.
    pub(crate) fn filled(&mut self, compared: u64, skipped: u64, restored: u64) {
        self.entry.pages_compared += compared;
        self.entry.pages_skipped_cow += skipped;
        self.entry.pages_restored = Some(self.entry.pages_restored.unwrap_or(0) + restored);
    }

    /// Writes `stats-restore`.
    pub(crate) fn write(&mut self, work: &Path, display: bool) -> Result<(), Failure> {
        self.entry.restore_time = micros(self.start.elapsed());
        let entry = pb::StatsEntry {
            dump: None,
            restore: Some(self.entry),
        };
        write(work, "stats-restore", &entry, display)
    }
}
