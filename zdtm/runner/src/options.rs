//! The command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::catalog::names;

/// What happens to a case between "ready" and "check".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Dump, which kills it, and restore.
    Restore,
    /// Dump with `--leave-running`; no restore.
    LeaveRunning,
    /// Dump with `--leave-stopped`; woken by the runner; no restore.
    LeaveStopped,
    /// Two `pre-dump`s, then as [`Mode::Restore`].
    PreDump,
    /// Nothing: what fails here is the case.
    None,
    /// Dump, and leave images and record where they are, for [`Mode::Dumped`].
    Dump,
    /// Restore what [`Mode::Dump`] left, perhaps under another kernel.
    Dumped,
}

pub(crate) const MODES: &[(&str, Mode)] = &[
    ("restore", Mode::Restore),
    ("leave-running", Mode::LeaveRunning),
    ("leave-stopped", Mode::LeaveStopped),
    ("pre-dump", Mode::PreDump),
    ("none", Mode::None),
    ("dump", Mode::Dump),
    ("dumped", Mode::Dumped),
];

impl Mode {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        MODES
            .iter()
            .find(|(_, mode)| *mode == self)
            .map_or("", |(name, _)| name)
    }
}

/// Where case and criu run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a fresh pid and mount namespace that both share.
    Namespace,
    /// In the runner's own namespaces.
    Host,
}

/// One column of the result table.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) title: String,
    pub(crate) mode: Mode,
    pub(crate) dump_with: PathBuf,
    pub(crate) restore_with: PathBuf,
}

/// What to run, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binaries that dump; a column each.
    pub dump_with: Vec<PathBuf>,
    /// The binaries that restore; every dump binary is combined with every one of these.
    pub restore_with: Vec<PathBuf>,
    /// The multi-call binary with the cases.
    pub cases: PathBuf,
    /// Modes, a column each.
    pub modes: Vec<Mode>,
    /// Namespace or host.
    pub place: Place,
    /// Only cases with one of these in their name.
    pub filter: Vec<String>,
    /// But none with one of these.
    pub exclude: Vec<String>,
    /// What the CPU lacks: cases that need it must be refused in these words.
    pub lacks: Vec<String>,
    /// What it lacks and all cases need.
    pub all_need: Vec<String>,
    /// The C library of the cases shall not choose instructions by the CPU.
    pub plain_libc: bool,
    /// Print the names only.
    pub list: bool,
    /// How many times to run everything.
    pub repeat: usize,
    /// Dump and restore this often before the check.
    pub iterations: usize,
    /// How many runs at a time.
    pub jobs: usize,
    /// Upper limit for one run.
    pub timeout: Duration,
    /// Where runs have their directories.
    pub output: PathBuf,
    /// Keep the directories of passed runs as well.
    pub keep: bool,
    /// Write JUnit XML there.
    pub junit: Option<PathBuf>,
    /// A file of failures that are known, with their reasons.
    pub known: Option<PathBuf>,
}

const USAGE: &str = "\
usage: zdtm-run [OPTION]...
  --criu PATH            the criu to test (default target/release/criu)
  --dump-with PATH       dump with this one, --restore-with PATH  restore with that one;
                         both repeatable: every pair is a column of the table
  --cases PATH           the case binary (default: zdtm-cases beside this program)
  --filter TEXT          only cases with TEXT in their name; repeatable, commas too
  --exclude TEXT         but not those
  --mode NAME            restore (default), leave-running, leave-stopped, pre-dump, none; repeatable;
                         dump, and in a later run dumped: the two halves of restore, on machines that may differ
  --lacks TEXT           with dumped: the CPU lacks this, and cases that need it must hear it; repeatable, commas too
  --all-need TEXT        with dumped: the CPU lacks this, and every case must hear it; likewise
  --plain-libc           the C library of the cases uses instructions that all CPUs have
  --host                 on the host instead of in a fresh pid and mount namespace
  --iterations N         dump and restore N times before the check
  --repeat N             run everything N times
  --jobs N               runs at a time (default: CPUs)
  --timeout SECONDS      per run (default 60)
  --known FILE           expected failures, `CASE REASON` a line: a pass is then the failure
  --output DIR           directories of the runs (default target/zdtm); failures stay there
  --keep                 passes stay as well
  --junit FILE           write JUnit XML
  --list                 print the cases";

impl Options {
    /// The defaults: the release build of this workspace.
    pub fn new() -> Self {
        let beside = |name: &str| {
            let own = std::env::current_exe().unwrap_or_default();
            own.parent().unwrap_or(Path::new(".")).join(name)
        };
        Self {
            dump_with: Vec::new(),
            restore_with: Vec::new(),
            cases: beside("zdtm-cases"),
            modes: Vec::new(),
            place: Place::Namespace,
            filter: Vec::new(),
            exclude: Vec::new(),
            lacks: Vec::new(),
            all_need: Vec::new(),
            plain_libc: false,
            list: false,
            repeat: 1,
            iterations: 1,
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            timeout: Duration::from_secs(60),
            output: PathBuf::from("target/zdtm"),
            keep: false,
            junit: None,
            known: None,
        }
    }

    /// From arguments; nothing when they asked for help.
    pub fn parse(args: Vec<String>) -> Result<Option<Self>> {
        let mut options = Self::new();
        let mut args = args.into_iter();
        while let Some(argument) = args.next() {
            let (name, inline) = match argument.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (argument, None),
            };
            let mut value = || {
                inline
                    .clone()
                    .or_else(|| args.next())
                    .with_context(|| format!("{name} wants a value"))
            };
            match name.as_str() {
                "--criu" => {
                    let path = PathBuf::from(value()?);
                    options.dump_with = vec![path.clone()];
                    options.restore_with = vec![path];
                }
                "--dump-with" => options.dump_with.push(value()?.into()),
                "--restore-with" => options.restore_with.push(value()?.into()),
                "--cases" => options.cases = value()?.into(),
                "--filter" => options
                    .filter
                    .extend(value()?.split(',').map(str::to_owned)),
                "--exclude" => options
                    .exclude
                    .extend(value()?.split(',').map(str::to_owned)),
                "--mode" => {
                    for name in value()?.split(',') {
                        let mode = MODES.iter().find(|(known, _)| *known == name);
                        options
                            .modes
                            .push(mode.with_context(|| format!("no mode {name}"))?.1);
                    }
                }
                "--host" => options.place = Place::Host,
                "--iterations" => options.iterations = value()?.parse()?,
                "--repeat" => options.repeat = value()?.parse()?,
                "--jobs" => options.jobs = value()?.parse::<usize>()?.max(1),
                "--timeout" => options.timeout = Duration::from_secs(value()?.parse()?),
                "--known" => options.known = Some(value()?.into()),
                "--output" => options.output = value()?.into(),
                "--keep" => options.keep = true,
                "--junit" => options.junit = Some(value()?.into()),
                "--lacks" => options.lacks.extend(names(&value()?)),
                "--all-need" => options.all_need.extend(names(&value()?)),
                "--plain-libc" => options.plain_libc = true,
                "--list" => options.list = true,
                "--help" | "-h" => {
                    println!("{USAGE}");
                    return Ok(None);
                }
                _ => bail!("unknown option {name}\n{USAGE}"),
            }
        }
        Ok(Some(options))
    }

    /// Every mode with every pair of binaries.
    pub(crate) fn columns(&self) -> Vec<Column> {
        let or = |list: &[PathBuf], other: &[PathBuf]| match (list.is_empty(), other.is_empty()) {
            (false, _) => list.to_vec(),
            (true, false) => other.to_vec(),
            (true, true) => vec![PathBuf::from("target/release/criu")],
        };
        let dumpers = or(&self.dump_with, &self.restore_with);
        let restorers = or(&self.restore_with, &self.dump_with);
        let modes = if self.modes.is_empty() {
            &[Mode::Restore][..]
        } else {
            &self.modes
        };
        let mut columns = Vec::new();
        for &mode in modes {
            for dump_with in &dumpers {
                for restore_with in &restorers {
                    let mut title = mode.name().to_owned();
                    if dumpers.len() * restorers.len() > 1 || dump_with != restore_with {
                        title =
                            format!("{title}:{}>{}", nickname(dump_with), nickname(restore_with));
                    }
                    columns.push(Column {
                        title,
                        mode,
                        dump_with: dump_with.clone(),
                        restore_with: restore_with.clone(),
                    });
                }
            }
        }
        columns
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

/// Two binaries named `criu` are told apart by their directory.
fn nickname(path: &Path) -> String {
    let part = |path: Option<&Path>| {
        path.and_then(Path::file_name)
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    };
    format!("{}/{}", part(path.parent()), part(Some(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Options {
        Options::parse(line.split_whitespace().map(str::to_owned).collect())
            .unwrap()
            .unwrap()
    }

    #[test]
    fn pairs_of_binaries_make_columns() {
        let options = parse(
            "--dump-with a/criu --dump-with b/criu --restore-with a/criu --restore-with b/criu",
        );
        let titles: Vec<_> = options
            .columns()
            .into_iter()
            .map(|column| column.title)
            .collect();
        assert_eq!(
            titles,
            [
                "restore:a/criu>a/criu",
                "restore:a/criu>b/criu",
                "restore:b/criu>a/criu",
                "restore:b/criu>b/criu"
            ]
        );
    }

    #[test]
    fn one_binary_is_one_column_a_mode() {
        let titles: Vec<_> = parse("--criu=x --mode restore,leave-running")
            .columns()
            .into_iter()
            .map(|column| column.title)
            .collect();
        assert_eq!(titles, ["restore", "leave-running"]);
    }

    #[test]
    fn an_unknown_option_is_refused() {
        assert!(Options::parse(vec!["--nonsense".to_owned()]).is_err());
    }
}
