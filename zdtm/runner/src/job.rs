//! One run, as it is handed to the process that drives it: its arguments.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::catalog::{self, Entry};
use crate::options::{Column, MODES, Options, Place};

/// Everything the driver has to know.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) case: Entry,
    pub(crate) column: Column,
    pub(crate) place: Place,
    pub(crate) iterations: usize,
    pub(crate) timeout: Duration,
    /// What has to be said when it is refused, as it must be on this CPU; nothing where it must not.
    pub(crate) lacks: Vec<String>,
    /// Of its instructions the C library uses those only that every processor has.
    pub(crate) plain_libc: bool,
    pub(crate) cases: PathBuf,
    /// Absolute; holds `work` (the case's directory), `img` and the logs.
    pub(crate) dir: PathBuf,
}

impl Job {
    pub(crate) fn new(
        options: &Options,
        case: &Entry,
        column: &Column,
        dir: PathBuf,
    ) -> Result<Self> {
        let absolute =
            |path: &Path| std::path::absolute(path).with_context(|| path.display().to_string());
        Ok(Self {
            case: case.clone(),
            column: Column {
                dump_with: absolute(&column.dump_with)?,
                restore_with: absolute(&column.restore_with)?,
                ..column.clone()
            },
            place: options.place,
            iterations: options.iterations.max(1),
            timeout: options.timeout,
            lacks: lacks(options, case),
            plain_libc: options.plain_libc,
            cases: absolute(&options.cases)?,
            dir: absolute(&dir)?,
        })
    }

    /// The case's working directory.
    pub(crate) fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// As the arguments of a re-executed runner; [`Job::parse`] reads them back.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        vec![
            path(&self.dir),
            path(&self.cases),
            path(&self.column.dump_with),
            path(&self.column.restore_with),
            self.column.mode.name().to_owned(),
            if self.place == Place::Host {
                "host"
            } else {
                "namespace"
            }
            .to_owned(),
            self.iterations.to_string(),
            self.timeout.as_secs().to_string(),
            self.lacks.join(","),
            self.plain_libc.to_string(),
            self.case.name.clone(),
            self.case.options.join(" "),
            self.case.dump.join(" "),
            self.case.restore.join(" "),
            self.case.changes.join(" "),
            self.case.refused.clone(),
            self.case.stays.clone(),
            self.case.needs.join(","),
        ]
    }

    /// The inverse of [`Job::arguments`].
    pub(crate) fn parse(arguments: &[String]) -> Result<Self> {
        let [
            dir,
            cases,
            dump_with,
            restore_with,
            mode,
            place,
            iterations,
            timeout,
            lacks,
            plain_libc,
            name,
            options,
            dump,
            restore,
            changes,
            refused,
            stays,
            needs,
        ] = arguments
        else {
            anyhow::bail!("wrong number of arguments");
        };
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        let (_, mode) = MODES
            .iter()
            .find(|(known, _)| known == mode)
            .context("mode")?;
        Ok(Self {
            case: Entry {
                name: name.clone(),
                options: words(options),
                dump: words(dump),
                restore: words(restore),
                exclusive: false,
                changes: words(changes),
                refused: refused.clone(),
                stays: stays.clone(),
                needs: catalog::names(needs),
            },
            column: Column {
                title: String::new(),
                mode: *mode,
                dump_with: dump_with.into(),
                restore_with: restore_with.into(),
            },
            place: if place == "host" {
                Place::Host
            } else {
                Place::Namespace
            },
            iterations: iterations.parse()?,
            timeout: Duration::from_secs(timeout.parse()?),
            lacks: catalog::names(lacks),
            plain_libc: plain_libc.parse()?,
            cases: cases.into(),
            dir: dir.into(),
        })
    }
}

/// What of the needs of a case the CPU lacks, and what it lacks of everybody's.
fn lacks(options: &Options, case: &Entry) -> Vec<String> {
    let own = case.needs.iter();
    let own = own.filter(|need| options.lacks.contains(need));
    own.chain(&options.all_need).cloned().collect()
}
