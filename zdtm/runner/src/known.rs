//! Failures that are expected of a binary, with their reasons: an expected failure that passes is itself a failure,
//! so the list cannot outlive what it lists.

use std::path::Path;

use anyhow::{Context, Result};

use crate::outcome::Outcome;

/// The list; `CASE REASON` a line, `#` starts a comment.
#[derive(Debug, Default)]
pub(crate) struct Known(Vec<(String, String)>);

impl Known {
    pub(crate) fn load(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        Self(
            text.lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .filter_map(|line| line.split_once(char::is_whitespace))
                .map(|(case, reason)| (case.to_owned(), reason.trim().to_owned()))
                .collect(),
        )
    }

    /// Turns an expected failure into a skip with the reason, and an unexpected pass into a failure.
    pub(crate) fn judge(&self, case: &str, outcome: Outcome) -> Outcome {
        match (self.0.iter().find(|(name, _)| name == case), outcome) {
            (Some((_, reason)), Outcome::Fail(_)) => {
                Outcome::Skip(format!("fails as expected: {reason}"))
            }
            (Some((_, reason)), Outcome::Pass(_)) => {
                Outcome::Fail(format!("passes, but is listed as failing: {reason}"))
            }
            (_, outcome) => outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_failures_are_asserted() {
        let known = Known::parse("# comment\nfiles/x  CRIU has no field for it\n");
        assert_eq!(
            known.judge("files/x", Outcome::Pass(String::new())).word(),
            "FAIL"
        );
        assert_eq!(
            known.judge("files/x", Outcome::Fail(String::new())).word(),
            "SKIP"
        );
        assert_eq!(
            known.judge("files/y", Outcome::Pass(String::new())).word(),
            "PASS"
        );
    }
}
