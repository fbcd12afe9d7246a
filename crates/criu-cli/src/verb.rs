//! What `criu` can be asked to do.

use std::ffi::OsString;

use crate::error::{Failure, Kind};

/// The first word that is not an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Put a process tree into images.
    Dump,
    /// Put its memory into images while it runs.
    PreDump,
    /// Make a process tree from images.
    Restore,
    /// Serve memory to a restored tree on demand.
    LazyPages,
    /// Ask the kernel what it can do.
    Check,
    /// Receive memory from a dump elsewhere.
    PageServer,
    /// Answer requests on a socket.
    Service,
    /// Answer the requests of one inherited connection.
    Swrk,
    /// Remove replaced pages from parent images.
    Dedup,
    /// Write down the CPU's abilities.
    CpuinfoDump,
    /// Compare the CPU's abilities with those written down.
    CpuinfoCheck,
}

/// Verbs as typed, and a sentence for `--help`.
pub const VERBS: &[(&str, Verb, &str)] = &[
    (
        "dump",
        Verb::Dump,
        "put the process tree -t PID into images",
    ),
    (
        "pre-dump",
        Verb::PreDump,
        "put its memory into images while it runs on",
    ),
    ("restore", Verb::Restore, "make a process tree from images"),
    (
        "check",
        Verb::Check,
        "ask the running kernel whether it can do what is needed",
    ),
    (
        "cpuinfo dump",
        Verb::CpuinfoDump,
        "write down what this CPU can do",
    ),
    (
        "cpuinfo check",
        Verb::CpuinfoCheck,
        "compare this CPU with what was written down",
    ),
    (
        "page-server",
        Verb::PageServer,
        "receive memory from a dump on another host",
    ),
    (
        "lazy-pages",
        Verb::LazyPages,
        "serve memory to a restored tree on demand",
    ),
    ("service", Verb::Service, "answer requests on a socket"),
    (
        "swrk",
        Verb::Swrk,
        "answer the requests of one inherited connection: swrk FD",
    ),
    (
        "dedup",
        Verb::Dedup,
        "remove replaced pages from parent images",
    ),
];

impl Verb {
    /// The verb's own spelling.
    pub fn name(self) -> &'static str {
        VERBS
            .iter()
            .find(|row| row.1 == self)
            .map_or("", |row| row.0)
    }

    /// Takes the verb off the front of the operands and returns it with the rest.
    pub fn parse(operands: &[OsString]) -> Result<(Verb, &[OsString]), Failure> {
        let usage = |text: String| Err(Failure::usage(text));
        let words: Vec<_> = operands
            .iter()
            .take(2)
            .map(|word| word.to_string_lossy())
            .collect();
        match words.first().map(AsRef::as_ref) {
            None => usage("no command given".into()),
            Some("exec") => {
                usage("`exec` was removed: to run code in a task, use a library made for it".into())
            }
            Some("show") => usage(
                "`show` was removed: to read an image, use `crit decode -i FILE --pretty`".into(),
            ),
            Some("cpuinfo") if words.len() < 2 => usage("cpuinfo needs `dump` or `check`".into()),
            Some(first) => {
                let length = if first == "cpuinfo" { 2 } else { 1 };
                let typed = words[..length].join(" ");
                match VERBS.iter().find(|row| row.0 == typed) {
                    Some(row) => Ok((row.1, &operands[length..])),
                    None => usage(format!("there is no command `{typed}`")),
                }
            }
        }
    }

    /// The refusal of a verb that is not written yet.
    pub fn not_yet(self) -> Failure {
        Failure::new(
            Kind::NotImplemented,
            self.name(),
            format!("`criu {}` is not implemented yet", self.name()),
        )
    }
}
