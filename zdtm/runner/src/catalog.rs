//! The cases and their wishes, from `zdtm-cases --list`.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::Options;

/// What the runner knows of a case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) options: Vec<String>,
    pub(crate) dump: Vec<String>,
    pub(crate) restore: Vec<String>,
    pub(crate) exclusive: bool,
    pub(crate) changes: Vec<String>,
    pub(crate) refused: String,
    pub(crate) stays: String,
    /// What it uses of the CPU, in the words of a refusal.
    pub(crate) needs: Vec<String>,
}

/// The cases that the options select, in the table's order.
pub(crate) fn load(options: &Options) -> Result<Vec<Entry>> {
    let output = Command::new(&options.cases)
        .arg("--list")
        .output()
        .with_context(|| {
            format!(
                "{} (cargo build --release -p zdtm-cases)",
                options.cases.display()
            )
        })?;
    if !output.status.success() {
        bail!("{} --list: {}", options.cases.display(), output.status);
    }
    let selected = |name: &str| {
        (options.filter.is_empty()
            || options
                .filter
                .iter()
                .any(|text| name.contains(text.as_str())))
            && !options
                .exclude
                .iter()
                .any(|text| name.contains(text.as_str()))
    };
    String::from_utf8(output.stdout)?
        .lines()
        .map(parse)
        .filter(|entry| entry.as_ref().map_or(true, |entry| selected(&entry.name)))
        .collect()
}

fn parse(line: &str) -> Result<Entry> {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    let columns: Vec<&str> = line.split('\t').collect();
    let [
        name,
        options,
        dump,
        restore,
        exclusive,
        changes,
        refused,
        stays,
        needs,
    ] = columns[..]
    else {
        bail!("not a line of --list: {line:?}");
    };
    Ok(Entry {
        name: name.to_owned(),
        options: words(options),
        dump: words(dump),
        restore: words(restore),
        exclusive: exclusive == "exclusive",
        changes: words(changes),
        refused: refused.to_owned(),
        stays: stays.to_owned(),
        needs: names(needs),
    })
}

/// Names with commas between them; a name may have blanks.
pub(crate) fn names(text: &str) -> Vec<String> {
    let names = text.split(',').filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_nine_columns() {
        let entry =
            parse("files/locks\t--file-locks\t\t\texclusive\tfd maps\tbecause of that\t\ta b,c")
                .unwrap();
        assert_eq!(entry.options, ["--file-locks"]);
        assert_eq!(entry.changes, ["fd", "maps"]);
        assert_eq!(entry.needs, ["a b", "c"]);
        assert!(entry.exclusive);
        assert_eq!(entry.refused, "because of that");
        assert!(parse("files/locks\t").is_err());
    }
}
