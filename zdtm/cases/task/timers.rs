//! Interval timers and POSIX timers.

use std::time::{Duration, Instant};

use libc::{c_int, clockid_t, itimerspec, itimerval, timer_t};
use zdtm::{Case, Result, check, check_eq, ret};

pub(crate) const CASES: &[Case] = &[
    Case::new("itimer-remaining", itimer_remaining),
    Case::new("itimer-ticking", itimer_ticking).changes(&["thread/", "stat/"]),
    Case::new("posix-timer-clocks", clocks),
    Case::new("posix-timer-notify", notify),
    Case::new("posix-timer-ids", ids),
    Case::new("posix-timer-ticking", ticking).changes(&["thread/"]),
    Case::new("posix-timer-overrun", overrun),
];

const HOUR: i64 = 3600;

fn block(signal: c_int) -> Result<()> {
    // SAFETY: the set is ours.
    let failed = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
    };
    check_eq!(failed, 0);
    Ok(())
}

/// Waits for a blocked signal, and returns what came with it; nothing after two seconds.
fn arrives(signal: c_int) -> Option<libc::siginfo_t> {
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        let info = taken(signal, 100_000_000);
        if info.is_some() {
            return info;
        }
    }
    None
}

/// Takes a blocked signal if it comes in less than so many nanoseconds.
fn taken(signal: c_int, within: libc::c_long) -> Option<libc::siginfo_t> {
    // SAFETY: set, info and time live through the call.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let mut time: libc::timespec = std::mem::zeroed();
        time.tv_nsec = within;
        let got = libc::sigtimedwait(&raw const set, &raw mut info, &raw const time);
        (got == signal).then_some(info)
    }
}

/// Waits for a blocked signal with the processor busy in user code: the time of a process passes only then, and on a
/// loaded machine slowly.
fn arrives_busy(signal: c_int) -> bool {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        if taken(signal, 0).is_some() {
            return true;
        }
        for _ in 0..1_000_000 {
            std::hint::spin_loop();
        }
    }
    false
}

fn set_itimer(which: c_int, seconds: i64, interval: i64) -> Result<()> {
    let time = |micros: i64| -> Result<libc::timeval> {
        Ok(libc::timeval {
            tv_sec: (micros / 1_000_000).try_into()?,
            tv_usec: (micros % 1_000_000).try_into()?,
        })
    };
    let value = itimerval {
        it_value: time(seconds)?,
        it_interval: time(interval)?,
    };
    // SAFETY: the value lives through the call.
    ret(unsafe { libc::syscall(libc::SYS_setitimer, which, &raw const value, 0usize) })?;
    Ok(())
}

fn itimer(which: c_int) -> Result<(i64, i64)> {
    let zero = libc::timeval {
        tv_sec: 0,
        tv_usec: 0,
    };
    let mut value = itimerval {
        it_value: zero,
        it_interval: zero,
    };
    // SAFETY: the value lives through the call.
    ret(unsafe { libc::syscall(libc::SYS_getitimer, which, &raw mut value) })?;
    #[allow(clippy::useless_conversion, reason = "widths differ between machines")]
    let micros = |time: libc::timeval| i64::from(time.tv_sec) * 1_000_000 + i64::from(time.tv_usec);
    Ok((micros(value.it_value), micros(value.it_interval)))
}

const ITIMERS: [c_int; 3] = [0, 1, 2];

/// Far in the future: what is left must be less than before, and not by much.
fn itimer_remaining() -> Result<()> {
    for which in ITIMERS {
        set_itimer(
            which,
            (HOUR + i64::from(which)) * 1_000_000,
            i64::from(which) * 7_000_000,
        )?;
    }
    let started = Instant::now();
    let before = ITIMERS.map(itimer);
    zdtm::checkpoint()?;
    for (which, before) in ITIMERS.into_iter().zip(before) {
        let ((left, interval), (was, interval_was)) = (itimer(which)?, before?);
        let elapsed = i64::try_from(started.elapsed().as_micros())?;
        check_eq!(interval, interval_was, "itimer {which}");
        // A tick of the processor timers is up to 10 ms.
        check!(
            left <= was + 20_000 && left >= was - elapsed - 20_000,
            "itimer {which}: {left} of {was}"
        );
    }
    Ok(())
}

/// All three tick: one by itself, two while the processor is busy.
fn itimer_ticking() -> Result<()> {
    let signals = [libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF];
    for (which, signal) in ITIMERS.into_iter().zip(signals) {
        block(signal)?;
        set_itimer(which, 20_000, 20_000)?;
    }
    zdtm::checkpoint()?;
    for signal in signals {
        check!(arrives_busy(signal), "the first {signal}");
        check!(arrives_busy(signal), "the second {signal}");
    }
    Ok(())
}

fn create(
    clock: clockid_t,
    notify: c_int,
    signal: c_int,
    value: usize,
    thread: i32,
) -> Result<timer_t> {
    // SAFETY: all zeroes is a valid sigevent to fill in.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = notify;
    event.sigev_signo = signal;
    event.sigev_value.sival_ptr = std::ptr::without_provenance_mut(value);
    event.sigev_notify_thread_id = thread;
    let mut id = std::ptr::null_mut();
    // SAFETY: event and id live through the call.
    ret(unsafe { libc::timer_create(clock, &raw mut event, &raw mut id) })?;
    Ok(id)
}

fn arm(id: timer_t, value: Duration, interval: Duration) -> Result<()> {
    let time = |duration: Duration| -> Result<libc::timespec> {
        Ok(libc::timespec {
            tv_sec: duration.as_secs().try_into()?,
            tv_nsec: duration.subsec_nanos().try_into()?,
        })
    };
    let value = itimerspec {
        it_value: time(value)?,
        it_interval: time(interval)?,
    };
    // SAFETY: the value lives through the call.
    ret(unsafe { libc::timer_settime(id, 0, &raw const value, std::ptr::null_mut()) })?;
    Ok(())
}

/// What is left, and the interval.
fn left(id: timer_t) -> Result<(Duration, Duration)> {
    let zero = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut value = itimerspec {
        it_value: zero,
        it_interval: zero,
    };
    // SAFETY: the value lives through the call.
    ret(unsafe { libc::timer_gettime(id, &raw mut value) })?;
    let time = |time: libc::timespec| -> Result<Duration> {
        Ok(Duration::new(
            u64::try_from(time.tv_sec)?,
            u32::try_from(time.tv_nsec)?,
        ))
    };
    Ok((time(value.it_value)?, time(value.it_interval)?))
}

const CLOCKS: &[clockid_t] = &[
    libc::CLOCK_REALTIME,
    libc::CLOCK_MONOTONIC,
    libc::CLOCK_BOOTTIME,
    libc::CLOCK_TAI,
    libc::CLOCK_PROCESS_CPUTIME_ID,
    libc::CLOCK_THREAD_CPUTIME_ID,
];

/// One timer a clock, armed for hours.
fn clocks() -> Result<()> {
    let started = Instant::now();
    let timers = (1u64..)
        .zip(CLOCKS)
        .map(|(hours, clock)| {
            let id = create(*clock, libc::SIGEV_SIGNAL, libc::SIGUSR1, 0, 0)?;
            arm(
                id,
                Duration::from_secs(3600 * hours),
                Duration::from_millis(1234 * hours),
            )?;
            Ok((*clock, id, left(id)?))
        })
        .collect::<Result<Vec<_>>>()?;
    zdtm::checkpoint()?;
    for (clock, id, (was, interval)) in timers {
        let (now, interval_now) = left(id)?;
        let elapsed = started.elapsed() + Duration::from_millis(20);
        check_eq!(interval_now, interval, "clock {clock}");
        check!(
            now <= was && now + elapsed >= was,
            "clock {clock}: {now:?} of {was:?} left, {elapsed:?} later"
        );
    }
    Ok(())
}

/// By signal with a value, not at all, and to one thread.
fn notify() -> Result<()> {
    let signal = libc::SIGRTMIN() + 1;
    block(signal)?;
    block(libc::SIGUSR2)?;
    let by_signal = create(
        libc::CLOCK_MONOTONIC,
        libc::SIGEV_SIGNAL,
        signal,
        usize::MAX / 3,
        0,
    )?;
    let silent = create(libc::CLOCK_MONOTONIC, libc::SIGEV_NONE, 0, 0, 0)?;
    let own_thread = nix::unistd::gettid().as_raw();
    let to_thread = create(
        libc::CLOCK_MONOTONIC,
        libc::SIGEV_THREAD_ID,
        libc::SIGUSR2,
        77,
        own_thread,
    )?;
    let never = create(
        libc::CLOCK_MONOTONIC,
        libc::SIGEV_SIGNAL,
        libc::SIGUSR1,
        0,
        0,
    )?;
    zdtm::checkpoint()?;
    for timer in [by_signal, silent, to_thread] {
        arm(timer, Duration::from_millis(10), Duration::ZERO)?;
    }
    let info = zdtm::Context::context(arrives(signal), "no signal of the first timer")?;
    check_eq!(info.si_code, libc::SI_TIMER);
    // SAFETY: a timer's siginfo carries its value.
    let value = unsafe { info.si_value() };
    check_eq!(value.sival_ptr.addr(), usize::MAX / 3);
    let info = zdtm::Context::context(arrives(libc::SIGUSR2), "no signal to the thread")?;
    // SAFETY: as above.
    check_eq!(unsafe { info.si_value() }.sival_ptr.addr(), 77);
    check_eq!(left(silent)?.0, Duration::ZERO);
    check_eq!(left(never)?, (Duration::ZERO, Duration::ZERO));
    Ok(())
}

/// Ids stay, with gaps between them, and new ones do not collide.
fn ids() -> Result<()> {
    let mut timers = (0..20)
        .map(|n| {
            create(
                libc::CLOCK_MONOTONIC,
                libc::SIGEV_SIGNAL,
                libc::SIGUSR1,
                n,
                0,
            )
        })
        .collect::<Result<Vec<_>>>()?;
    // SAFETY: each id is deleted once and taken off the list.
    unsafe {
        libc::timer_delete(timers.remove(17));
        libc::timer_delete(timers.remove(5));
        libc::timer_delete(timers.remove(0));
    }
    for (seconds, timer) in (1000..).zip(&timers) {
        arm(*timer, Duration::from_secs(seconds), Duration::ZERO)?;
    }
    zdtm::checkpoint()?;
    for (seconds, timer) in (1000..).zip(&timers) {
        let (left, _) = left(*timer)?;
        check!(
            left.as_secs() < seconds && left.as_secs() > seconds - 60,
            "{left:?} of {seconds} s"
        );
    }
    let new = create(libc::CLOCK_MONOTONIC, libc::SIGEV_NONE, 0, 0, 0)?;
    check!(!timers.contains(&new), "an id given out twice");
    Ok(())
}

fn ticking() -> Result<()> {
    let signal = libc::SIGRTMIN() + 1;
    block(signal)?;
    let timer = create(libc::CLOCK_MONOTONIC, libc::SIGEV_SIGNAL, signal, 5, 0)?;
    arm(timer, Duration::from_millis(30), Duration::from_millis(30))?;
    zdtm::checkpoint()?;
    for count in 0..5 {
        let info =
            zdtm::Context::with_context(arrives(signal), || format!("tick {count} is missing"))?;
        // SAFETY: a timer's siginfo carries its value.
        check_eq!(unsafe { info.si_value() }.sival_ptr.addr(), 5);
    }
    Ok(())
}

/// Missed ticks count as overruns of the one signal that is pending.
fn overrun() -> Result<()> {
    let signal = libc::SIGRTMIN() + 1;
    block(signal)?;
    let timer = create(libc::CLOCK_MONOTONIC, libc::SIGEV_SIGNAL, signal, 0, 0)?;
    arm(timer, Duration::from_millis(1), Duration::from_millis(1))?;
    std::thread::sleep(Duration::from_millis(120));
    zdtm::checkpoint()?;
    check!(arrives(signal).is_some(), "no tick");
    // SAFETY: the timer exists.
    let missed = unsafe { libc::timer_getoverrun(timer) };
    check!(missed >= 100, "{missed} overruns, should be 120 and more");
    Ok(())
}
