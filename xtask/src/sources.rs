//! Where this machine gets Debian packages from: its own apt sources, with other suites.
//!
//! No mirror is named in here. An entry counts if its suite is one of Debian's; address, keys and options stay as they are.

use std::path::Path;

use anyhow::{Result, bail};

/// Debian's releases that have something for us, oldest first, and whether they have backports.
const RELEASES: &[(&str, bool)] = &[("bookworm", true), ("trixie", false)];

/// Sources in the deb822 format with all our releases, from those of the machine.
pub(crate) fn ours(etc: &Path) -> Result<String> {
    let mut found = Vec::new();
    let mut files = vec![etc.join("sources.list")];
    if let Ok(entries) = std::fs::read_dir(etc.join("sources.list.d")) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => found.extend(text.lines().filter_map(line)),
            Some("sources") => found.extend(text.split("\n\n").filter_map(stanza)),
            _ => {}
        }
    }
    let mut text = String::new();
    for security in [false, true] {
        // The first entry wins; a machine without a security archive does without.
        if let Some(source) = found.iter().find(|source| source.security == security) {
            text += &source.with_our_suites();
        }
    }
    if text.is_empty() {
        bail!(
            "no source of Debian packages in {}: add one for bookworm main",
            etc.display()
        );
    }
    Ok(text)
}

/// One entry: everything but type, suites, components and architectures, which we choose.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    fields: String,
    security: bool,
}

impl Source {
    /// What the suites of an entry say about it; nothing if they are not Debian's.
    fn new(fields: String, suites: &str) -> Option<Self> {
        let debian = |suite: &str| {
            let base = suite.split('-').next().unwrap_or_default();
            let known = ["stable", "oldstable", "testing", "forky", "sid"];
            known.contains(&base) || RELEASES.iter().any(|(name, _)| *name == base)
        };
        let first = suites.split_whitespace().next()?;
        debian(first).then(|| Self {
            fields,
            security: first.ends_with("-security"),
        })
    }

    fn with_our_suites(&self) -> String {
        let mut suites = String::new();
        for (name, backports) in RELEASES {
            if self.security {
                suites += &format!(" {name}-security");
            } else {
                suites += &format!(" {name}");
                if *backports {
                    suites += &format!(" {name}-backports");
                }
            }
        }
        format!(
            "Types: deb\n{}Suites:{suites}\nComponents: main\n\n",
            self.fields
        )
    }
}

/// `deb [option=value ...] URI SUITE COMPONENT...`
fn line(text: &str) -> Option<Source> {
    let mut rest = text.trim().strip_prefix("deb")?.trim_start();
    let mut fields = String::new();
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        for option in options.split_whitespace() {
            match option.split_once('=')? {
                ("signed-by", key) => fields += &format!("Signed-By: {key}\n"),
                ("trusted", word) => fields += &format!("Trusted: {word}\n"),
                _ => {}
            }
        }
        rest = after;
    }
    let mut words = rest.split_whitespace();
    let uri = words.next().filter(|uri| uri.contains(':'))?;
    fields = format!("URIs: {uri}\n{fields}");
    Source::new(fields, words.next()?)
}

/// `Field: value` lines, with continuations, between blank lines.
fn stanza(text: &str) -> Option<Source> {
    let mut kept = String::new();
    let (mut suites, mut deb, mut keep) = (String::new(), false, false);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with([' ', '\t']) {
            if keep {
                kept += &format!("{line}\n");
            }
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        keep = false;
        match field.to_ascii_lowercase().as_str() {
            "types" => deb = value.split_whitespace().any(|word| word == "deb"),
            "suites" => suites = value.trim().to_owned(),
            "enabled" if value.trim() == "no" => return None,
            "components" | "architectures" | "enabled" | "" => {}
            _ => {
                keep = true;
                kept += &format!("{line}\n");
            }
        }
    }
    if deb {
        Source::new(kept, &suites)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read_and_strangers_left_out() {
        let one = line("deb [arch=amd64 signed-by=/k.gpg] http://mirror/debian bookworm main");
        let two = stanza(
            "Types: deb deb-src\n# a remark\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\n\
             Components: main\nSigned-By: /k.gpg\n",
        );
        assert!(one.is_some());
        assert_eq!(one, two);
        assert!(line("deb http://other/x nodistro main").is_none());
        assert!(line("# deb http://mirror/debian bookworm main").is_none());
        let inner = stanza("Types: deb\nURIs: http://m/d\nSuites: sid\nSigned-By:\n A\n B\n");
        let inner = inner.map(|source| source.fields);
        assert_eq!(
            inner.as_deref(),
            Some("URIs: http://m/d\nSigned-By:\n A\n B\n")
        );
    }

    #[test]
    fn only_the_suites_change() {
        let security = line("deb http://mirror/s trixie-security main non-free");
        let text = security.map(|source| source.with_our_suites());
        assert_eq!(
            text.as_deref(),
            Some(
                "Types: deb\nURIs: http://mirror/s\nSuites: bookworm-security trixie-security\nComponents: main\n\n"
            )
        );
    }
}
