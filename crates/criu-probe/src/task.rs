//! Tasks: identity, signals, ptrace.

use std::fs;

use criu_tracee::{Error, Hold, Sysno};
use nix::errno::Errno;
use nix::sys::ptrace;

use crate::feature::{Answer, Lack, judge, require, unreadable};
use crate::scratch::{Scratch, lack, try_once};

/// Pids are chosen by clone3(2), or before Linux 5.5 by writing the last one given out.
pub(crate) fn choose_pid() -> Answer {
    clone3_set_tid().or_else(|lack| match fs::exists("/proc/sys/kernel/ns_last_pid") {
        Ok(true) => Ok(()),
        _ => Err(lack),
    })
}

/// A list of pids that cannot be read is `EFAULT`; a kernel that has no such list finds the structure too big.
pub(crate) fn clone3_set_tid() -> Answer {
    try_once("clone3", &[Errno::EFAULT], |program| {
        let mut args = [0u64; 10];
        (args[8], args[9]) = (1, 1); // set_tid, set_tid_size
        let args = program.bytes(words(&args));
        program.clone3(args, 80)
    })
}

const KCMP_VM: i32 = 1;
const KCMP_EPOLL_TFD: i32 = 7;

pub(crate) fn kcmp() -> Answer {
    let mut task = Scratch::new()?;
    let pid = task.pid();
    let same = task.ask(|program| {
        program.call(
            Sysno::kcmp,
            [pid.into(), pid.into(), KCMP_VM.into(), 0.into(), 0.into()],
        )
    })?;
    judge("kcmp", same, &[])
}

pub(crate) fn kcmp_epoll() -> Answer {
    let mut task = Scratch::new()?;
    let pid = task.pid();
    let event = task.fd(|program| program.eventfd2(0, 0))?;
    let epoll = task.fd(|program| program.epoll_create1(0))?;
    let found = task.ask(|program| {
        let interest = program.bytes([0; 16]);
        program.epoll_ctl(epoll, libc::EPOLL_CTL_ADD, event, interest);
        let slot: Vec<u8> = [epoll, event, 0]
            .iter()
            .flat_map(|word| low_half(*word))
            .collect();
        let slot = program.bytes(slot);
        program.call(
            Sysno::kcmp,
            [
                pid.into(),
                pid.into(),
                KCMP_EPOLL_TFD.into(),
                event.into(),
                slot.into(),
            ],
        )
    })?;
    judge("kcmp", found, &[])
}

pub(crate) fn pidfd() -> Answer {
    let mut task = Scratch::new()?;
    let pid = task.pid();
    let pidfd = task.fd(|program| program.pidfd_open(pid, 0))?;
    let fetched = task.ask(|program| program.pidfd_getfd(pidfd, pidfd, 0))?;
    judge("pidfd_getfd", fetched, &[])
}

pub(crate) fn ns_pid() -> Answer {
    let status = fs::read_to_string("/proc/self/status")
        .map_err(|error| unreadable("/proc/self/status", &error))?;
    require(status.contains("\nNSpid:"), "/proc/PID/status has no NSpid")
}

/// All 52 fields, and the addresses among them, which are zero for strangers.
pub(crate) fn stat() -> Answer {
    let stat = fs::read_to_string("/proc/self/stat")
        .map_err(|error| unreadable("/proc/self/stat", &error))?;
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .collect();
    // The third field of the manual page is the first after the name.
    require(
        fields.len() >= 50 && fields[45 - 3] != "0",
        "/proc/PID/stat has no start_data",
    )
}

pub(crate) fn loginuid() -> Answer {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/proc/self/loginuid")
        .map(drop)
        .map_err(|error| unreadable("/proc/self/loginuid", &error))
}

/// A task may queue itself any signal with any code, also the codes of the kernel.
pub(crate) fn queue_signal() -> Answer {
    let mut task = Scratch::new()?;
    queued(&mut task)
}

pub(crate) fn peek_signal() -> Answer {
    let mut task = Scratch::new()?;
    queued(&mut task)?;
    let signals = task
        .stopped()?
        .queued(false)
        .map_err(|error| lack(&error))?;
    require(
        signals.iter().any(|info| info.signal() == libc::SIGUSR2),
        "PTRACE_PEEKSIGINFO shows no queued signal",
    )
}

fn queued(task: &mut Scratch) -> Answer {
    let pid = task.pid();
    // Signal number and three zeros: SI_USER is a code of the kernel's.
    let mut info = libc::SIGUSR2.to_ne_bytes().to_vec();
    info.resize(128, 0);
    let sent = task.ask(|program| {
        // Only this one: the stub stops by a signal, too.
        let mut mask = (1u64 << (libc::SIGUSR2 - 1)).to_le_bytes().to_vec();
        mask.resize(mask_size(), 0);
        let mask = program.bytes(mask);
        program.rt_sigprocmask(libc::SIG_BLOCK, mask, 0, mask_size());
        let info = program.bytes(info);
        program.rt_tgsigqueueinfo(pid, pid, libc::SIGUSR2, info)
    })?;
    judge("rt_tgsigqueueinfo", sent, &[])
}

/// MIPS has 128 signals; its libc numbers SIGCHLD differently, too.
fn mask_size() -> usize {
    if libc::SIGCHLD == 18 { 16 } else { 8 }
}

pub(crate) fn seccomp_suspend() -> Answer {
    let task = Scratch::new()?;
    task.stopped()?
        .suspend_seccomp(Hold::Restore)
        .map_err(|error| lack(&error))
}

/// Gives a task a filter that allows everything and reads it back.
pub(crate) fn seccomp_filters() -> Answer {
    const ALLOW: [u8; 8] = [0x06, 0, 0, 0, 0, 0, 0xff, 0x7f];
    let mut task = Scratch::new()?;
    let set = task.ask(|program| {
        program.prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        let code = program.bytes(ALLOW);
        // struct sock_fprog: a length and an address.
        let mut filter = vec![0; 2 * size_of::<usize>()];
        filter[..2].copy_from_slice(&1u16.to_ne_bytes());
        let filter = program.bytes(filter);
        program.link(filter, size_of::<usize>(), code);
        program.seccomp(1, 0, filter)
    })?;
    judge("seccomp", set, &[])?;
    match task.stopped()?.seccomp_filter(0) {
        Ok(Some((code, _))) => require(
            code == ALLOW,
            "PTRACE_SECCOMP_GET_FILTER gives another filter",
        ),
        Ok(None) => Err(Lack::missing("PTRACE_SECCOMP_GET_FILTER gives no filter")),
        Err(error) => Err(lack(&error)),
    }
}

pub(crate) fn rseq() -> Answer {
    let task = Scratch::new()?;
    let conf = task.stopped()?.rseq().map_err(|error| lack(&error))?;
    require(conf.is_some(), "PTRACE_GET_RSEQ_CONFIGURATION")
}

/// `PR_TIMER_CREATE_RESTORE_IDS`, Linux 6.15.
pub(crate) fn timer_ids() -> Answer {
    const RESTORE_IDS: i32 = 77;
    const GET: i32 = 2;
    try_once("prctl(PR_TIMER_CREATE_RESTORE_IDS)", &[], |program| {
        program.prctl(RESTORE_IDS, GET, 0, 0, 0)
    })
}

/// Sets a debug register and reads it back.
pub(crate) fn breakpoints() -> Answer {
    // struct user: u_debugreg, `arch/x86/include/asm/user_64.h`.
    const DEBUG_REGISTERS: usize = 848;
    if std::env::consts::ARCH != "x86_64" {
        return Err(Lack::unknown("only tried on x86_64"));
    }
    let task = Scratch::new()?;
    let tid = task.stopped()?.tid();
    let register = |number: usize| std::ptr::without_provenance_mut(DEBUG_REGISTERS + 8 * number);
    let kernel = |errno| {
        lack(&Error::Kernel {
            call: "ptrace(PTRACE_POKEUSER)",
            errno,
        })
    };
    ptrace::write_user(tid, register(0), 0x1000).map_err(kernel)?;
    ptrace::write_user(tid, register(7), 1).map_err(kernel)?;
    let control = ptrace::read_user(tid, register(7)).map_err(kernel)?;
    require(
        control & 1 == 1,
        "the debug registers do not keep what is set",
    )
}

/// Words of 64 bits.
pub(crate) fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn low_half(word: i64) -> [u8; 4] {
    i32::try_from(word).unwrap_or(-1).to_ne_bytes()
}
