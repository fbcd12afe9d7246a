//! Configuration files: options without their dashes, one a line.
//!
//! They are read as if typed before the command line, so whatever is typed wins; among files the later wins:
//! `/etc/criu/default.conf`, `$HOME/.criu/default.conf`, `$CRIU_CONFIG_FILE`, `--config`.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Failure, Kind};

use crate::table::{self, Takes};

/// What of the process's surroundings the options depend on; a value, so that nothing else asks for it.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Where relative paths start.
    pub cwd: PathBuf,
    /// The system's configuration file.
    pub system_config: PathBuf,
    /// `$HOME`.
    pub home: Option<PathBuf>,
    /// `$CRIU_CONFIG_FILE`.
    pub config_file: Option<PathBuf>,
    /// Whether we are root.
    pub is_root: bool,
}

impl Surroundings {
    /// Those of this process.
    pub fn current() -> io::Result<Self> {
        Ok(Surroundings {
            cwd: std::env::current_dir()?,
            system_config: "/etc/criu/default.conf".into(),
            home: std::env::var_os("HOME").map(PathBuf::from),
            config_file: std::env::var_os("CRIU_CONFIG_FILE").map(PathBuf::from),
            is_root: nix::unistd::geteuid().is_root(),
        })
    }
}

/// The words of all configuration files that apply, least important first.
pub fn words(
    around: &Surroundings,
    named: Option<&Path>,
    no_defaults: bool,
) -> Result<Vec<OsString>, Failure> {
    let defaults = [
        Some(around.system_config.clone()),
        around
            .home
            .as_ref()
            .map(|home| home.join(".criu/default.conf")),
    ];
    let defaults = defaults
        .into_iter()
        .flatten()
        .filter(|_| named.is_none() && !no_defaults);
    let mut words = Vec::new();
    for path in defaults.chain(around.config_file.clone()) {
        words.extend(read(&path, true)?);
    }
    if let Some(path) = named {
        words.extend(read(&around.cwd.join(path), false)?);
    }
    Ok(words)
}

/// A file that nobody named need not be there, nor be ours to read.
fn read(path: &Path, may_be_missing: bool) -> Result<Vec<OsString>, Failure> {
    use io::ErrorKind::{NotFound, PermissionDenied};
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text).map_err(|failure| failure.object(path.display())),
        Err(error) if may_be_missing && matches!(error.kind(), NotFound | PermissionDenied) => {
            Ok(Vec::new())
        }
        Err(error) => Err(Failure::from_chain("options", &error).object(path.display())),
    }
}

/// The words of one file, as they would be typed.
pub fn parse(text: &str) -> Result<Vec<OsString>, Failure> {
    let mut out = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let wrong =
            |why: String| Failure::new(Kind::Usage, "options", format!("line {number}: {why}"));
        let mut words = split(line)
            .ok_or_else(|| wrong("a quote is not closed".into()))?
            .into_iter();
        let Some(name) = words.next() else { continue };
        let option =
            table::named(name.strip_prefix("no-").unwrap_or(&name)).or_else(|| table::named(&name));
        let option = option.ok_or_else(|| wrong(format!("there is no option `{name}`")))?;
        if option.name == "config" || option.name == "no-default-config" {
            return Err(wrong(format!("`{name}` belongs on the command line")));
        }
        let value = words.next();
        let takes_value = !matches!(option.takes, Takes::Nothing | Takes::Switch);
        match value {
            Some(_) if !takes_value => return Err(wrong(format!("`{name}` takes no value"))),
            None if takes_value && !matches!(option.takes, Takes::Attached(_)) => {
                return Err(wrong(format!("`{name}` needs a value")));
            }
            Some(value) => out.push(format!("--{name}={value}").into()),
            None => out.push(format!("--{name}").into()),
        }
        if let Some(extra) = words.next() {
            return Err(wrong(format!("`{extra}` is one word too many")));
        }
    }
    Ok(out)
}

/// Splits a line at blanks. Quotes keep blanks together, `\"` is a quote, `#` ends the line. None: an open quote.
fn split(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted && chars.as_str().starts_with('"') => {
                word.get_or_insert_default().extend(chars.next());
            }
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '#' if !quoted && word.is_none() => break,
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    (!quoted).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<String>, String> {
        parse(text)
            .map_err(|failure| failure.to_string())
            .map(|words| {
                words
                    .iter()
                    .map(|word| word.to_string_lossy().into_owned())
                    .collect()
            })
    }

    #[test]
    fn lines_become_words() {
        let text = "# comment\n\n tcp-close # more\nghost-limit 10M\naction-script \"/a b/\\\"c\\\".sh\"\nno-link-remap\nmanage-cgroups\nverbosity 4";
        let expected = [
            "--tcp-close",
            "--ghost-limit=10M",
            "--action-script=/a b/\"c\".sh",
            "--no-link-remap",
            "--manage-cgroups",
            "--verbosity=4",
        ];
        assert_eq!(parsed(text), Ok(expected.map(String::from).to_vec()));
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(
            parsed("\nghost").unwrap_err(),
            "options: line 2: there is no option `ghost`"
        );
        assert_eq!(
            parsed("tree").unwrap_err(),
            "options: line 1: `tree` needs a value"
        );
        assert_eq!(
            parsed("shell-job yes").unwrap_err(),
            "options: line 1: `shell-job` takes no value"
        );
        assert_eq!(
            parsed("tree 1 2").unwrap_err(),
            "options: line 1: `2` is one word too many"
        );
        assert_eq!(
            parsed("root \"a").unwrap_err(),
            "options: line 1: a quote is not closed"
        );
    }
}
