//! Signals that were sent but not delivered: to the process, to a thread, in order, with all they carry.

use libc::c_int;
use nix::unistd::{Pid, getpid, gettid, getuid};
use zdtm::{Case, Child, Result, Team, check, check_eq, ret};

pub(crate) const CASES: &[Case] = &[
    Case::new("pending-process", process),
    Case::new("pending-threads", threads),
    Case::new("pending-child-exit", child_exit),
    Case::new("sigtrap-ignored", sigtrap_ignored),
    Case::new("sigtrap-blocked", sigtrap_blocked),
    Case::new("sigtrap-handled", sigtrap_handled),
    Case::new("sigtrap-pending", sigtrap_pending)
        .refused("ptrace uses SIGTRAP, so a pending one cannot be told from its own"),
];

/// What arrives with a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Arrival {
    signal: c_int,
    code: c_int,
    pid: i32,
    uid: u32,
    value: usize,
}

fn set(signals: &[c_int]) -> libc::sigset_t {
    // SAFETY: the set is emptied before use.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        set
    }
}

fn block(signals: &[c_int]) -> Result<()> {
    let set = set(signals);
    // SAFETY: the set lives through the call.
    let failed =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    check_eq!(failed, 0);
    Ok(())
}

/// The next pending one of these signals; nothing if none is pending.
fn take(signals: &[c_int]) -> Option<Arrival> {
    let (set, now) = (
        set(signals),
        libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
    );
    // SAFETY: all zeroes is a valid siginfo to be written over.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: all three live through the call.
    let signal = unsafe { libc::sigtimedwait(&raw const set, &raw mut info, &raw const now) };
    // SAFETY: the signals used here carry pid, uid and value.
    (signal > 0).then(|| unsafe {
        Arrival {
            signal,
            code: info.si_code,
            pid: info.si_pid(),
            uid: info.si_uid(),
            value: info.si_value().sival_ptr.addr(),
        }
    })
}

fn take_all(signals: &[c_int]) -> Vec<Arrival> {
    std::iter::from_fn(|| take(signals)).collect()
}

/// A siginfo as sigqueue(3) makes it.
fn queue(target: Option<Pid>, signal: c_int, value: usize) -> Result<Arrival> {
    let arrival = Arrival {
        signal,
        code: libc::SI_QUEUE,
        pid: getpid().as_raw(),
        uid: getuid().as_raw(),
        value,
    };
    let word = size_of::<usize>();
    // What comes with a signal begins at a word behind three ints.
    let with = 12usize.next_multiple_of(word);
    // SAFETY: all zeroes is a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    (info.si_signo, info.si_code) = (signal, arrival.code);
    let at = (&raw mut info).cast::<u8>();
    // SAFETY: a siginfo has 128 bytes: pid, uid and value lie side by side, each aligned.
    unsafe {
        at.add(with).cast::<i32>().write(arrival.pid);
        at.add(with + 4).cast::<u32>().write(arrival.uid);
        at.add(with + 8).cast::<usize>().write(value);
    }
    let info = &raw const info;
    match target {
        // SAFETY: a siginfo is 128 bytes, which this is.
        None => ret(unsafe {
            libc::syscall(libc::SYS_rt_sigqueueinfo, getpid().as_raw(), signal, info)
        }),
        // SAFETY: as above.
        Some(thread) => ret(unsafe {
            libc::syscall(
                libc::SYS_rt_tgsigqueueinfo,
                getpid().as_raw(),
                thread.as_raw(),
                signal,
                info,
            )
        }),
    }?;
    Ok(arrival)
}

/// Ordinary ones merge; real-time ones queue, in order; lower numbers come first.
fn process() -> Result<()> {
    let low = libc::SIGRTMIN() + 2;
    let high = libc::SIGRTMAX();
    let all = [libc::SIGUSR1, libc::SIGIO, low, high];
    block(&all)?;
    let mut wanted = Vec::new();
    for value in 1..=5 {
        wanted.push(queue(None, low, value << (usize::BITS - 8) | 7)?);
    }
    for value in 1..=3 {
        wanted.push(queue(None, high, value)?);
    }
    // SAFETY: it is blocked.
    ret(unsafe { libc::kill(getpid().as_raw(), libc::SIGUSR1) })?;
    zdtm::checkpoint()?;
    let found = take_all(&[libc::SIGUSR1, libc::SIGIO]);
    check_eq!(found.len(), 1);
    check_eq!(
        (found[0].signal, found[0].code, found[0].pid),
        (libc::SIGUSR1, libc::SI_USER, getpid().as_raw())
    );
    check_eq!(take_all(&[low, high]), wanted);
    Ok(())
}

/// Threads with queues of their own, and one of the process that any may take.
fn threads() -> Result<()> {
    let signal = libc::SIGRTMIN() + 5;
    block(&[signal, libc::SIGUSR2])?;
    queue(None, signal, 999)?;
    let team = Team::start(4, move |index, set_up| {
        let wanted = (0..=index)
            .map(|number| queue(Some(gettid()), signal, 100 * index + number))
            .collect::<Result<Vec<_>>>()?;
        if index == 2 {
            // SAFETY: it is blocked; tgkill takes numbers.
            unsafe {
                zdtm::syscall(
                    libc::SYS_tgkill,
                    [
                        usize::try_from(getpid().as_raw())?,
                        usize::try_from(gettid().as_raw())?,
                        usize::try_from(libc::SIGUSR2)?,
                        0,
                        0,
                        0,
                    ],
                )
            }?;
        }
        set_up();
        zdtm::wait();
        // Own ones come before the shared one.
        let found: Vec<Arrival> = (0..=index).filter_map(|_| take(&[signal])).collect();
        check_eq!(found, wanted);
        let user = take(&[libc::SIGUSR2]);
        // The kernel says SI_TKILL; libc makes SI_USER of it.
        check_eq!(
            user.map(|arrival| arrival.code),
            (index == 2).then_some(libc::SI_USER)
        );
        Ok(())
    })?;
    zdtm::checkpoint()?;
    team.join()?;
    let shared: Vec<usize> = take_all(&[signal])
        .into_iter()
        .map(|arrival| arrival.value)
        .collect();
    check_eq!(shared, [999]);
    Ok(())
}

/// The SIGCHLD of a child that has exited stays what it is, while more of them do not add up.
fn child_exit() -> Result<()> {
    block(&[libc::SIGCHLD])?;
    // SAFETY: as in every child.
    let child = Child::spawn("exits", || unsafe { libc::_exit(9) })?;
    zdtm::wait_exit(child.pid())?;
    zdtm::checkpoint()?;
    let found = take_all(&[libc::SIGCHLD]);
    check_eq!(found.len(), 1);
    check_eq!(
        (found[0].code, found[0].pid),
        (libc::CLD_EXITED, child.pid().as_raw())
    );
    zdtm::exit_code(child.pid(), 9)
}

fn sigtrap_ignored() -> Result<()> {
    // SAFETY: ignoring is no code of ours.
    unsafe { libc::signal(libc::SIGTRAP, libc::SIG_IGN) };
    zdtm::checkpoint()?;
    // SAFETY: it is ignored.
    ret(unsafe { libc::raise(libc::SIGTRAP) })?;
    Ok(())
}

fn sigtrap_blocked() -> Result<()> {
    block(&[libc::SIGTRAP])?;
    zdtm::checkpoint()?;
    check!(take(&[libc::SIGTRAP]).is_none(), "nobody has sent one");
    Ok(())
}

static TRAPS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

extern "C" fn trap(_: c_int) {
    TRAPS.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
}

fn sigtrap_handled() -> Result<()> {
    // SAFETY: the handler counts in an atomic.
    unsafe { libc::signal(libc::SIGTRAP, trap as *const () as usize) };
    zdtm::checkpoint()?;
    check_eq!(TRAPS.load(std::sync::atomic::Ordering::SeqCst), 0);
    // SAFETY: it is handled.
    ret(unsafe { libc::raise(libc::SIGTRAP) })?;
    check_eq!(TRAPS.load(std::sync::atomic::Ordering::SeqCst), 1);
    Ok(())
}

fn sigtrap_pending() -> Result<()> {
    block(&[libc::SIGTRAP])?;
    queue(None, libc::SIGTRAP, 4)?;
    zdtm::checkpoint()?;
    check_eq!(
        take_all(&[libc::SIGTRAP])
            .into_iter()
            .map(|arrival| arrival.value)
            .collect::<Vec<_>>(),
        [4]
    );
    Ok(())
}
