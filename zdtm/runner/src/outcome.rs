//! Pass, fail or skip, and how it travels out of a namespace: as a small file.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

/// The verdict on one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With a remark, mostly empty.
    Pass(String),
    /// First line: what went wrong; further lines: details.
    Fail(String),
    Skip(String),
}

impl Outcome {
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Pass(_) => "PASS",
            Self::Fail(_) => "FAIL",
            Self::Skip(_) => "SKIP",
        }
    }

    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Pass(reason) | Self::Fail(reason) | Self::Skip(reason) => reason,
        }
    }

    /// Writes it down. Same words as a case's own `result` file.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        std::fs::write(path, format!("{} {}", self.word(), self.reason()))?;
        Ok(())
    }

    /// Reads back what [`Outcome::save`] or a case wrote.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        Self::parse(&std::fs::read_to_string(path)?)
    }

    fn parse(text: &str) -> Result<Self> {
        let (word, reason) = text.split_once(' ').unwrap_or((text, ""));
        let reason = reason.trim_end().to_owned();
        Ok(match word.trim_end() {
            "PASS" => Self::Pass(reason),
            "FAIL" => Self::Fail(reason),
            "SKIP" => Self::Skip(reason),
            _ => anyhow::bail!("no verdict in {text:?}"),
        })
    }
}

/// One cell of the table.
#[derive(Clone, Debug)]
pub(crate) struct Ran {
    pub(crate) case: String,
    pub(crate) column: usize,
    pub(crate) outcome: Outcome,
    pub(crate) took: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_survive_the_file() {
        for outcome in [
            Outcome::Pass(String::new()),
            Outcome::Fail("dump: exit 1\nError: no".to_owned()),
            Outcome::Skip("no swap".to_owned()),
        ] {
            let text = format!("{} {}", outcome.word(), outcome.reason());
            assert_eq!(Outcome::parse(&text).unwrap(), outcome);
        }
        assert!(Outcome::parse("").is_err());
    }
}
