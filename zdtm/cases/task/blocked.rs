//! Tasks dumped while they sleep in the kernel: the call goes on as if nothing had happened.
//!
//! A sleeper is a thread; the main thread looks at the clock every few milliseconds meanwhile, so it knows how long
//! everything stood still. A sleep for a set time may end later by that outage, or not; it must not end early, not
//! start anew, and not fail with EINTR.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libc::{c_int, c_long, timespec};
use zdtm::{Case, Result, check, check_eq};

pub(crate) const CASES: &[Case] = &[
    Case::new("blocked-nanosleep", || timed(nanosleep)),
    Case::new("blocked-clock-nanosleep-absolute", || {
        timed(clock_nanosleep)
    }),
    Case::new("blocked-poll", || timed(poll)),
    Case::new("blocked-ppoll", || timed(ppoll)),
    Case::new("blocked-select", || timed(select)),
    Case::new("blocked-pselect", || timed(pselect)),
    Case::new("blocked-futex-timeout", || timed(futex)),
    Case::new("blocked-futex-absolute", || timed(futex_absolute)),
    Case::new("blocked-epoll-wait", || timed(epoll)),
    Case::new("blocked-sigtimedwait", || timed(sigtimedwait)),
    Case::new("blocked-semtimedop", || timed(semtimedop)).stays(OUTSIDE),
    Case::new("blocked-poll-forever", || woken(Waker::Pipe, poll_pipe)),
    Case::new("blocked-read-pipe", || woken(Waker::Pipe, read_pipe)),
    Case::new("blocked-epoll-forever", || woken(Waker::Pipe, epoll_pipe)),
    Case::new("blocked-splice", || woken(Waker::Pipe, splice)),
    Case::new("blocked-wait", || woken(Waker::Child, wait4)),
    Case::new("blocked-flock", || woken(Waker::Lock, flock)).options(&["--file-locks"]),
    Case::new("blocked-msgrcv", || woken(Waker::Message, msgrcv)).stays(OUTSIDE),
    Case::new("blocked-futex", || woken(Waker::Futex, futex_forever)),
    Case::new("blocked-pause", || woken(Waker::Signal, pause)),
    Case::new("blocked-sigsuspend", || woken(Waker::Signal, sigsuspend)),
    Case::new("blocked-sigwait", || woken(Waker::Blocked, sigwait)),
];

/// Why some stay where they are.
const OUTSIDE: &str = "its IPC namespace is not dumped with it";

/// How long the timed sleeps take, and how much of that is over when the dump begins.
const LENGTH: Duration = Duration::from_millis(1200);
const BEFORE: Duration = Duration::from_millis(700);

/// What a call returned: its value, or the negative errno.
fn raw(number: c_long, arguments: [usize; 6]) -> i64 {
    // SAFETY: the callers below pass addresses of locals that live through the call.
    unsafe { zdtm::syscall(number, arguments) }
        .unwrap_or_else(|error| -i64::from(error.raw_os_error().unwrap_or(0)))
}

/// The same of a call that not every machine has: whatever its C library makes of it.
fn by_libc(returned: c_int) -> i64 {
    match zdtm::ret(returned) {
        Ok(value) => value.into(),
        Err(error) => -i64::from(error.raw_os_error().unwrap_or(0)),
    }
}

fn address<T>(value: &T) -> usize {
    std::ptr::from_ref(value).addr()
}

fn timed(sleep: fn(Duration) -> (i64, i64)) -> Result<()> {
    let started = Instant::now();
    let thread = std::thread::spawn(move || {
        block(TERM);
        let result = (sleep(LENGTH), Instant::now());
        // Stays, so that it shows what the call returned and not that a thread is missing.
        zdtm::wait();
        result
    });
    std::thread::sleep(BEFORE);
    zdtm::ready()?;
    let (mut outage, mut behind) = (Duration::ZERO, Duration::ZERO);
    let mut last = Instant::now();
    while !zdtm::over() {
        std::thread::sleep(Duration::from_millis(5));
        // Whenever we did not run; a loaded machine has more of that than the one between dump and restore.
        if last.elapsed() > Duration::from_millis(20) {
            outage += last.elapsed();
        }
        let now = Instant::now();
        // Another machine was started later, and its kernel has no time namespaces to make up for it.
        behind += last.saturating_duration_since(now);
        last = now;
    }
    let ((found, wanted), ended) = join(thread)?;
    let took = (ended + behind).saturating_duration_since(started);
    // How long before the dump the clock was read last, nobody knows.
    let slack = match behind.is_zero() {
        true => Duration::from_millis(1),
        false => Duration::from_millis(200),
    };
    check_eq!(found, wanted, "what the call returned, after {took:?}");
    check!(
        took + slack >= LENGTH,
        "ended early: {took:?} of {LENGTH:?}"
    );
    // An absolute time comes as much later as the clock is behind.
    let most = LENGTH + outage + behind + Duration::from_millis(350);
    check!(
        took < most,
        "took {took:?} of {LENGTH:?} with an outage of {outage:?}: started anew?"
    );
    Ok(())
}

/// The signal that means "check": it is for the main thread, and would interrupt a sleeper.
const TERM: u128 = 1 << (libc::SIGTERM - 1);

/// Bytes of a set of signals, as the kernel has it: MIPS has twice as many signals as the others.
fn set_size() -> usize {
    usize::try_from(libc::SIGRTMAX()).map_or(0, |last| last.div_ceil(8))
}

fn block(set: u128) {
    let how = usize::try_from(libc::SIG_BLOCK).unwrap_or(0);
    raw(
        libc::SYS_rt_sigprocmask,
        [how, address(&set), 0, set_size(), 0, 0],
    );
}

fn join<T>(thread: JoinHandle<T>) -> Result<T> {
    thread
        .join()
        .or_else(|_| zdtm::bail!("the sleeper panicked"))
}

fn spec(duration: Duration) -> timespec {
    timespec {
        tv_sec: duration.as_secs().try_into().unwrap_or(0),
        tv_nsec: duration.subsec_nanos().try_into().unwrap_or(0),
    }
}

/// Now on CLOCK_MONOTONIC, plus so much.
fn from_now(duration: Duration) -> timespec {
    let mut now = timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the time lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let more = spec(duration);
    let nanos = now.tv_nsec + more.tv_nsec;
    timespec {
        tv_sec: now.tv_sec + more.tv_sec + libc::time_t::from(nanos >= 1_000_000_000),
        tv_nsec: nanos % 1_000_000_000,
    }
}

fn millis(length: Duration) -> c_int {
    c_int::try_from(length.as_millis()).unwrap_or(0)
}

const AGAIN: i64 = -(libc::EAGAIN as i64);
const TIMED_OUT: i64 = -(libc::ETIMEDOUT as i64);

fn nanosleep(length: Duration) -> (i64, i64) {
    (
        raw(libc::SYS_nanosleep, [address(&spec(length)), 0, 0, 0, 0, 0]),
        0,
    )
}

fn clock_nanosleep(length: Duration) -> (i64, i64) {
    let time = from_now(length);
    (
        raw(libc::SYS_clock_nanosleep, [1, 1, address(&time), 0, 0, 0]),
        0,
    ) // CLOCK_MONOTONIC, TIMER_ABSTIME
}

fn poll(length: Duration) -> (i64, i64) {
    // SAFETY: no descriptors.
    let found = unsafe { libc::poll(std::ptr::null_mut(), 0, millis(length)) };
    (by_libc(found), 0)
}

fn ppoll(length: Duration) -> (i64, i64) {
    let (time, mask) = (spec(length), TERM);
    (
        raw(
            libc::SYS_ppoll,
            [0, 0, address(&time), address(&mask), set_size(), 0],
        ),
        0,
    )
}

fn select(length: Duration) -> (i64, i64) {
    let micros = (length - Duration::from_secs(1)).subsec_micros();
    let mut time = libc::timeval {
        tv_sec: 1,
        tv_usec: micros.try_into().unwrap_or(0),
    };
    let none = std::ptr::null_mut();
    // SAFETY: no descriptors, and a time that lives through the call.
    let found = unsafe { libc::select(0, none, none, none, &raw mut time) };
    (by_libc(found), 0)
}

fn pselect(length: Duration) -> (i64, i64) {
    (
        raw(libc::SYS_pselect6, [0, 0, 0, 0, address(&spec(length)), 0]),
        0,
    )
}

fn futex(length: Duration) -> (i64, i64) {
    let word = AtomicU32::new(0);
    (
        raw(
            libc::SYS_futex,
            [address(&word), 128, 0, address(&spec(length)), 0, 0],
        ),
        TIMED_OUT,
    )
}

fn futex_absolute(length: Duration) -> (i64, i64) {
    let (word, time) = (AtomicU32::new(0), from_now(length));
    // FUTEX_WAIT_BITSET, any bit.
    (
        raw(
            libc::SYS_futex,
            [address(&word), 9 | 128, 0, address(&time), 0, 0xffff_ffff],
        ),
        TIMED_OUT,
    )
}

fn epoll(length: Duration) -> (i64, i64) {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: room for one event.
    let found = unsafe {
        let fd = libc::epoll_create1(0);
        libc::epoll_wait(fd, &raw mut event, 1, millis(length))
    };
    (by_libc(found), 0)
}

fn sigtimedwait(length: Duration) -> (i64, i64) {
    let set = 1u128 << (libc::SIGUSR2 - 1);
    (
        raw(
            libc::SYS_rt_sigtimedwait,
            [address(&set), 0, address(&spec(length)), set_size(), 0, 0],
        ),
        AGAIN,
    )
}

/// On a semaphore that is gone at once when nobody uses it any more.
fn semtimedop(length: Duration) -> (i64, i64) {
    let id = usize::try_from(raw(libc::SYS_semget, [0, 1, 0o600, 0, 0, 0])).unwrap_or(usize::MAX);
    let take = libc::sembuf {
        sem_num: 0,
        sem_op: -1,
        sem_flg: 0,
    };
    let found = raw(
        libc::SYS_semtimedop,
        [id, address(&take), 1, address(&spec(length)), 0, 0],
    );
    raw(libc::SYS_semctl, [id, 0, 0, 0, 0, 0]);
    (found, AGAIN)
}

/// How the main thread ends a sleep that has no end of its own.
#[derive(Clone, Copy)]
enum Waker {
    /// Writes a byte into the pipe.
    Pipe,
    /// Sets and wakes the futex word.
    Futex,
    /// Lets the child exit.
    Child,
    /// Gives up the lock on the file.
    Lock,
    /// Sends a message to the queue.
    Message,
    /// Sends SIGUSR1, which has a handler.
    Signal,
    /// Sends SIGUSR1, which the sleeper has blocked.
    Blocked,
}

static WORD: AtomicU32 = AtomicU32::new(0);
static SLEEPER: AtomicI32 = AtomicI32::new(0);
static RETURNED: AtomicBool = AtomicBool::new(false);

extern "C" fn ignore(_: c_int) {}

/// A sleep that must last until it is woken after the restore, and not end before.
fn woken(waker: Waker, sleep: fn(usize) -> (i64, i64)) -> Result<()> {
    let (reader, writer): (OwnedFd, OwnedFd) = nix::unistd::pipe()?;
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGUSR1, ignore as *const () as usize) };
    let fd = usize::try_from(reader.as_raw_fd())?;
    let lock = std::fs::File::create(zdtm::dir().join("lock"))?;
    if matches!(waker, Waker::Lock) {
        // SAFETY: takes no address.
        zdtm::ret(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) })?;
    }
    let child = match waker {
        Waker::Child => Some(zdtm::Child::spawn("waited for", || {
            zdtm::Child::checkpoint();
            Ok(())
        })?),
        _ => None,
    };
    let thread = std::thread::spawn(move || {
        block(TERM);
        if matches!(waker, Waker::Blocked) {
            block(1 << (libc::SIGUSR1 - 1));
        }
        SLEEPER.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst);
        let result = sleep(fd);
        RETURNED.store(true, Ordering::SeqCst);
        zdtm::wait();
        result
    });
    while SLEEPER.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(20));
    zdtm::checkpoint()?;
    std::thread::sleep(Duration::from_millis(50));
    if RETURNED.load(Ordering::SeqCst) {
        let (found, wanted) = join(thread)?;
        zdtm::bail!("returned {found} by itself, should be {wanted} once woken");
    }
    match waker {
        Waker::Pipe => {
            nix::unistd::write(&writer, b"x")?;
        }
        Waker::Child => {
            let child = zdtm::Context::context(child, "no child")?;
            nix::sys::signal::kill(child.pid(), nix::sys::signal::SIGTERM)?;
        }
        Waker::Lock => drop(lock),
        Waker::Message => {
            let queue = usize::try_from(WORD.load(Ordering::SeqCst))?;
            let message = [5u64, 0];
            raw(libc::SYS_msgsnd, [queue, address(&message), 8, 0, 0, 0]);
        }
        Waker::Futex => {
            WORD.store(1, Ordering::SeqCst);
            raw(libc::SYS_futex, [WORD.as_ptr().addr(), 1 | 128, 1, 0, 0, 0]);
        }
        Waker::Signal | Waker::Blocked => {
            let (process, thread) = (std::process::id(), SLEEPER.load(Ordering::SeqCst));
            let number = usize::try_from(libc::SIGUSR1)?;
            raw(
                libc::SYS_tgkill,
                [
                    usize::try_from(process)?,
                    usize::try_from(thread)?,
                    number,
                    0,
                    0,
                    0,
                ],
            );
        }
    }
    let (found, wanted) = join(thread)?;
    check_eq!(found, wanted, "what the call returned");
    Ok(())
}

const INTERRUPTED: i64 = -(libc::EINTR as i64);

fn poll_pipe(fd: usize) -> (i64, i64) {
    let mut entry = libc::pollfd {
        fd: c_int::try_from(fd).unwrap_or(-1),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, which lives through the call.
    (by_libc(unsafe { libc::poll(&raw mut entry, 1, -1) }), 1)
}

fn read_pipe(fd: usize) -> (i64, i64) {
    let buffer = [0u8; 4];
    (raw(libc::SYS_read, [fd, address(&buffer), 4, 0, 0, 0]), 1)
}

fn epoll_pipe(fd: usize) -> (i64, i64) {
    let mut event = libc::epoll_event { events: 1, u64: 7 };
    let fd = c_int::try_from(fd).unwrap_or(-1);
    // SAFETY: the event lives through the calls, which have room for one.
    let found = unsafe {
        let epoll = libc::epoll_create1(0);
        libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event);
        libc::epoll_wait(epoll, &raw mut event, 1, -1)
    };
    (by_libc(found), 1)
}

fn splice(fd: usize) -> (i64, i64) {
    let file =
        std::fs::File::create(zdtm::dir().join("splice")).map(std::os::fd::IntoRawFd::into_raw_fd);
    let file = file
        .ok()
        .and_then(|fd| usize::try_from(fd).ok())
        .unwrap_or(usize::MAX);
    (raw(libc::SYS_splice, [fd, 0, file, 0, 1, 0]), 1)
}

fn futex_forever(_: usize) -> (i64, i64) {
    (
        raw(libc::SYS_futex, [WORD.as_ptr().addr(), 128, 0, 0, 0, 0]),
        0,
    )
}

fn wait4(_: usize) -> (i64, i64) {
    let (found, status) = {
        let status = 0u64;
        (
            raw(libc::SYS_wait4, [usize::MAX, address(&status), 0, 0, 0, 0]),
            status,
        )
    };
    (i64::from(found > 0 && status == 0), 1)
}

fn flock(_: usize) -> (i64, i64) {
    let file = std::fs::File::open(zdtm::dir().join("lock"));
    let fd = file
        .as_ref()
        .ok()
        .and_then(|file| usize::try_from(file.as_raw_fd()).ok());
    (
        raw(libc::SYS_flock, [fd.unwrap_or(usize::MAX), 2, 0, 0, 0, 0]),
        0,
    ) // LOCK_EX
}

/// From a queue that is removed once the message has come.
fn msgrcv(_: usize) -> (i64, i64) {
    let queue = raw(libc::SYS_msgget, [0, 0o600, 0, 0, 0, 0]);
    WORD.store(u32::try_from(queue).unwrap_or(0), Ordering::SeqCst);
    let (queue, message) = (usize::try_from(queue).unwrap_or(usize::MAX), [0u64; 2]);
    let found = raw(libc::SYS_msgrcv, [queue, address(&message), 8, 0, 0, 0]);
    raw(libc::SYS_msgctl, [queue, 0, 0, 0, 0, 0]);
    (found, 8)
}

fn pause(_: usize) -> (i64, i64) {
    // SAFETY: takes nothing.
    (by_libc(unsafe { libc::pause() }), INTERRUPTED)
}

fn sigsuspend(_: usize) -> (i64, i64) {
    let mask = TERM | 1 << (libc::SIGUSR2 - 1);
    (
        raw(
            libc::SYS_rt_sigsuspend,
            [address(&mask), set_size(), 0, 0, 0, 0],
        ),
        INTERRUPTED,
    )
}

fn sigwait(_: usize) -> (i64, i64) {
    let set = 1u128 << (libc::SIGUSR1 - 1);
    (
        raw(
            libc::SYS_rt_sigtimedwait,
            [address(&set), 0, 0, set_size(), 0, 0],
        ),
        i64::from(libc::SIGUSR1),
    )
}
