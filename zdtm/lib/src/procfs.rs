//! Lines of /proc, for cases whose state shows nowhere else.

use crate::{Context, Result};

/// The text of `/proc/WHO/NAME`; `who` is a pid, `self`, `thread-self` or `PID/task/TID`.
pub fn proc_text(who: impl std::fmt::Display, name: &str) -> Result<String> {
    let path = format!("/proc/{who}/{name}");
    std::fs::read_to_string(&path).with_context(|| path)
}

/// The value of one line of `/proc/WHO/status`, trimmed.
pub fn status_field(who: impl std::fmt::Display, field: &str) -> Result<String> {
    proc_text(&who, "status")?
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
        .with_context(|| format!("/proc/{who}/status has no {field}"))
}

/// Field number `number` of `/proc/WHO/stat`, counted from 1 as proc(5) does.
pub fn stat_field(who: impl std::fmt::Display, number: usize) -> Result<String> {
    let text = proc_text(&who, "stat")?;
    // The second field is a name in parentheses, with anything in it.
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    rest.split_whitespace()
        .nth(number - 3)
        .map(str::to_owned)
        .with_context(|| format!("/proc/{who}/stat has no field {number}"))
}
