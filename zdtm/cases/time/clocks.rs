//! The clocks that count from the start of a machine, and what waits for them: time_namespaces(7).
//!
//! A task that enters a time namespace first has clocks that are hours ahead of those of the machine, so a restore in
//! the same namespace as before cannot go unseen.

use std::fs::{File, read_link};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, FromRawFd};
use std::thread::JoinHandle;

use libc::{c_int, itimerspec, timespec};
use zdtm::{Case, Child, Context, Result, check, check_eq, ret};

pub(crate) const CASES: &[Case] = &[
    Case::new("clocks", clocks),
    Case::new("clocks-ahead", || own(ahead)),
    Case::new("clocks-behind", || own(behind)),
    Case::new("clocks-of-children", || own(children)),
    Case::new("clocks-of-timers", || own(timers)),
    Case::new("clocks-of-sleepers", || own(sleepers)),
    // The number of a namespace is the kernel's.
    Case::new("clocks-open", || own(opened)).changes(&["fd/0003"]),
    Case::new("clocks-apart", apart).refused("tasks have different clocks"),
    Case::new("clocks-for-children", for_children).refused("children would have other clocks"),
];

const CLONE_NEWTIME: c_int = 0x80;
const HOUR: i64 = 3600;
/// No restore in a test takes this long.
const LONGEST: f64 = 900.0;

const COUNTING: [c_int; 4] = [
    libc::CLOCK_MONOTONIC,
    libc::CLOCK_MONOTONIC_RAW,
    libc::CLOCK_MONOTONIC_COARSE,
    libc::CLOCK_BOOTTIME,
];

fn time(clock: c_int) -> Result<timespec> {
    let mut time = timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the time lives through the call.
    ret(unsafe { libc::clock_gettime(clock, &raw mut time) })?;
    Ok(time)
}

fn seconds(time: timespec) -> f64 {
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn now(clock: c_int) -> Result<f64> {
    time(clock).map(seconds)
}

/// What all clocks show, now.
fn look() -> Result<Vec<f64>> {
    COUNTING.into_iter().map(now).collect()
}

/// None has gone back, and none has jumped.
fn went_on(before: &[f64]) -> Result<()> {
    for ((clock, before), now) in COUNTING.into_iter().zip(before).zip(look()?) {
        check!(
            now >= *before && now < before + LONGEST,
            "clock {clock} showed {before:.3}, and shows {now:.3}"
        );
    }
    Ok(())
}

/// For who cannot skip later.
fn has_own() -> Result<()> {
    if std::path::Path::new("/proc/self/ns/time").exists() {
        return Ok(());
    }
    zdtm::skip("no time namespaces: elsewhere a tree has the clocks of the machine")
}

fn clocks() -> Result<()> {
    has_own()?;
    let before = look()?;
    zdtm::checkpoint()?;
    went_on(&before)
}

/// Makes a time namespace whose clocks are so far ahead of ours, for the children to come.
fn unshare(seconds: [i64; 2]) -> Result<()> {
    // SAFETY: takes no address.
    match ret(unsafe { libc::unshare(CLONE_NEWTIME) }) {
        Ok(_) => {}
        Err(error) => return zdtm::skip(format!("no time namespace: {error}")),
    }
    // A namespace inside of another one counts from the machine's clocks too.
    let offsets = std::fs::read_to_string("/proc/self/timens_offsets")?;
    let mut text = String::new();
    for (line, more) in offsets.lines().zip(seconds) {
        let mut words = line.split_whitespace();
        let number = match words.next() {
            Some("monotonic" | "1") => libc::CLOCK_MONOTONIC,
            _ => libc::CLOCK_BOOTTIME,
        };
        let offset: i64 = words.next().context("an offset")?.parse()?;
        text += &format!("{number} {} 0\n", offset + more);
    }
    std::fs::write("/proc/self/timens_offsets", text).or_else(|error| match error.kind() {
        ErrorKind::PermissionDenied => zdtm::skip(format!("no time namespace: {error}")),
        _ => Err(error.into()),
    })
}

/// Enters the namespace of the children to come.
fn enter() -> Result<()> {
    let children = File::open("/proc/self/ns/time_for_children")?;
    // SAFETY: takes no address.
    ret(unsafe { libc::setns(children.as_raw_fd(), CLONE_NEWTIME) })?;
    Ok(())
}

/// Runs a case with clocks that are hours ahead.
fn own(case: fn() -> Result<()>) -> Result<()> {
    unshare([10 * HOUR, 20 * HOUR])?;
    enter()?;
    case()
}

fn ahead() -> Result<()> {
    let before = look()?;
    check!(before[0] > 36_000.0 && before[3] > 72_000.0, "{before:?}");
    zdtm::checkpoint()?;
    went_on(&before)
}

/// A clock of which the machine is ahead.
fn behind() -> Result<()> {
    let shown = time(libc::CLOCK_MONOTONIC)?.tv_sec;
    // No clock can begin before its zero.
    let back = 10 - i64::from(shown);
    unshare([back, back])?;
    enter()?;
    let before = look()?;
    check!(before[0] < 100.0, "{before:?}");
    zdtm::checkpoint()?;
    went_on(&before)
}

/// Those that are born before a dump and after it have the clocks of their parent.
fn children() -> Result<()> {
    let link = || read_link("/proc/self/ns/time");
    let before = look()?;
    let child = {
        let before = before.clone();
        Child::spawn("a child", move || {
            let parent = format!("/proc/{}/ns/time", nix::unistd::getppid());
            Child::checkpoint();
            check_eq!(link()?, read_link(parent)?);
            went_on(&before)
        })?
    };
    zdtm::checkpoint()?;
    check_eq!(link()?, read_link("/proc/self/ns/time_for_children")?);
    child.finish()?;
    let born = Child::spawn("a later child", move || went_on(&before))?;
    born.join()
}

/// A timer that is to ring at a time does so at that time of its clock.
fn timers() -> Result<()> {
    let mut timers = Vec::new();
    for clock in [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME] {
        // SAFETY: takes no address; the descriptor is new and ours.
        let timer = unsafe { File::from_raw_fd(ret(libc::timerfd_create(clock, 0))?) };
        let mut value = itimerspec {
            it_interval: timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: time(clock)?,
        };
        value.it_value.tv_sec += libc::time_t::from(3600);
        let absolute = libc::TFD_TIMER_ABSTIME;
        // SAFETY: the value lives through the call.
        ret(unsafe {
            libc::timerfd_settime(
                timer.as_raw_fd(),
                absolute,
                &raw const value,
                std::ptr::null_mut(),
            )
        })?;
        timers.push((clock, timer, now(clock)? + 3600.0));
    }
    zdtm::checkpoint()?;
    for (clock, timer, rings) in timers {
        // SAFETY: all zeroes is a valid value to be written over.
        let mut value: itimerspec = unsafe { std::mem::zeroed() };
        // SAFETY: the value lives through the call.
        ret(unsafe { libc::timerfd_gettime(timer.as_raw_fd(), &raw mut value) })?;
        let at = now(clock)? + value.it_value.tv_sec as f64;
        check!(
            at > rings - 2.0 && at < rings + LONGEST,
            "clock {clock}: rings at {at:.1}, should at {rings:.1}"
        );
    }
    Ok(())
}

/// Sleeps till a time of their clock, each in a thread.
fn sleepers() -> Result<()> {
    let all = [sleeper(nanosleep, 0)?, sleeper(futex, libc::ETIMEDOUT)?];
    zdtm::checkpoint()?;
    for sleeper in all {
        let slept = sleeper.join();
        slept.or_else(|_| zdtm::bail!("a sleeper panicked"))??;
    }
    Ok(())
}

fn sleeper(sleep: fn(timespec) -> Result<c_int>, wanted: c_int) -> Result<JoinHandle<Result<()>>> {
    let mut until = time(libc::CLOCK_MONOTONIC)?;
    until.tv_sec += 2;
    let end = seconds(until);
    let (begun, begins) = std::sync::mpsc::channel();
    let sleeper = std::thread::spawn(move || {
        mask()?;
        begun.send(())?;
        check_eq!(sleep(until)?, wanted);
        let woke = now(libc::CLOCK_MONOTONIC)?;
        check!(
            woke >= end && woke < end + LONGEST,
            "woke at {woke:.3} instead of {end:.3}"
        );
        // Stays, so that it shows when it woke and not that a thread is missing.
        zdtm::wait();
        Ok(())
    });
    // All that it needs for itself it has then.
    begins.recv()?;
    Ok(sleeper)
}

/// The signal that means "check" is for the main thread.
fn mask() -> Result<()> {
    let mut set = nix::sys::signal::SigSet::empty();
    set.add(nix::sys::signal::SIGTERM);
    Ok(set.thread_block()?)
}

fn nanosleep(until: timespec) -> Result<c_int> {
    let clock = libc::CLOCK_MONOTONIC;
    let absolute = libc::TIMER_ABSTIME;
    // SAFETY: the time lives through the call.
    Ok(unsafe { libc::clock_nanosleep(clock, absolute, &raw const until, std::ptr::null_mut()) })
}

fn futex(until: timespec) -> Result<c_int> {
    const WAIT_BITSET_PRIVATE: usize = 9 | 128;
    let word = 0u32;
    let (word, until) = ((&raw const word).addr(), (&raw const until).addr());
    let any = usize::try_from(u32::MAX)?;
    // SAFETY: word and time live through the call.
    let woken = unsafe {
        zdtm::syscall(
            libc::SYS_futex,
            [word, WAIT_BITSET_PRIVATE, 0, until, 0, any],
        )
    };
    Ok(woken.map_or_else(|error| error.raw_os_error().unwrap_or(0), |_| 0))
}

/// A descriptor of the tree's own namespace.
fn opened() -> Result<()> {
    let file = File::open("/proc/self/ns/time")?;
    zdtm::checkpoint()?;
    let held = read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    check_eq!(held, read_link("/proc/self/ns/time")?);
    Ok(())
}

/// A child that has other clocks than its parent.
fn apart() -> Result<()> {
    has_own()?;
    let child = Child::spawn("elsewhere", || {
        unshare([HOUR, HOUR])?;
        enter()?;
        let before = look()?;
        Child::checkpoint();
        went_on(&before)
    })?;
    zdtm::checkpoint()?;
    child.finish()
}

/// One that has made a namespace and is not in it.
fn for_children() -> Result<()> {
    unshare([HOUR, HOUR])?;
    let children = read_link("/proc/self/ns/time_for_children")?;
    zdtm::checkpoint()?;
    check_eq!(children, read_link("/proc/self/ns/time_for_children")?);
    Ok(())
}
