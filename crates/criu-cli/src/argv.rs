//! From getopt's manners to clap's: what clap cannot say of CRIU's command line is rewritten here.
//!
//! Two letters (`-v`, `-x`) take a value only when it is attached, also inside a cluster: `-v4`, `-vvv`, `-jv4`.
//! They become their long names. Everything else passes through as it is.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::table::{self, Takes};

/// Rewrites the words after the program's name.
pub fn rewrite(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut out = Vec::new();
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        let wants_value = match bytes {
            b"--" => {
                out.push(arg);
                out.extend(args);
                return out;
            }
            [b'-', b'-', long @ ..] => std::str::from_utf8(long)
                .ok()
                .and_then(table::named)
                .is_some_and(|option| takes_next(option.takes)),
            [b'-', _, ..] => match split(&bytes[1..]) {
                Cluster::Attached {
                    before,
                    option,
                    value,
                } => {
                    if !before.is_empty() {
                        out.push(join("-", before));
                    }
                    out.push(join(
                        &format!("--{option}{}", if value.is_empty() { "" } else { "=" }),
                        value,
                    ));
                    continue;
                }
                Cluster::Plain { wants_value } => wants_value,
            },
            _ => false,
        };
        out.push(arg);
        // The value is not looked at: it may start with a dash and be a file's name.
        out.extend(wants_value.then(|| args.next()).flatten());
    }
    out
}

enum Cluster<'a> {
    Plain {
        wants_value: bool,
    },
    Attached {
        before: &'a [u8],
        option: &'static str,
        value: &'a [u8],
    },
}

fn split(letters: &[u8]) -> Cluster<'_> {
    for (at, letter) in letters.iter().enumerate() {
        let Some(option) = table::all().find(|option| option.short == Some(char::from(*letter)))
        else {
            break;
        };
        match option.takes {
            Takes::Nothing | Takes::Switch => continue,
            Takes::Value(_) | Takes::Values(_) => {
                return Cluster::Plain {
                    wants_value: at + 1 == letters.len(),
                };
            }
            Takes::Attached(_) => {
                let value = &letters[at + 1..];
                let value = value.strip_prefix(b"=").unwrap_or(value);
                return Cluster::Attached {
                    before: &letters[..at],
                    option: option.name,
                    value,
                };
            }
        }
    }
    Cluster::Plain { wants_value: false }
}

fn takes_next(takes: Takes) -> bool {
    matches!(takes, Takes::Value(_) | Takes::Values(_))
}

fn join(head: &str, tail: &[u8]) -> OsString {
    let mut word = OsString::from(head);
    word.push(OsStr::from_bytes(tail));
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(typed: &str, expected: &str) {
        let words = typed.split(' ').map(OsString::from);
        assert_eq!(
            rewrite(words).join(OsStr::new(" ")).to_string_lossy(),
            expected
        );
    }

    #[test]
    fn letters_with_an_attached_value_become_long() {
        check("dump -v4", "dump --verbosity=4");
        check("-v dump", "--verbosity dump");
        check("-vvv", "--verbosity=vv");
        check("-jv4 -lR", "-j --verbosity=4 -lR");
        check(
            "-x12,13 -x=14 -x",
            "--ext-unix-sk=12,13 --ext-unix-sk=14 --ext-unix-sk",
        );
    }

    #[test]
    fn values_are_left_alone() {
        check("-o -v4 -Dvv", "-o -v4 -Dvv");
        check("-jo -v4", "-jo -v4");
        check("--log-file -v4 -t1", "--log-file -v4 -t1");
        check(
            "restore --exec-cmd -- ls -v4",
            "restore --exec-cmd -- ls -v4",
        );
    }
}
