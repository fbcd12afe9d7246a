//! The log: CRIU's line format, so that what reads CRIU's logs reads ours.
//!
//! `(00.012345) dump:task{pid=42}: message`, with `Error (target): ` and `Warn  (target): ` in front of what
//! people and tools search for. Times appear from `-v3` on. A run that fails ends its log with the failure.

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::{Dispatch, Event, Level, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// Where the log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// This file, emptied first.
    File(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Stderr => f.write_str("standard error"),
            Target::Stdout => f.write_str("standard output"),
            Target::File(path) => path.display().fmt(f),
        }
    }
}

/// How much is logged, in CRIU's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verbosity(u8);

impl Verbosity {
    /// Warnings.
    pub const USUAL: Verbosity = Verbosity(2);

    /// The sum of what was typed: a number replaces, a bare option (and each `v` of `-vvv`) adds one.
    pub fn add_up<'a>(mut values: impl Iterator<Item = &'a OsStr>) -> Result<Self, &'a OsStr> {
        values.try_fold(Verbosity::USUAL, |Verbosity(level), value| {
            match value.as_bytes() {
                vs if vs.iter().all(|v| *v == b'v') => Ok(Verbosity(
                    u8::try_from(vs.len() + 1)
                        .unwrap_or(u8::MAX)
                        .saturating_add(level),
                )),
                // `-verbosity=0`, one dash short, is a `-v` with a text; CRIU's own suite types it and means 0.
                b"erbosity=0" => Ok(Verbosity(0)),
                _ => value
                    .to_str()
                    .and_then(|number| number.parse().ok())
                    .map(Verbosity)
                    .ok_or(value),
            }
        })
    }

    fn filter(self) -> LevelFilter {
        match self.0 {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        }
    }

    fn has_times(self) -> bool {
        self.0 > Verbosity::USUAL.0
    }
}

/// An open log.
#[derive(Debug)]
pub struct Log {
    dispatch: Dispatch,
    /// Whether an error logged is an error seen on standard error.
    pub shows_errors: bool,
}

impl Log {
    /// Opens the log. Times count from `start`.
    pub fn open(target: &Target, verbosity: Verbosity, start: Instant) -> io::Result<Self> {
        let sink = match target {
            Target::Stderr => Sink::Stderr,
            Target::Stdout => Sink::Stdout,
            Target::File(path) => Sink::File(
                File::options()
                    .create(true)
                    .append(true)
                    .mode(0o600)
                    .open(path)
                    .and_then(|file| file.set_len(0).map(|()| file))?,
            ),
        };
        let lines = Lines {
            sink,
            start: verbosity.has_times().then_some(start),
        };
        let level = verbosity.filter();
        // Spans are kept at every level: they say which task and object a warning is about.
        let filter = filter_fn(move |metadata| metadata.is_span() || *metadata.level() <= level);
        let dispatch =
            Dispatch::new(tracing_subscriber::registry().with(lines.with_filter(filter)));
        Ok(Log {
            dispatch,
            shows_errors: *target == Target::Stderr && verbosity.0 > 0,
        })
    }

    /// Runs `work` with this log. Threads it starts must take the log along themselves.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        tracing::dispatcher::with_default(&self.dispatch, work)
    }
}

#[derive(Debug)]
enum Sink {
    Stderr,
    Stdout,
    File(File),
}

impl Sink {
    fn write(&self, line: &str) {
        // A log that cannot be written has nowhere to say so.
        let _ = match self {
            Sink::Stderr => io::stderr().write_all(line.as_bytes()),
            Sink::Stdout => io::stdout().write_all(line.as_bytes()),
            Sink::File(file) => (&*file).write_all(line.as_bytes()),
        };
    }
}

struct Lines {
    sink: Sink,
    start: Option<Instant>,
}

/// The fields of a span or an event as text: the message first, then ` key=value`.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut text = Text::default();
        attributes.record(&mut text);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(text);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut line = String::new();
        if let Some(start) = self.start {
            let since = start.elapsed();
            let _ = write!(
                line,
                "({:02}.{:06}) ",
                since.as_secs(),
                since.subsec_micros()
            );
        }
        let metadata = event.metadata();
        let _ = match *metadata.level() {
            Level::ERROR => write!(line, "Error ({}): ", metadata.target()),
            Level::WARN => write!(line, "Warn  ({}): ", metadata.target()),
            _ => Ok(()),
        };
        let spans = context
            .event_scope(event)
            .into_iter()
            .flat_map(|scope| scope.from_root());
        let mut inside = false;
        for span in spans {
            let fields = span
                .extensions()
                .get::<Text>()
                .map(|text| text.fields.trim_start().to_owned())
                .unwrap_or_default();
            let colon = if inside { ":" } else { "" };
            let _ = if fields.is_empty() {
                write!(line, "{colon}{}", span.name())
            } else {
                write!(line, "{colon}{}{{{fields}}}", span.name())
            };
            inside = true;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let separator = if inside { ": " } else { "" };
        let _ = writeln!(line, "{separator}{}{}", text.message, text.fields);
        self.sink.write(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use std::ffi::OsString;

    fn logged(verbosity: Verbosity) -> io::Result<String> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("dump.log");
        std::fs::write(&path, "an earlier run, much longer than ours")?;
        Log::open(&Target::File(path.clone()), verbosity, Instant::now())?.during(|| {
            let _dump = tracing::info_span!("dump").entered();
            let _task = tracing::info_span!("task", pid = 42).entered();
            tracing::debug!(fd = 7, "looked");
            tracing::warn!(target: "criu_files", "odd");
            tracing::error!(target: "criu", "gone");
        });
        std::fs::read_to_string(path)
    }

    #[test]
    fn lines_look_like_criu() -> io::Result<()> {
        expect![[r#"
            Warn  (criu_files): dump:task{pid=42}: odd
            Error (criu): dump:task{pid=42}: gone
        "#]]
        .assert_eq(&logged(Verbosity::USUAL)?);
        let detailed = logged(Verbosity(4))?;
        let first = detailed.lines().next().unwrap_or_default();
        assert!(first.starts_with("(00.0"), "{first}");
        assert_eq!(&first[12..], "dump:task{pid=42}: looked fd=7");
        assert_eq!(logged(Verbosity(0))?, "");
        Ok(())
    }

    #[test]
    fn verbosity_adds_up() {
        let sum = |values: &[&str]| {
            let values: Vec<OsString> = values.iter().map(OsString::from).collect();
            Verbosity::add_up(values.iter().map(OsString::as_os_str))
                .map(|level| level.0)
                .map_err(ToOwned::to_owned)
        };
        assert_eq!(sum(&[]), Ok(2));
        assert_eq!(sum(&[""]), Ok(3));
        assert_eq!(sum(&["vv"]), Ok(5));
        assert_eq!(sum(&["4", ""]), Ok(5));
        assert_eq!(sum(&["x"]), Err("x".into()));
    }
}
