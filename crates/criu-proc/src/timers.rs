//! The POSIX timers of a process: `/proc/PID/timers`, proc_pid_timers(5), timer_create(2).
//!
//! Says who they are, not when they fire: that only the process itself can ask.

use nix::unistd::Pid;

use crate::ParseError;
use crate::text::{Lines, lines, signed, unsigned};

/// `SIGEV_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Notify {
    /// `signal`: `SIGEV_SIGNAL`.
    Signal,
    /// `none`: `SIGEV_NONE`.
    None,
    /// `thread`: `SIGEV_THREAD`, which the C library makes of a thread that waits for a signal.
    Thread,
}

/// Who gets the signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// `pid.N`: the process.
    Process(Pid),
    /// `tid.N`: one thread, `SIGEV_THREAD_ID`.
    Thread(Pid),
}

/// One timer. `show_timer` in `fs/proc/base.c`; some kernels have the file only with `CONFIG_CHECKPOINT_RESTORE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PosixTimer {
    /// Its number in the process.
    pub id: i32,
    /// The signal.
    pub signal: i32,
    /// `sigev_value`, as the pointer it may be.
    pub value: u64,
    /// How.
    pub notify: Notify,
    /// Whom.
    pub target: Target,
    /// The clock: `CLOCK_*`, or negative for a process's or a dynamic clock.
    pub clock: i32,
}

/// All timers, in the kernel's order: the youngest first.
pub fn timers(timers: &[u8]) -> Result<Vec<PosixTimer>, ParseError> {
    let mut lines = lines("timers", timers);
    let mut all = Vec::new();
    while let Some(mut line) = lines.next() {
        line.tag("ID:")?;
        let id = line.int("a timer's number")?;
        line.end()?;
        all.push(timer(id, &mut lines)?);
    }
    Ok(all)
}

fn timer(id: i32, lines: &mut Lines<'_>) -> Result<PosixTimer, ParseError> {
    let mut next = |key| {
        let mut line = lines
            .next()
            .ok_or_else(|| ParseError::missing("timers", key))?;
        line.tag(key)?;
        line.skip_blanks();
        Ok::<_, ParseError>(line)
    };
    let mut line = next("signal:")?;
    let before = line.clone();
    let number = signed(line.until(b'/', "a signal like 10/0000")?)
        .and_then(|number| i32::try_from(number).ok());
    let signal = number.ok_or_else(|| before.error("a signal like 10/0000"))?;
    let value = match line.word() {
        b"(null)" => Some(0), // Some kernels' %p.
        digits => unsigned(digits.strip_prefix(b"0x").unwrap_or(digits), 16),
    };
    let value = value.ok_or_else(|| before.error("a value like 0000000000001234"))?;

    let mut line = next("notify:")?;
    let before = line.clone();
    let notify = match line.until(b'/', "signal, none or thread")? {
        b"signal" => Notify::Signal,
        b"none" => Notify::None,
        b"thread" => Notify::Thread,
        _ => return Err(before.error("signal, none or thread")),
    };
    let whom: fn(Pid) -> Target = match line.until(b'.', "pid or tid")? {
        b"pid" => Target::Process,
        b"tid" => Target::Thread,
        _ => return Err(before.error("pid or tid")),
    };
    let target = whom(line.pid("a pid")?);
    line.end()?;

    let mut line = next("ClockID:")?;
    let clock = line.int("a clock's number")?;
    line.end()?;
    Ok(PosixTimer {
        id,
        signal,
        value,
        notify,
        target,
        clock,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_process() {
        let all = timers(include_bytes!("../fixtures/timers")).expect("a real file");
        assert_eq!(
            all.iter().map(|timer| timer.id).collect::<Vec<_>>(),
            [2, 1, 0]
        );
        assert_eq!(all[0].target, Target::Thread(Pid::from_raw(4081)));
        assert_eq!((all[1].notify, all[1].value), (Notify::None, 0));
        assert_eq!((all[2].signal, all[2].value, all[2].clock), (10, 0x1234, 1));
        assert_eq!(timers(b""), Ok(vec![]));
    }

    #[test]
    fn refusals() {
        let error = timers(b"ID: 0\nsignal: 10/(nil)\n").expect_err("no such value");
        assert_eq!(
            error.to_string(),
            "timers:2: expected a value like 0000000000001234, found \"10/(nil)\""
        );
        let error = timers(b"ID: 0\n").expect_err("cut short");
        assert_eq!(error.expected, "signal:");
    }
}
