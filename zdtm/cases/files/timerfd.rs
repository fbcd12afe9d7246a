//! Timers that are descriptors: timerfd_create(2).

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::{Duration, Instant};

use libc::{itimerspec, timespec};
use zdtm::{Case, Result, check, check_eq, ret};

pub(crate) const CASES: &[Case] = &[
    Case::new("timerfd", remaining),
    Case::new("timerfd-ticks", ticks),
    Case::new("timerfd-absolute", absolute),
];

fn new(clock: i32) -> Result<File> {
    // SAFETY: takes no address; the descriptor is new and ours.
    unsafe {
        Ok(File::from_raw_fd(ret(libc::timerfd_create(
            clock,
            libc::TFD_NONBLOCK,
        ))?))
    }
}

fn arm(file: &File, flags: i32, value: Duration, interval: Duration) -> Result<()> {
    let time = |duration: Duration| -> Result<timespec> {
        Ok(timespec {
            tv_sec: duration.as_secs().try_into()?,
            tv_nsec: duration.subsec_nanos().try_into()?,
        })
    };
    let value = itimerspec {
        it_value: time(value)?,
        it_interval: time(interval)?,
    };
    // SAFETY: the value lives through the call.
    ret(unsafe {
        libc::timerfd_settime(
            file.as_raw_fd(),
            flags,
            &raw const value,
            std::ptr::null_mut(),
        )
    })?;
    Ok(())
}

fn left(file: &File) -> Result<(Duration, Duration)> {
    // SAFETY: all zeroes is a valid value to be written over.
    let mut value: itimerspec = unsafe { std::mem::zeroed() };
    // SAFETY: the value lives through the call.
    ret(unsafe { libc::timerfd_gettime(file.as_raw_fd(), &raw mut value) })?;
    let time = |time: timespec| -> Result<Duration> {
        Ok(Duration::new(
            u64::try_from(time.tv_sec)?,
            u32::try_from(time.tv_nsec)?,
        ))
    };
    Ok((time(value.it_value)?, time(value.it_interval)?))
}

fn count(file: &mut File) -> Option<u64> {
    let mut word = [0; 8];
    file.read_exact(&mut word)
        .ok()
        .map(|()| u64::from_ne_bytes(word))
}

const CLOCKS: [i32; 3] = [
    libc::CLOCK_REALTIME,
    libc::CLOCK_MONOTONIC,
    libc::CLOCK_BOOTTIME,
];

/// Hours away, and disarmed.
fn remaining() -> Result<()> {
    let started = Instant::now();
    let mut timers = Vec::new();
    for (hours, clock) in (1u64..).zip(CLOCKS) {
        let file = new(clock)?;
        arm(
            &file,
            0,
            Duration::from_secs(3600 * hours),
            Duration::from_nanos(123_456_789 * hours),
        )?;
        timers.push((left(&file)?, file));
    }
    let mut idle = new(libc::CLOCK_MONOTONIC)?;
    zdtm::checkpoint()?;
    for ((was, interval), file) in &timers {
        let (now, interval_now) = left(file)?;
        let elapsed = started.elapsed() + Duration::from_millis(20);
        check_eq!(interval_now, *interval);
        check!(
            now <= *was && now + elapsed >= *was,
            "{now:?} of {was:?} left, {elapsed:?} later"
        );
    }
    check_eq!(left(&idle)?, (Duration::ZERO, Duration::ZERO));
    check_eq!(count(&mut idle), None);
    Ok(())
}

/// Ticks nobody has read yet, and ticks to come.
fn ticks() -> Result<()> {
    let mut fast = new(libc::CLOCK_MONOTONIC)?;
    let mut once = new(libc::CLOCK_MONOTONIC)?;
    arm(&fast, 0, Duration::from_millis(2), Duration::from_millis(2))?;
    arm(&once, 0, Duration::from_millis(1), Duration::ZERO)?;
    std::thread::sleep(Duration::from_millis(100));
    zdtm::checkpoint()?;
    let ticks = count(&mut fast).unwrap_or(0);
    check!(ticks >= 49, "{ticks} ticks, should be 50 and more");
    check_eq!(count(&mut once), Some(1));
    check_eq!(count(&mut once), None);
    std::thread::sleep(Duration::from_millis(20));
    check!(
        count(&mut fast).is_some_and(|ticks| ticks >= 5),
        "it goes on"
    );
    Ok(())
}

/// Set to a time of day, and told when that is changed.
fn absolute() -> Result<()> {
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let file = new(libc::CLOCK_REALTIME)?;
    let then = now()? + Duration::from_secs(7200);
    arm(
        &file,
        libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET,
        then,
        Duration::ZERO,
    )?;
    zdtm::checkpoint()?;
    let (from, (left, _), to) = (now()?, left(&file)?, now()?);
    let tick = Duration::from_millis(20);
    check!(
        from + left < then + tick && then < to + left + tick,
        "{left:?} left between {from:?} and {to:?}, set to {then:?}"
    );
    let info = zdtm::proc_text("self", &format!("fdinfo/{}", file.as_raw_fd()))?;
    check!(info.contains("settime flags: 03"), "{info}");
    Ok(())
}
