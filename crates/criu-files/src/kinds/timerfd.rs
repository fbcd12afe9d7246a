//! Clocks as a descriptor: timerfd_create(2).
//!
//! The state is the clock, the time left, the interval, and the expirations nobody has read. The time
//! left starts to run again when the tasks do. A time of day stays that: it may have passed by then. Not
//! preserved: that the clock was set meanwhile (`TFD_TIMER_CANCEL_ON_SET`).

use std::collections::HashMap;
use std::os::fd::AsRawFd;

use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{DumpCx, Error, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result, Shift};
use criu_proc::{Fdinfo, ParseError, ProcDir};
use criu_tracee::{Local, Program, Site};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

const NANOS: u64 = 1_000_000_000;

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

    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        let info = &up_to_date(file)?;
        let mut left = pair(info, "it_value", "it_value: (seconds, nanoseconds)")?;
        let interval = pair(info, "it_interval", "it_interval: (seconds, nanoseconds)")?;
        // It has rung again since it was asked, and stands still: it is no timer that was stopped.
        if left == (0, 0) && info.dec::<u64>("ticks")? != 0 {
            left = interval;
        }
        let ((vsec, vnsec), (isec, insec)) = (left, interval);
        let entry = pb::TimerfdEntry {
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
        };
        if let Some((sec, nsec)) = time_of_day(&entry)? {
            let timerfd = pb::TimerfdExtEntry {
                timerfd_id: entry.id,
                sec,
                nsec: u32::try_from(nsec).unwrap_or(0),
            };
            let ext = pb::FilesExtEntry {
                timerfd: Some(timerfd),
                ..pb::FilesExtEntry::default()
            };
            cx.append(desc::FILES_EXT, (), &ext, &[])?;
        }
        Ok(entry)
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let mut program = Program::new();
        let fd = program.timerfd_create(entry.clockid, 0);
        Ok(Opened::Here(cx.here().run(&program)?.fd(fd)))
    }

    /// The value is a time left, also where the timer was set to a time.
    fn arm(
        &self,
        cx: &mut dyn RestoreCx,
        entry: &Self::Entry,
        fd: i32,
        program: &mut Program,
    ) -> Result<()> {
        if (entry.vsec, entry.vnsec, entry.isec, entry.insec) != (0, 0, 0, 0) {
            let times = cx.cached(Times::load)?;
            let (vsec, vnsec) = match times.0.get(&entry.id) {
                Some(time) => *time,
                None if is_absolute(entry) => from_now(entry, cx.shift())?,
                None => (entry.vsec, entry.vnsec),
            };
            let words = [entry.isec, entry.insec, vsec, vnsec].map(u64::to_ne_bytes);
            let setting = program.bytes(words.concat());
            program.timerfd_settime(fd, entry.settime_flags, setting, 0);
        }
        if entry.ticks != 0 {
            let ticks = program.bytes(entry.ticks.to_ne_bytes());
            program.ioctl(fd, SET_TICKS, ticks);
        }
        Ok(())
    }
}

fn is_absolute(entry: &pb::TimerfdEntry) -> bool {
    let absolute = entry.settime_flags & libc::TFD_TIMER_ABSTIME.cast_unsigned() != 0;
    absolute && (entry.vsec, entry.vnsec) != (0, 0)
}

/// When it rings, if it was set to a time of day: that does not move, unlike the time since boot.
fn time_of_day(entry: &pb::TimerfdEntry) -> Result<Option<(u64, u64)>> {
    let clock = entry.clockid.cast_signed();
    let of_day = matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM);
    (of_day && is_absolute(entry))
        .then(|| from_now(entry, Shift::default()))
        .transpose()
}

/// When the time left is over, by a clock that is so far ahead of ours.
fn from_now(entry: &pb::TimerfdEntry, shift: Shift) -> Result<(u64, u64)> {
    let (clock, ahead) = match entry.clockid.cast_signed() {
        libc::CLOCK_REALTIME_ALARM => (ClockId::CLOCK_REALTIME, 0),
        libc::CLOCK_BOOTTIME_ALARM => (ClockId::CLOCK_BOOTTIME, shift.boottime),
        other => match ClockId::from_raw(other) {
            clock @ ClockId::CLOCK_BOOTTIME => (clock, shift.boottime),
            clock @ ClockId::CLOCK_MONOTONIC => (clock, shift.monotonic),
            clock => (clock, 0),
        },
    };
    let now = clock_gettime(clock).map_err(Error::kernel("clock_gettime"))?;
    let now = i128::from(now.tv_sec()) * i128::from(NANOS) + i128::from(now.tv_nsec());
    let left = i128::from(entry.vsec) * i128::from(NANOS) + i128::from(entry.vnsec);
    let time = (now + i128::from(ahead) + left).max(1);
    let part = |nanos: i128| u64::try_from(nanos).unwrap_or(u64::MAX);
    let nanos = i128::from(NANOS);
    Ok((part(time / nanos), part(time % nanos)))
}

/// Times of day, by timer.
struct Times(HashMap<u32, (u64, u64)>);

impl Times {
    fn load(store: &dyn Store) -> Result<Self> {
        let entries = store.entries::<pb::FilesExtEntry>(desc::FILES_EXT, ())?;
        let entries = entries.unwrap_or_default().into_iter();
        let timers = entries.filter_map(|entry| entry.message.timerfd);
        Ok(Self(
            timers
                .map(|timer| (timer.timerfd_id, (timer.sec, timer.nsec.into())))
                .collect(),
        ))
    }
}

fn low_word(clock: i64) -> u32 {
    u32::try_from(clock & 0xffff_ffff).unwrap_or(0)
}

/// The kernel counts the expirations of an interval only when it is asked; till then the timer stands still.
fn up_to_date(file: &OpenFile) -> Result<Fdinfo> {
    let mut program = Program::new();
    let setting = program.room(32);
    let asked = program.timerfd_gettime(file.fd.as_raw_fd(), setting);
    program.tolerate();
    if Local.run(&program)?.get(asked).is_err() {
        return Ok(file.info.clone());
    }
    Ok(ProcDir::open(Pid::this())?.fdinfo(file.fd.as_raw_fd())?)
}

/// `(49406829, 123)`.
fn pair(info: &Fdinfo, key: &str, expected: &'static str) -> Result<(u64, u64)> {
    let parsed = info.value(key).and_then(|text| {
        let inner = std::str::from_utf8(text)
            .ok()?
            .strip_prefix('(')?
            .strip_suffix(')')?;
        let (seconds, nanos) = inner.split_once(',')?;
        Some((seconds.trim().parse().ok()?, nanos.trim().parse().ok()?))
    });
    let missing = || match info.lines.first() {
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
            settime flags: 00\nit_value: (49, 500)\nit_interval: (1, 0)\n";
        let entry =
            dumped(&Timerfd, &open_file("anon_inode:[timerfd]", 0o600, text)).expect("known");
        assert_eq!((entry.vsec, entry.vnsec, entry.settime_flags), (49, 500, 0));
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
    fn one_that_has_rung_while_it_was_looked_at_goes_on() {
        let text = |ticks| {
            format!(
                "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1063\nclockid: 1\nticks: {ticks}\n\
                settime flags: 00\nit_value: (0, 0)\nit_interval: (0, 7)\n"
            )
        };
        let left = |ticks| {
            let file = open_file("anon_inode:[timerfd]", 0o600, &text(ticks));
            let entry = dumped(&Timerfd, &file).expect("known");
            (entry.vsec, entry.vnsec)
        };
        assert_eq!((left(1), left(0)), ((0, 7), (0, 0)));
    }

    #[test]
    fn a_time_of_day_is_written_as_such() {
        let text = "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1063\nclockid: 0\nticks: 0\n\
            settime flags: 03\nit_value: (49, 500)\nit_interval: (0, 0)\n";
        let entry =
            dumped(&Timerfd, &open_file("anon_inode:[timerfd]", 0o600, text)).expect("known");
        let (sec, _) = time_of_day(&entry).expect("a clock").expect("absolute");
        assert!(sec > 1_700_000_000, "{sec}");
        let relative = pb::TimerfdEntry {
            settime_flags: 0,
            ..entry
        };
        assert_eq!(time_of_day(&relative).expect("a clock"), None);
    }

    #[test]
    fn a_time_since_boot_is_one_of_the_clocks_of_the_tree() {
        let entry = |clockid: i32| pb::TimerfdEntry {
            clockid: clockid.cast_unsigned(),
            vsec: 5,
            ..pb::TimerfdEntry::default()
        };
        let shift = Shift {
            monotonic: 1_000_000 * i64::try_from(NANOS).expect("it fits"),
            boottime: i64::MIN / 2,
        };
        let ahead = |clock, shift| from_now(&entry(clock), shift).expect("a clock").0;
        let by = |clock| ahead(clock, shift).saturating_sub(ahead(clock, Shift::default()));
        assert!((1_000_000..1_000_100).contains(&by(libc::CLOCK_MONOTONIC)));
        assert!(by(libc::CLOCK_REALTIME) < 100);
        // Nothing rings before a clock began.
        assert_eq!(ahead(libc::CLOCK_BOOTTIME_ALARM, shift), 0);
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
