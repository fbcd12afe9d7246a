//! The description of a case, and the `main` that picks one by name.

use std::process::ExitCode;

use crate::{Result, protocol};

/// One test program: what it does, and what the runner has to know about it.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name within the area; the runner shows `area/name`.
    pub name: &'static str,
    /// The program. It calls [`crate::checkpoint`] once.
    pub run: fn() -> Result<()>,
    /// Options for both dump and restore.
    pub options: &'static [&'static str],
    /// Further options for the dump alone.
    pub dump: &'static [&'static str],
    /// Further options for the restore alone.
    pub restore: &'static [&'static str],
    /// Runs alone, because it takes something the machine has once.
    pub exclusive: bool,
    /// Parts of the visible state that legitimately change, as prefixes of the runner's keys; `*` is everything.
    pub changes: &'static [&'static str],
    /// Set when a dump may be refused: why. The case must then go on undisturbed; a dump that succeeds has to be
    /// restored right.
    pub refused: Option<&'static str>,
    /// Set when another machine may be unable to restore it: why.
    pub stays: Option<&'static str>,
    /// What it has in use of the CPU: a restore on one without must be refused, and name it in these words.
    pub needs: &'static [&'static str],
}

impl Case {
    /// A case with no special wish.
    pub const fn new(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self {
            name,
            run,
            options: &[],
            dump: &[],
            restore: &[],
            exclusive: false,
            changes: &[],
            refused: None,
            stays: None,
            needs: &[],
        }
    }

    /// With options for both dump and restore.
    #[must_use]
    pub const fn options(self, options: &'static [&'static str]) -> Self {
        Self { options, ..self }
    }

    /// With options for the dump alone.
    #[must_use]
    pub const fn dump_options(self, dump: &'static [&'static str]) -> Self {
        Self { dump, ..self }
    }

    /// With options for the restore alone.
    #[must_use]
    pub const fn restore_options(self, restore: &'static [&'static str]) -> Self {
        Self { restore, ..self }
    }

    /// To be run with no other case beside it.
    #[must_use]
    pub const fn exclusive(self) -> Self {
        Self {
            exclusive: true,
            ..self
        }
    }

    /// With visible state that may differ after the restore.
    #[must_use]
    pub const fn changes(self, changes: &'static [&'static str]) -> Self {
        Self { changes, ..self }
    }

    /// One that keeps working while it is dumped, so that no two looks at it agree.
    #[must_use]
    pub const fn restless(self) -> Self {
        self.changes(&["*"])
    }

    /// One that need not work on another machine, or under an older kernel.
    #[must_use]
    pub const fn stays(self, why: &'static str) -> Self {
        Self {
            stays: Some(why),
            ..self
        }
    }

    /// One that not every CPU can go on with.
    #[must_use]
    pub const fn needs(self, needs: &'static [&'static str]) -> Self {
        Self { needs, ..self }
    }

    /// One whose dump may be refused.
    #[must_use]
    pub const fn refused(self, why: &'static str) -> Self {
        Self {
            refused: Some(why),
            ..self
        }
    }
}

/// The cases of one subsystem, a slice per source file.
pub struct Area {
    /// First half of the case names.
    pub name: &'static str,
    /// The files' tables.
    pub files: &'static [&'static [Case]],
}

impl Area {
    fn cases(&self) -> impl Iterator<Item = (String, &'static Case)> {
        let name = self.name;
        self.files
            .iter()
            .flat_map(|file| file.iter())
            .map(move |case| (format!("{name}/{}", case.name), case))
    }
}

/// `zdtm-cases --list` or `zdtm-cases AREA/NAME`.
pub fn main(areas: &'static [Area]) -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(wanted) = args.next() else {
        eprintln!("usage: zdtm-cases --list | AREA/NAME");
        return ExitCode::from(2);
    };
    let mut cases = areas.iter().flat_map(Area::cases);
    if wanted == "--list" {
        for (name, case) in cases {
            println!("{}", listing(&name, case));
        }
        return ExitCode::SUCCESS;
    }
    match cases.find(|(name, _)| *name == wanted) {
        Some((_, case)) => protocol::run(case),
        None => {
            eprintln!("zdtm-cases: no case {wanted}");
            ExitCode::from(2)
        }
    }
}

/// The line the runner parses: tab-separated columns, lists separated by blanks.
fn listing(name: &str, case: &Case) -> String {
    [
        name.to_owned(),
        case.options.join(" "),
        case.dump.join(" "),
        case.restore.join(" "),
        if case.exclusive { "exclusive" } else { "" }.to_owned(),
        case.changes.join(" "),
        case.refused.unwrap_or_default().to_owned(),
        case.stays.unwrap_or_default().to_owned(),
        case.needs.join(","),
    ]
    .join("\t")
}
