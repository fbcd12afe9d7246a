//! What the user sees: a line a run, the table when there are several columns, JUnit, the closing line.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;

use anyhow::Result;

use crate::options::{Column, Options};
use crate::outcome::{Outcome, Ran};

/// How many lines of a failure are shown; all of them are in its directory, in `outcome`.
const DETAILS: usize = 12;

/// Collects results, printing each as it comes.
pub(crate) struct Report {
    titles: Vec<String>,
    ran: Mutex<Vec<Ran>>,
}

impl Report {
    pub(crate) fn new(columns: &[Column]) -> Self {
        Self {
            titles: columns.iter().map(|column| column.title.clone()).collect(),
            ran: Mutex::default(),
        }
    }

    pub(crate) fn add(&self, ran: Ran) {
        let title = if self.titles.len() > 1 {
            &self.titles[ran.column]
        } else {
            ""
        };
        let reason = ran.outcome.reason().lines().next().unwrap_or_default();
        let line = format!(
            "{} {:<34} {title:<12} {:>6.2}s  {reason}",
            ran.outcome.word(),
            ran.case,
            ran.took.as_secs_f64()
        );
        println!("{}", line.trim_end());
        if let Ok(mut all) = self.ran.lock() {
            all.push(ran);
        }
    }

    /// The details of what failed, the table, the file, the last line. True when nothing failed.
    pub(crate) fn finish(self, options: &Options) -> Result<bool> {
        let ran = self.ran.into_inner().unwrap_or_default();
        let count = |word: &str| ran.iter().filter(|ran| ran.outcome.word() == word).count();
        for ran in ran
            .iter()
            .filter(|ran| matches!(ran.outcome, Outcome::Fail(_)))
        {
            let lines: Vec<&str> = ran.outcome.reason().lines().take(DETAILS).collect();
            println!(
                "\n---- {} {}\n{}",
                ran.case,
                self.titles[ran.column],
                lines.join("\n")
            );
        }
        if count("FAIL") > 0 {
            println!(
                "\nlogs and images of the failures: {}/CASE",
                options.output.display()
            );
        }
        if self.titles.len() > 1 {
            println!("\n{}", table(&self.titles, &ran));
        }
        if let Some(path) = &options.junit {
            std::fs::write(path, junit(&self.titles, &ran))?;
        }
        println!(
            "{} passed, {} failed, {} skipped",
            count("PASS"),
            count("FAIL"),
            count("SKIP")
        );
        Ok(count("FAIL") == 0)
    }
}

/// Cases down, columns across. A case that was repeated shows its worst outcome.
fn table(titles: &[String], ran: &[Ran]) -> String {
    let mut rows: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for ran in ran {
        let row = rows
            .entry(&ran.case)
            .or_insert_with(|| vec!["-"; titles.len()]);
        if row[ran.column] != "FAIL" {
            row[ran.column] = ran.outcome.word();
        }
    }
    let width = rows.keys().map(|name| name.len()).max().unwrap_or(0).max(4);
    let mut text = format!("{:<width$}", "case");
    for title in titles {
        let _ = write!(text, "  {title:>6}");
    }
    text.push('\n');
    for (name, row) in rows {
        let _ = write!(text, "{name:<width$}");
        for (title, word) in titles.iter().zip(row) {
            let _ = write!(text, "  {word:>0$}", title.len().max(6));
        }
        text.push('\n');
    }
    text
}

fn junit(titles: &[String], ran: &[Ran]) -> String {
    let escape = |text: &str| {
        text.replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
            .replace('"', "&quot;")
    };
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"zdtm\" tests=\"{}\" failures=\"{}\" skipped=\"{}\">\n",
        ran.len(),
        ran.iter()
            .filter(|ran| ran.outcome.word() == "FAIL")
            .count(),
        ran.iter()
            .filter(|ran| ran.outcome.word() == "SKIP")
            .count(),
    );
    for ran in ran {
        let (area, name) = ran.case.split_once('/').unwrap_or(("", &ran.case));
        let _ = write!(
            text,
            "  <testcase classname=\"zdtm.{}.{}\" name=\"{}\" time=\"{:.3}\"",
            escape(&titles[ran.column]),
            escape(area),
            escape(name),
            ran.took.as_secs_f64()
        );
        let reason = escape(ran.outcome.reason());
        let _ = match ran.outcome {
            Outcome::Pass(_) => writeln!(text, "/>"),
            Outcome::Fail(_) => writeln!(text, "><failure>{reason}</failure></testcase>"),
            Outcome::Skip(_) => writeln!(text, "><skipped message=\"{reason}\"/></testcase>"),
        };
    }
    text.push_str("</testsuite>\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn ran(case: &str, column: usize, outcome: Outcome) -> Ran {
        Ran {
            case: case.to_owned(),
            column,
            outcome,
            took: Duration::from_millis(1500),
        }
    }

    #[test]
    fn the_table_shows_the_worst_of_repeated_runs() {
        let titles = ["a".to_owned(), "b".to_owned()];
        let all = [
            ran("mm/x", 0, Outcome::Fail("no".to_owned())),
            ran("mm/x", 0, Outcome::Pass(String::new())),
            ran("mm/x", 1, Outcome::Pass(String::new())),
        ];
        assert_eq!(
            table(&titles, &all),
            "case       a       b\nmm/x    FAIL    PASS\n"
        );
    }

    #[test]
    fn junit_escapes_reasons() {
        let text = junit(
            &["restore".to_owned()],
            &[ran("mm/x", 0, Outcome::Fail("a < b".to_owned()))],
        );
        assert!(text.contains("<failure>a &lt; b</failure>"));
        assert!(text.contains("classname=\"zdtm.restore.mm\" name=\"x\" time=\"1.500\""));
    }
}
