//! What was typed: the words of the command line and of the configuration files, not yet given a meaning.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::str::FromStr;

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::error::{Failure, Kind};

use crate::argv;
use crate::config::{self, Surroundings};
use crate::table::{self, OPTIONS, Opt, Status, Takes};
use crate::verb::{VERBS, Verb};

/// The words, sorted by option.
#[derive(Debug)]
pub struct Typed {
    /// What to do.
    pub verb: Verb,
    /// What follows the verb: the descriptor of `swrk`, the command of `--exec-cmd`.
    pub operands: Vec<OsString>,
    words: ArgMatches,
}

/// A command line asks for text, or for something to be done.
#[derive(Debug)]
pub enum Asked {
    /// `--help`.
    Help(String),
    /// `--version`.
    Version,
    /// A verb.
    Run(Typed),
}

/// Reads the words after the program's name, and the configuration files they lead to.
pub fn read(
    args: impl IntoIterator<Item = OsString>,
    around: &Surroundings,
) -> Result<Asked, Failure> {
    let args = argv::rewrite(args);
    let words = parse(&args)?;
    if words.get_flag("help") {
        return Ok(Asked::Help(help()));
    }
    if words.get_flag("version") {
        return Ok(Asked::Version);
    }
    let named = words.get_one::<OsString>("config").map(Path::new);
    let mut all = config::words(around, named, words.get_flag("no-default-config"))?;
    let words = if all.is_empty() {
        words
    } else {
        all.extend(args);
        parse(&all)?
    };
    let operands: Vec<_> = words
        .get_many("operands")
        .unwrap_or_default()
        .cloned()
        .collect();
    let (verb, rest) = Verb::parse(&operands)?;
    let typed = Typed {
        verb,
        operands: rest.to_vec(),
        words,
    };
    typed.operands_fit()?;
    typed.refuse_what_is_missing()?;
    Ok(Asked::Run(typed))
}

impl Typed {
    /// Whether this switch is on; `unless` is its value when it is not given.
    pub fn switch(&self, name: &str, unless: bool) -> bool {
        let given = |name: &str| self.words.try_get_one(name).ok().flatten() == Some(&true);
        given(name) || (unless && !given(&format!("no-{name}")))
    }

    /// The value of an option, the last one given.
    pub fn value(&self, name: &str) -> Option<&OsStr> {
        self.values(name).next_back()
    }

    /// All values of an option, in the order given. A bare option with an attachable value has the empty one.
    pub fn values(&self, name: &str) -> impl DoubleEndedIterator<Item = &OsStr> {
        self.words
            .get_many::<OsString>(name)
            .unwrap_or_default()
            .map(OsString::as_os_str)
    }

    /// All values of an option, each a text with a meaning of its own.
    pub(crate) fn texts<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, Failure>,
    ) -> Result<Vec<T>, Failure> {
        let text = |value: &OsStr| parse(value.to_str().ok_or_else(|| bad_value(name, value))?);
        self.values(name).map(text).collect()
    }

    /// The value as text with a meaning of its own.
    pub fn parsed<T: FromStr>(&self, name: &'static str) -> Result<Option<T>, Failure> {
        let parse = |value: &OsStr| {
            value
                .to_str()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| bad_value(name, value))
        };
        self.value(name).map(parse).transpose()
    }

    /// The options given, whatever their value.
    pub fn given(&self) -> impl Iterator<Item = &'static Opt> {
        table::all().filter(|option| match option.takes {
            Takes::Nothing | Takes::Switch => self.switch(option.name, false),
            _ => self.words.contains_id(option.name),
        })
    }

    /// What the log should say about options that do nothing here.
    pub fn remarks(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.given().filter_map(|option| match option.status {
            _ if !option.verbs.contains(&self.verb) => {
                Some((option.name, "it means nothing to this command"))
            }
            Status::Holds(why) => Some((option.name, why)),
            _ => None,
        })
    }

    fn operands_fit(&self) -> Result<(), Failure> {
        let exec = self.switch("exec-cmd", false);
        let count = self.operands.len();
        match self.verb {
            Verb::Swrk if count == 1 => Ok(()),
            Verb::Swrk => Err(Failure::usage("usage: criu swrk FD")),
            Verb::Restore if exec && self.switch("restore-detached", false) => Err(Failure::usage(
                "--exec-cmd waits for the tasks, --restore-detached does not",
            )),
            Verb::Restore if exec && count == 0 => {
                Err(Failure::usage("--exec-cmd needs a command after --"))
            }
            Verb::Restore if exec => Ok(()),
            _ if exec => Err(Failure::usage("--exec-cmd is for restore")),
            _ => match self.operands.first() {
                Some(extra) => Err(Failure::usage(format!(
                    "`{}` is one word too many",
                    extra.display()
                ))),
                None => Ok(()),
            },
        }
    }

    fn refuse_what_is_missing(&self) -> Result<(), Failure> {
        for option in self.given() {
            match option.status {
                Status::Gone(text) => return Err(Failure::usage(text)),
                Status::Later if option.verbs.contains(&self.verb) => {
                    return Err(not_yet(option.name));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The refusal of a value.
pub fn bad_value(option: &str, value: &OsStr) -> Failure {
    Failure::usage(format!(
        "`{}` is not a value of --{option}",
        value.display()
    ))
    .remedy("see criu --help")
}

/// The refusal of an option that is not written yet.
pub fn not_yet(option: &str) -> Failure {
    Failure::new(Kind::NotImplemented, "options", "not implemented yet")
        .object(format!("--{option}"))
}

fn parse(args: &[OsString]) -> Result<ArgMatches, Failure> {
    let mut command = command(false);
    let matches = command.try_get_matches_from_mut(args);
    // It holds some thousand pieces of memory, and the process ends soon.
    std::mem::forget(command);
    matches.map_err(|error| {
        // Clap's first line says what is wrong; the rest is a reminder of the usage.
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        Failure::usage(first.trim_start_matches("error: ")).remedy("see criu --help")
    })
}

/// The parser; without `help` it says nothing of the options, which is the most of the work.
fn command(help: bool) -> Command {
    let verbs: String = VERBS
        .iter()
        .map(|row| format!("  {:<15} {}\n", row.0, row.2))
        .collect();
    let mut command = Command::new("criu")
        .about("Checkpoint and restore process trees.")
        .override_usage("criu COMMAND [OPTION]...")
        .before_help(format!("Commands:\n{verbs}"))
        .after_help(
            "Options marked ± are taken back by --no-NAME. [..] is what holds without the option.",
        )
        .no_binary_name(true)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .infer_long_args(true)
        .args_override_self(true)
        .arg(
            Arg::new("operands")
                .num_args(0..)
                .value_parser(ValueParser::os_string())
                .hide(true),
        );
    for (heading, rows) in OPTIONS {
        command = command.next_help_heading(*heading);
        for option in *rows {
            command = add(command, option, help);
        }
    }
    command
}

fn add(command: Command, option: &'static Opt, help: bool) -> Command {
    let mut arg = Arg::new(option.name).long(option.name);
    if help {
        arg = arg.help(describe(option));
    }
    if let Some(letter) = option.short {
        arg = arg.short(letter);
    }
    let valued = |arg: Arg, name| {
        arg.value_name(name)
            .value_parser(ValueParser::os_string())
            .allow_hyphen_values(true)
    };
    let arg = match option.takes {
        Takes::Nothing => arg
            .action(ArgAction::SetTrue)
            .hide(matches!(option.status, Status::Gone(_))),
        Takes::Value(name) => valued(arg, name).action(ArgAction::Set),
        Takes::Values(name) => valued(arg, name).action(ArgAction::Append),
        Takes::Attached(name) => valued(arg, name)
            .action(ArgAction::Append)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value(""),
        Takes::Switch => {
            let back = format!("no-{}", option.name);
            let negation = Arg::new(back.clone())
                .long(back.clone())
                .action(ArgAction::SetTrue)
                .hide(true)
                .overrides_with(option.name);
            return command
                .arg(arg.action(ArgAction::SetTrue).overrides_with(back))
                .arg(negation);
        }
    };
    command.arg(arg)
}

fn describe(option: &Opt) -> String {
    let mark = match option.status {
        Status::Later => " (not implemented yet)",
        _ => "",
    };
    let sign = match option.takes {
        Takes::Switch => "± ",
        _ => "",
    };
    format!("{sign}{}{mark}", option.help)
}

fn help() -> String {
    command(true).render_help().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(home: &Path) -> Surroundings {
        let system_config = home.join("system.conf");
        Surroundings {
            cwd: home.to_owned(),
            system_config,
            home: Some(home.to_owned()),
            config_file: None,
            is_root: true,
        }
    }

    fn typed(line: &str) -> Result<Typed, String> {
        match read(
            line.split_whitespace().map(OsString::from),
            &around(Path::new("/nowhere")),
        ) {
            Ok(Asked::Run(typed)) => Ok(typed),
            Ok(other) => Err(format!("{other:?}")),
            Err(failure) => Err(failure.to_string()),
        }
    }

    #[test]
    fn the_table_makes_a_parser() {
        command(true).debug_assert();
        assert!(help().contains("--unprivileged"));
    }

    #[test]
    fn options_stand_anywhere_and_the_last_one_counts() -> Result<(), String> {
        let typed = typed(
            "-t 1 --images-dir=a dump -jRv4 -D b --link-remap --no-link-remap --restore-det",
        )?;
        assert_eq!(
            (typed.verb, typed.value("images-dir")),
            (Verb::Dump, Some(OsStr::new("b")))
        );
        assert!(typed.switch("shell-job", false) && typed.switch("restore-detached", false));
        assert!(!typed.switch("link-remap", true) && typed.switch("ghost-fiemap", true));
        let remarks: Vec<_> = typed.remarks().map(|remark| remark.0).collect();
        assert_eq!(remarks, ["restore-detached"]);
        Ok(())
    }

    #[test]
    fn a_command_may_follow() -> Result<(), String> {
        assert_eq!(
            typed("restore --exec-cmd -- ls -v4")?.operands,
            ["ls", "-v4"]
        );
        assert_eq!(typed("swrk 3")?.operands, ["3"]);
        assert_eq!(typed("cpuinfo check")?.verb, Verb::CpuinfoCheck);
        Ok(())
    }

    #[test]
    fn refusals_name_what_they_refuse() {
        for (line, expected) in [
            ("", "options: no command given"),
            ("dmup", "options: there is no command `dmup`"),
            ("dump x", "options: `x` is one word too many"),
            ("dump --exec-cmd", "options: --exec-cmd is for restore"),
            (
                "restore -d --exec-cmd -- ls",
                "options: --exec-cmd waits for the tasks, --restore-detached does not",
            ),
            (
                "dump --track-mem",
                "options: --track-mem: not implemented yet",
            ),
            (
                "dump --allow-uprobes",
                "options: --allow-uprobes: not implemented yet",
            ),
            (
                "dump --frob",
                "options: unexpected argument '--frob' found; see criu --help",
            ),
            ("cpuinfo", "options: cpuinfo needs `dump` or `check`"),
        ] {
            assert_eq!(
                typed(line).map(|typed| typed.verb),
                Err(expected.into()),
                "{line}"
            );
        }
        assert!(
            typed("dump --no-track-mem").is_ok(),
            "it asks for what holds"
        );
        assert!(
            typed("restore --track-mem").is_ok(),
            "it means nothing there"
        );
    }

    #[test]
    fn files_come_before_the_command_line() -> Result<(), Box<dyn std::error::Error>> {
        let home = tempfile::tempdir()?;
        let around = around(home.path());
        std::fs::create_dir(home.path().join(".criu"))?;
        std::fs::write(
            &around.system_config,
            "timeout 1\nshell-job\nghost-limit 1K\n",
        )?;
        std::fs::write(
            home.path().join(".criu/default.conf"),
            "timeout 2\nno-shell-job\n",
        )?;
        std::fs::write(home.path().join("own.conf"), "timeout 4\n")?;
        let read = |line: &str| match read(line.split_whitespace().map(OsString::from), &around) {
            Ok(Asked::Run(typed)) => Ok(typed),
            other => Err(format!("{other:?}")),
        };
        let files = read("dump")?;
        assert_eq!(
            (files.value("timeout"), files.value("ghost-limit")),
            (Some(OsStr::new("2")), Some(OsStr::new("1K")))
        );
        assert!(!files.switch("shell-job", false));
        assert_eq!(
            read("dump --timeout 3")?.value("timeout"),
            Some(OsStr::new("3"))
        );
        let own = read("dump --config own.conf")?;
        assert_eq!(
            (own.value("timeout"), own.value("ghost-limit")),
            (Some(OsStr::new("4")), None)
        );
        assert_eq!(read("dump --no-default-config")?.value("timeout"), None);
        assert!(read("dump --config none.conf").is_err());
        Ok(())
    }
}
