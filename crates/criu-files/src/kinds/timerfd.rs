//! Clocks as a descriptor: timerfd_create(2).
//!
//! The state is the clock, the time left, the interval, and the expirations nobody has read. The time
//! left starts to run again when the tasks do. Not preserved: `TFD_TIMER_CANCEL_ON_SET` fired by a
//! change of the clock between dump and restore.

use criu_image::pb;
use criu_kind::{DumpCx, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result};
use criu_proc::ParseError;
use criu_tracee::Program;

/// `TFD_IOC_SET_TICKS`, Linux 3.18, CONFIG_CHECKPOINT_RESTORE.
const SET_TICKS: libc::Ioctl = libc::_IOW::<u64>(b'T' as u32, 0);

/// A timerfd.
#[derive(Debug)]
pub struct Timerfd;

impl FileKind for Timerfd {
    type Entry = pb::TimerfdEntry;
    const NAME: &'static str = "timerfd";
    const SINCE: Kernel = Kernel::new(3, 18, 0);

    fn claims(&self, file: &OpenFile) -> bool {
        file.is_anon_inode("[timerfd]")
    }

    fn dump(&self, _: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        let info = &file.info;
        let (vsec, vnsec) = pair(
            info.value("it_value"),
            "it_value: (seconds, nanoseconds)",
            file,
        )?;
        let (isec, insec) = pair(
            info.value("it_interval"),
            "it_interval: (seconds, nanoseconds)",
            file,
        )?;
        Ok(pb::TimerfdEntry {
            id: file.number(),
            flags: file.flags(),
            fown: file.owner,
            clockid: info.int::<i64>("clockid").map(low_word)?,
            ticks: info.dec("ticks")?,
            settime_flags: info.oct("settime flags")?,
            vsec,
            vnsec,
            isec,
            insec,
        })
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let mut program = Program::new();
        let fd = program.timerfd_create(entry.clockid, 0);
        Ok(Opened::Here(cx.here().run(&program)?.fd(fd)))
    }

    /// The value is a time left, also where the timer was set to an absolute time.
    fn arm(&self, entry: &Self::Entry, fd: i32, program: &mut Program) -> Result<()> {
        if (entry.vsec, entry.vnsec, entry.isec, entry.insec) != (0, 0, 0, 0) {
            let words = [entry.isec, entry.insec, entry.vsec, entry.vnsec].map(long);
            let setting = program.bytes(words.concat());
            program.timerfd_settime(fd, 0, setting, 0);
        }
        if entry.ticks != 0 {
            let ticks = program.bytes(entry.ticks.to_ne_bytes());
            program.ioctl(fd, SET_TICKS, ticks);
        }
        Ok(())
    }
}

/// A word of `struct itimerspec` as this machine has it.
fn long(value: u64) -> Vec<u8> {
    let bytes = value.to_ne_bytes();
    let width = size_of::<libc::c_long>();
    if cfg!(target_endian = "big") {
        bytes[8 - width..].to_vec()
    } else {
        bytes[..width].to_vec()
    }
}

fn low_word(clock: i64) -> u32 {
    u32::try_from(clock & 0xffff_ffff).unwrap_or(0)
}

/// `(49406829, 123)`.
fn pair(text: Option<&[u8]>, expected: &'static str, file: &OpenFile) -> Result<(u64, u64)> {
    let parsed = text.and_then(|text| {
        let inner = std::str::from_utf8(text)
            .ok()?
            .strip_prefix('(')?
            .strip_suffix(')')?;
        let (seconds, nanos) = inner.split_once(',')?;
        Some((seconds.trim().parse().ok()?, nanos.trim().parse().ok()?))
    });
    let missing = || match file.info.lines.first() {
        Some(line) => line.error(expected),
        None => ParseError {
            file: "fdinfo",
            line: 0,
            expected: expected.into(),
            found: String::new(),
        },
    };
    Ok(parsed.ok_or_else(missing)?)
}

#[cfg(test)]
mod tests {
    use criu_kind::testing::{dumped, open_file, restored};
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_clock_that_runs_and_has_rung() {
        let text = "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1063\nclockid: 1\nticks: 2\n\
            settime flags: 01\nit_value: (49, 500)\nit_interval: (1, 0)\n";
        let entry =
            dumped(&Timerfd, &open_file("anon_inode:[timerfd]", 0o600, text)).expect("known");
        assert_eq!((entry.vsec, entry.vnsec, entry.settime_flags), (49, 500, 1));
        expect![[r#"
            $0 = timerfd_create(1, 0)
            is 100
            later:
            $0 = timerfd_settime(3, 0, <010000000000000000000000000000003100000000000000f401000000000000>, 0)
            $1 = ioctl(3, 0x40085400, <0200000000000000>)
        "#]]
        .assert_eq(&restored(&Timerfd, &entry).expect("a program"));
    }

    #[test]
    fn what_is_no_pair_is_refused() {
        let text = "pos:\t0\nflags:\t02\nclockid: 1\nticks: 2\nsettime flags: 01\nit_value: 49\n";
        let error = dumped(&Timerfd, &open_file("anon_inode:[timerfd]", 0o600, text))
            .expect_err("malformed");
        assert!(
            error
                .to_string()
                .contains("it_value: (seconds, nanoseconds)"),
            "{error}"
        );
    }
}
