//! `--name value` and `--flag`, for verbs with a handful of options.

use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// Words of a command line that nobody has asked for yet.
pub(crate) struct Args(Vec<String>);

impl Args {
    pub(crate) fn new(words: &[String]) -> Self {
        Self(words.to_vec())
    }

    /// Takes `--name VALUE` or `--name=VALUE`.
    pub(crate) fn value<T: FromStr>(&mut self, name: &str) -> Result<Option<T>> {
        let Some(at) = self.0.iter().position(|word| {
            word.strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        }) else {
            return Ok(None);
        };
        let word = self.0.remove(at);
        let value = match word.split_once('=') {
            Some((_, value)) => value.to_owned(),
            None if at < self.0.len() => self.0.remove(at),
            None => bail!("{name} needs a value"),
        };
        let parsed = value.parse().ok();
        parsed.with_context(|| format!("{name} {value}")).map(Some)
    }

    /// Takes `--name`.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let at = self.0.iter().position(|word| word == name);
        at.map(|at| self.0.remove(at)).is_some()
    }

    /// What is left, for somebody else; answers `--help`.
    pub(crate) fn rest(mut self, usage: &str) -> Result<Vec<String>> {
        let rest = std::mem::take(&mut self.0);
        let help = rest
            .iter()
            .any(|word| word == "--help")
            .then(|| "--help".to_owned());
        self.0.extend(help);
        self.finish(usage)?;
        Ok(rest)
    }

    /// Answers `--help`, and refuses what else is left.
    pub(crate) fn finish(mut self, usage: &str) -> Result<()> {
        if self.flag("--help") {
            println!("usage: cargo xtask {usage}");
            std::process::exit(0);
        }
        match self.0.first() {
            None => Ok(()),
            Some(word) => bail!("{word}?\nusage: cargo xtask {usage}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_taken_once() {
        let words = ["--runs", "3", "--series", "--only=a b"].map(str::to_owned);
        let mut args = Args::new(&words);
        assert!(matches!(args.value::<usize>("--runs"), Ok(Some(3))));
        assert!(args.flag("--series") && !args.flag("--series"));
        let only = args.value::<String>("--only").ok().flatten();
        assert_eq!(only.as_deref(), Some("a b"));
        assert!(args.finish("x").is_ok());
    }

    #[test]
    fn what_is_left_or_wrong_is_refused() {
        let left = Args::new(&["--run".to_owned()]);
        assert!(left.finish("x").is_err());
        let mut bad = Args::new(&["--runs".to_owned(), "many".to_owned()]);
        assert!(bad.value::<usize>("--runs").is_err());
    }
}
