//! The forms a value takes in status.

use nix::unistd::Pid;

use crate::text::Line;
use crate::{Ids, ParseError, Seccomp, SignalMask, TaskState, escape};

fn whole<T>(
    mut line: Line<'_>,
    read: impl FnOnce(&mut Line<'_>) -> Result<T, ParseError>,
) -> Result<T, ParseError> {
    let value = read(&mut line)?;
    line.end()?;
    Ok(value)
}

pub(crate) fn comm(line: Line<'_>) -> Result<Vec<u8>, ParseError> {
    // Only the one tab is the kernel's: the name itself may start and end with blanks.
    Ok(escape::comm(
        line.rest().strip_prefix(b"\t").unwrap_or(line.rest()),
    ))
}

pub(crate) fn state(mut line: Line<'_>) -> Result<TaskState, ParseError> {
    let before = line.clone();
    match line.word() {
        &[letter] => TaskState::from_letter(letter),
        _ => None,
    }
    .ok_or_else(|| before.error("a state letter"))
}

pub(crate) fn ids(line: Line<'_>) -> Result<Ids, ParseError> {
    const ID: &str = "four ids";
    whole(line, |line| {
        Ok(Ids {
            real: line.dec(ID)?,
            effective: line.dec(ID)?,
            saved: line.dec(ID)?,
            fs: line.dec(ID)?,
        })
    })
}

pub(crate) fn pid(line: Line<'_>) -> Result<Pid, ParseError> {
    whole(line, |line| line.pid("a pid"))
}

pub(crate) fn pid_or_none(line: Line<'_>) -> Result<Option<Pid>, ParseError> {
    Ok(Some(pid(line)?).filter(|pid| pid.as_raw() != 0))
}

pub(crate) fn pid_list(mut line: Line<'_>) -> Result<Vec<Pid>, ParseError> {
    let mut pids = vec![line.pid("pids")?];
    line.skip_blanks();
    while !line.rest().is_empty() {
        pids.push(line.pid("pids")?);
        line.skip_blanks();
    }
    Ok(pids)
}

pub(crate) fn decimal(line: Line<'_>) -> Result<u64, ParseError> {
    whole(line, |line| line.dec("a number"))
}

pub(crate) fn decimal32(line: Line<'_>) -> Result<u32, ParseError> {
    whole(line, |line| line.dec("a number"))
}

pub(crate) fn decimals(mut line: Line<'_>) -> Result<Vec<u32>, ParseError> {
    line.decs("ids")
}

pub(crate) fn octal(line: Line<'_>) -> Result<u32, ParseError> {
    whole(line, |line| line.oct("an octal number"))
}

pub(crate) fn hex(line: Line<'_>) -> Result<u64, ParseError> {
    whole(line, |line| line.hex("a hexadecimal number"))
}

pub(crate) fn size(line: Line<'_>) -> Result<u64, ParseError> {
    line.kilobytes()
}

pub(crate) fn flag(line: Line<'_>) -> Result<bool, ParseError> {
    whole(line, |line| {
        let before = line.clone();
        match line.word() {
            b"0" => Ok(false),
            b"1" => Ok(true),
            _ => Err(before.error("0 or 1")),
        }
    })
}

pub(crate) fn seccomp(line: Line<'_>) -> Result<Seccomp, ParseError> {
    whole(line, |line| {
        let before = line.clone();
        match line.word() {
            b"0" => Ok(Seccomp::Disabled),
            b"1" => Ok(Seccomp::Strict),
            b"2" => Ok(Seccomp::Filter),
            _ => Err(before.error("a seccomp mode, 0 to 2")),
        }
    })
}

pub(crate) fn ratio(mut line: Line<'_>) -> Result<(u64, u64), ParseError> {
    const RATIO: &str = "a pair like 0/1000";
    let queued = line.until(b'/', RATIO)?;
    let queued = Line::new("status", line.number(), queued).dec(RATIO)?;
    Ok((queued, decimal(line)?))
}

pub(crate) fn signals(line: Line<'_>) -> Result<SignalMask, ParseError> {
    whole(line, |line| {
        let before = line.clone();
        SignalMask::parse(line.word()).ok_or_else(|| before.error("a signal mask"))
    })
}
