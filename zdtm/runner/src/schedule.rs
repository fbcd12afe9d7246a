//! Which run when: as many at a time as asked for, the exclusive ones alone.

use std::sync::RwLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::carry;
use crate::catalog::Entry;
use crate::job::Job;
use crate::known::Known;
use crate::options::{Column, Mode, Options, Place};
use crate::outcome::{Outcome, Ran};
use crate::place;
use crate::report::Report;

/// Runs every case in every column, `repeat` times.
pub(crate) fn run(
    options: &Options,
    cases: &[Entry],
    columns: &[Column],
    known: &Known,
    report: &Report,
) -> Result<()> {
    let runs: Vec<(usize, &Entry, usize)> = (0..options.repeat)
        .flat_map(|round| cases.iter().map(move |case| (round, case)))
        .flat_map(|(round, case)| (0..columns.len()).map(move |column| (round, case, column)))
        .collect();
    std::fs::create_dir_all(&options.output)
        .with_context(|| options.output.display().to_string())?;
    let next = AtomicUsize::new(0);
    // Held shared by ordinary runs and alone by exclusive ones.
    let machine = RwLock::new(());
    // On the host all runs share one set of pids; two restores at a time could want each other's.
    let jobs = if options.place == Place::Host {
        1
    } else {
        options.jobs
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(runs.len()) {
            scope.spawn(|| {
                while let Some(&(round, case, column)) =
                    runs.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let (alone, beside);
                    if case.exclusive {
                        alone = machine.write();
                        let _ = &alone;
                    } else {
                        beside = machine.read();
                        let _ = &beside;
                    }
                    let started = Instant::now();
                    let outcome = one(options, case, &columns[column], round)
                        .unwrap_or_else(|error| Outcome::Fail(format!("runner: {error:#}")));
                    report.add(Ran {
                        case: case.name.clone(),
                        column,
                        outcome: match columns[column].mode {
                            Mode::None | Mode::Dump => outcome,
                            _ => known.judge(&case.name, outcome),
                        },
                        took: started.elapsed(),
                    });
                }
            });
        }
    });
    Ok(())
}

fn one(options: &Options, case: &Entry, column: &Column, round: usize) -> Result<Outcome> {
    // The two halves of a restore share theirs.
    let title = match column.mode {
        Mode::Dump | Mode::Dumped => "carried",
        _ => &column.title,
    };
    let folder: String = title
        .chars()
        .map(|c| if "/>:".contains(c) { '-' } else { c })
        .collect();
    let dir = options
        .output
        .join(&case.name)
        .join(format!("{folder}-{round}"));
    if column.mode == Mode::Dumped {
        if let Some(outcome) = carry::nothing(&dir) {
            return Ok(outcome);
        }
    } else if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
    }
    std::fs::create_dir_all(&dir)?;
    let job = Job::new(options, case, column, dir.clone())?;
    let outcome = place::run(&job);
    let done = matches!(outcome, Outcome::Pass(_)) && column.mode != Mode::Dump;
    if done && !options.keep {
        std::fs::remove_dir_all(&dir)?;
        // The case's own directory too, unless another column failed in there.
        let _ = std::fs::remove_dir(options.output.join(&case.name));
    }
    Ok(outcome)
}
