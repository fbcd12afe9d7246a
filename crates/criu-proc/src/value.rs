//! Files of one value or a few: `oom_score_adj`, `loginuid`, `personality`, `autogroup`, `/proc/sys`…
//!
//! Each takes the file's name, only to name it in a refusal.

use nix::unistd::Pid;

use crate::ParseError;
use crate::text::{Line, lines};

/// One decimal number, which may be negative: `oom_score_adj` (i16), `loginuid` and `sessionid` (u32),
/// `timerslack_ns` (u64)…
pub fn dec<T: TryFrom<i128>>(file: &'static str, text: &[u8]) -> Result<T, ParseError> {
    let line = Line::new(file, 1, text);
    let word = text.trim_ascii();
    let signed = || crate::text::signed(word).map(i128::from);
    let number = crate::text::unsigned(word, 10)
        .map(i128::from)
        .or_else(signed);
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| line.error("a decimal number that fits"))
}

/// One hexadecimal number: `personality` (u32), `coredump_filter` (u32).
pub fn hex<T: TryFrom<u64>>(file: &'static str, text: &[u8]) -> Result<T, ParseError> {
    let mut line = Line::new(file, 1, text);
    let number = line.hex("a hexadecimal number that fits")?;
    line.end()?;
    Ok(number)
}

/// One octal number.
pub fn oct<T: TryFrom<u64>>(file: &'static str, text: &[u8]) -> Result<T, ParseError> {
    let mut line = Line::new(file, 1, text);
    let number = line.oct("an octal number that fits")?;
    line.end()?;
    Ok(number)
}

/// Decimal numbers apart by blanks: `/proc/sys/kernel/sem`.
pub fn decs<T: TryFrom<u64>>(file: &'static str, text: &[u8]) -> Result<Vec<T>, ParseError> {
    Line::new(file, 1, text).decs("decimal numbers that fit")
}

/// Pids apart by blanks: `/proc/PID/task/TID/children`, proc_tid_children(5).
pub fn pids(file: &'static str, text: &[u8]) -> Result<Vec<Pid>, ParseError> {
    Ok(decs::<i32>(file, text)?
        .into_iter()
        .map(Pid::from_raw)
        .collect())
}

/// Strings ended by zeros: `cmdline`, `environ`. A last one without its zero counts too, since a process may write
/// over both: prctl(2), `PR_SET_MM_ARG_END`.
pub fn strings(text: &[u8]) -> Vec<&[u8]> {
    if text.is_empty() {
        return Vec::new();
    }
    text.strip_suffix(b"\0")
        .unwrap_or(text)
        .split(|&byte| byte == 0)
        .collect()
}

/// `loginuid` and `sessionid` never set: `u32::MAX` becomes `None`.
pub fn unset(id: u32) -> Option<u32> {
    (id != u32::MAX).then_some(id)
}

/// `/proc/PID/autogroup`, sched(7): `/autogroup-5 nice 0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Autogroup {
    /// The group's number.
    pub id: u64,
    /// Its nice value.
    pub nice: i32,
}

/// Reads `/proc/PID/autogroup`; `None` if it is empty, as it is without autogroups. `proc_sched_autogroup_show_task`
/// in `kernel/sched/autogroup.c`.
pub fn autogroup(text: &[u8]) -> Result<Option<Autogroup>, ParseError> {
    let mut line = Line::new("autogroup", 1, text);
    if text.trim_ascii().is_empty() {
        return Ok(None);
    }
    line.tag("/autogroup-")?;
    let id = line.dec("a group's number")?;
    line.skip_blanks();
    line.tag("nice")?;
    let nice = line.int("a nice value")?;
    line.end()?;
    Ok(Some(Autogroup { id, nice }))
}

/// `/proc/PID/timens_offsets`, time_namespaces(7): seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimensOffsets {
    /// Of `CLOCK_MONOTONIC`.
    pub monotonic: (i64, u32),
    /// Of `CLOCK_BOOTTIME`.
    pub boottime: (i64, u32),
}

/// Reads `/proc/PID/timens_offsets`. `proc_timens_show_offsets` in `kernel/time/namespace.c`. The first
/// kernels with time namespaces print the clocks' numbers, 1 and 7, instead of their names.
pub fn timens_offsets(text: &[u8]) -> Result<TimensOffsets, ParseError> {
    let (mut monotonic, mut boottime) = (None, None);
    for mut line in lines("timens_offsets", text) {
        let before = line.clone();
        let clock = line.word();
        let offset = (line.int("seconds")?, line.dec("nanoseconds")?);
        match clock {
            b"monotonic" | b"1" => monotonic = Some(offset),
            b"boottime" | b"7" => boottime = Some(offset),
            _ => return Err(before.error("monotonic or boottime")),
        }
        line.end()?;
    }
    let missing = |clock: &'static str| ParseError::missing("timens_offsets", clock);
    Ok(TimensOffsets {
        monotonic: monotonic.ok_or_else(|| missing("monotonic"))?,
        boottime: boottime.ok_or_else(|| missing("boottime"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(dec::<i16>("oom_score_adj", b"-1000\n"), Ok(-1000));
        assert_eq!(
            dec::<u64>("shmmax", b"18446744073692774399\n"),
            Ok(18_446_744_073_692_774_399)
        );
        assert_eq!(unset(dec("loginuid", b"4294967295").expect("fits")), None);
        assert_eq!(hex::<u32>("personality", b"00040000\n"), Ok(0x40000));
        assert_eq!(
            decs::<u32>("sem", b"32000\t1024000000\t500\t32000\n")
                .expect("four")
                .len(),
            4
        );
        assert_eq!(
            pids("children", b"12 13 "),
            Ok(vec![Pid::from_raw(12), Pid::from_raw(13)])
        );
        let error = dec::<i16>("oom_score_adj", b"40000").expect_err("too large");
        assert_eq!(
            error.to_string(),
            "oom_score_adj:1: expected a decimal number that fits, found \"40000\""
        );
    }

    #[test]
    fn zero_ended_strings() {
        assert_eq!(strings(b"a\0\0b\0"), [b"a".as_slice(), b"", b"b"]);
        assert_eq!(strings(b"a\0b"), [b"a".as_slice(), b"b"]);
        assert_eq!(strings(b"\0"), [b"".as_slice()]);
        assert!(strings(b"").is_empty());
    }

    #[test]
    fn groups_and_clocks() {
        assert_eq!(
            autogroup(b"/autogroup-5 nice -3\n"),
            Ok(Some(Autogroup { id: 5, nice: -3 }))
        );
        assert_eq!(autogroup(b""), Ok(None));
        let offsets =
            timens_offsets(b"monotonic           -5         7\nboottime            0         0\n");
        assert_eq!(
            offsets,
            Ok(TimensOffsets {
                monotonic: (-5, 7),
                boottime: (0, 0)
            })
        );
        assert_eq!(
            timens_offsets(b"1 0 0\n").expect_err("one clock").expected,
            "boottime"
        );
    }
}
