//! `tidy`: the rules of the house that no compiler checks.
//!
//! | rule | why |
//! |---|---|
//! | every Rust file opens with `//!` | a reader wants to know what it is before how |
//! | no file over 600 lines, or a reason in a comment `// tidy: long: WHY` | a page is readable, a scroll is not |
//! | `target_arch` only where [`ARCH_FILES`] says | an architecture is a value, not a cfg |
//! | `unsafe` only in [`UNSAFE_PLACES`] | one crate to audit |
//! | crates depend as [`edges`] says | the picture in `crates/README.md` stays true |
//! | every kind of file has a zdtm case | a kind that no test dumps does not work |
//! | no path or name of somebody's machine | the tree is for everybody |

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{edges, shell};

/// The longest a source file may be without a reason.
const LONGEST: usize = 600;

/// How such a reason is written.
const REASON: &str = "// tidy: long: ";

/// Where `target_arch` may be asked for.
const ARCH_FILES: &[&str] = &[
    "crates/criu-tracee/src/native.rs",
    // Cases in machine code are compiled where they run.
    "zdtm/cases/lib.rs",
];

/// Where `unsafe` may be: the one crate that acts on other tasks, and programs that test the kernel's raw interface.
const UNSAFE_PLACES: &[&str] = &["crates/criu-tracee/", "zdtm/cases/", "zdtm/lib/"];

/// What only means something on one machine. Written in two pieces, as this file is looked at as well.
const MACHINE: &[&str] = &[
    concat!("/wo", "rk/shared"),
    concat!("/wo", "rk/main"),
    concat!("/wo", "rk/wt"),
    concat!("/ro", "ot/."),
    concat!("/ho", "me/"),
    concat!("/var/tmp/", "criu"),
    concat!("deb.", "debian.org"),
    concat!("snapshot.", "debian.org"),
];

/// Where such a text is data: recorded files of /proc, made-up paths in tests of parsers.
const MACHINE_DATA: &[&str] = &["/fixtures/", "/proto/"];

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if !arguments.is_empty() {
        bail!("tidy takes no argument");
    }
    std::env::set_current_dir(shell::root()?)?;
    let files = files()?;
    let mut complaints = edges::complaints()?;
    for file in &files {
        let Ok(text) = fs::read_to_string(file) else {
            continue; // Deleted, or not text.
        };
        complaints.extend(machine(file, &text));
        if file.ends_with(".rs") {
            complaints.extend(source(file, &text));
        }
    }
    complaints.extend(kinds(&files));
    for complaint in &complaints {
        eprintln!("tidy: {complaint}");
    }
    if !complaints.is_empty() {
        bail!("{} complaints", complaints.len());
    }
    Ok(())
}

/// All files git knows, and those it will be asked about.
fn files() -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .output()?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .map(str::to_owned)
        .collect())
}

/// The rules for one Rust file.
fn source(file: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let generated = file.contains("/pb/");
    let opening = if generated { "//" } else { "//!" };
    if !text.starts_with(opening) {
        complaints.push(format!("{file}: does not open with `//!`"));
    }
    let lines = text.lines().count();
    if lines > LONGEST && !generated && !text.contains(REASON) {
        complaints.push(format!(
            "{file}: {lines} lines; split it, or say why in a comment `{REASON}WHY`"
        ));
    }
    for (number, line) in (1..).zip(text.lines()) {
        let code = code(line);
        if code.contains(concat!("target", "_arch")) && !ARCH_FILES.contains(&file) {
            complaints.push(format!(
                "{file}:{number}: target_arch belongs into {}",
                ARCH_FILES[0]
            ));
        }
        if has_word(&code, "unsafe") && !UNSAFE_PLACES.iter().any(|place| file.starts_with(place)) {
            complaints.push(format!(
                "{file}:{number}: unsafe outside of {}",
                UNSAFE_PLACES.join(", ")
            ));
        }
    }
    complaints
}

/// A line without its comment and its string literals; good enough for words that are never in odd places.
fn code(line: &str) -> String {
    let mut code = String::new();
    let (mut quoted, mut escaped, mut last) = (false, false, ' ');
    for letter in line.chars() {
        if !quoted && letter == '/' && last == '/' {
            code.pop();
            break;
        }
        if letter == '"' && !escaped && last != '\'' {
            quoted = !quoted;
        } else if !quoted {
            code.push(letter);
        }
        escaped = letter == '\\' && !escaped;
        last = letter;
    }
    code
}

fn has_word(code: &str, word: &str) -> bool {
    let part = |letter: char| letter.is_alphanumeric() || letter == '_';
    code.split(|letter: char| !part(letter))
        .any(|found| found == word)
}

fn machine(file: &str, text: &str) -> Option<String> {
    if MACHINE_DATA.iter().any(|place| file.contains(place)) {
        return None;
    }
    (1..)
        .zip(text.lines())
        .find_map(|(number, line)| {
            MACHINE
                .iter()
                .find(|name| line.contains(**name))
                .map(|name| (number, name))
        })
        .map(|(number, name)| format!("{file}:{number}: {name} is on one machine only"))
}

/// A file in `kinds/` is a kind, and has a case of the same name.
fn kinds(files: &[String]) -> Vec<String> {
    let kind = |file: &&String| {
        let name = file
            .strip_prefix("crates/criu-files/src/kinds/")?
            .strip_suffix(".rs")?;
        (!name.contains('/')).then(|| name.to_owned())
    };
    files
        .iter()
        .filter_map(|file| kind(&file))
        .filter(|name| {
            !Path::new("zdtm/cases/files")
                .join(format!("{name}.rs"))
                .exists()
        })
        .map(|name| format!("kind {name} has no zdtm/cases/files/{name}.rs"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_not_code() {
        assert_eq!(code("let a = 1; // no code"), "let a = 1; ");
        assert_eq!(code("let a = \"no // code\" + b;"), "let a =  + b;");
        assert!(has_word("unsafe { x }", "unsafe"));
        assert!(!has_word("unsafe_op_in_unsafe_fn", "unsafe"));
    }

    #[test]
    fn a_file_without_a_first_sentence_is_noticed() {
        assert_eq!(source("a.rs", "use std::fs;\n").len(), 1);
        assert!(source("a.rs", "//! What it is.\n").is_empty());
        let long = format!("//! Long.\n{}", "\n".repeat(LONGEST));
        assert_eq!(source("a.rs", &long).len(), 1);
        assert!(source("a.rs", &format!("{long}{REASON}a table")).is_empty());
    }

    #[test]
    fn machines_are_noticed_but_not_in_fixtures() {
        let text = concat!("see /wo", "rk/shared");
        assert!(machine("crates/x/src/lib.rs", text).is_some());
        assert!(machine("crates/x/fixtures/maps", text).is_none());
    }
}
