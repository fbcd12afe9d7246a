//! How the scheduler treats a thread.

use std::io;

use libc::c_int;
use zdtm::{Case, Child, Context, Result, check, check_eq, ret, skip};

pub(crate) const CASES: &[Case] = &[
    Case::new("sched-policy", policy),
    Case::new("sched-reset-on-fork", reset_on_fork),
    Case::new("sched-deadline", deadline),
    Case::new("nice", nice),
    Case::new("affinity", affinity),
    Case::new("ioprio", ioprio),
    Case::new("timerslack", timerslack),
];

fn set(policy: c_int, priority: c_int) -> io::Result<()> {
    let parameter = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the parameter lives through the call.
    ret(unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) }).map(drop)
}

fn get() -> Result<(c_int, c_int)> {
    let mut parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter lives through the call.
    ret(unsafe { libc::sched_getparam(0, &raw mut parameter) })?;
    // SAFETY: takes no address.
    let policy = ret(unsafe { libc::sched_getscheduler(0) })?;
    Ok((policy, parameter.sched_priority))
}

/// Real-time policies, batch and idle.
fn policy() -> Result<()> {
    let wanted = [
        (libc::SCHED_FIFO, 7),
        (libc::SCHED_RR, 99),
        (libc::SCHED_RR, 1),
        (libc::SCHED_BATCH, 0),
        (libc::SCHED_IDLE, 0),
        (libc::SCHED_OTHER, 0),
    ];
    let children = wanted
        .into_iter()
        .map(|(policy, priority)| {
            Child::spawn(format!("policy {policy}"), move || {
                set(policy, priority)?;
                Child::checkpoint();
                check_eq!(get()?, (policy, priority));
                Ok(())
            })
        })
        .collect::<Result<Vec<_>>>()?;
    zdtm::checkpoint()?;
    children.into_iter().try_for_each(Child::finish)
}

fn reset_on_fork() -> Result<()> {
    let child = Child::spawn("child", || {
        set(libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, 3)?;
        Child::checkpoint();
        check_eq!(get()?, (libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, 3));
        let reset = Child::spawn("grandchild", || {
            check_eq!(get()?, (libc::SCHED_OTHER, 0));
            Ok(())
        })?;
        reset.join()
    })?;
    zdtm::checkpoint()?;
    child.finish()
}

/// `struct sched_attr`, first version.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

fn deadline() -> Result<()> {
    const SIZE: u32 = 48;
    let get = || -> Result<Attributes> {
        let mut attributes = Attributes::default();
        // SAFETY: the kernel writes as many bytes as it is told there are.
        ret(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) })?;
        Ok(attributes)
    };
    let wanted = Attributes {
        size: SIZE,
        policy: 6, // SCHED_DEADLINE
        runtime: 1_000_000,
        deadline: 20_000_000,
        period: 50_000_000,
        ..Attributes::default()
    };
    // Tried in a process that is gone again: a bandwidth to spare is not everywhere.
    // SAFETY: the structure is the kernel's.
    let set =
        move || ret(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) });
    if Child::spawn("probe", move || set().map(drop).context("SCHED_DEADLINE"))
        .and_then(Child::join)
        .is_err()
    {
        let _ = std::fs::remove_file(zdtm::dir().join("failures"));
        return skip("no SCHED_DEADLINE here");
    }
    let child = Child::spawn("child", move || {
        set()?;
        let before = get()?;
        Child::checkpoint();
        check_eq!(get()?, before);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()
}

fn nice() -> Result<()> {
    let children = [-20, -1, 5, 19]
        .into_iter()
        .map(|nice| {
            Child::spawn(format!("nice {nice}"), move || {
                // SAFETY: takes no address.
                ret(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) })?;
                Child::checkpoint();
                check_eq!(zdtm::stat_field("self", 19)?, nice.to_string());
                Ok(())
            })
        })
        .collect::<Result<Vec<_>>>()?;
    zdtm::checkpoint()?;
    children.into_iter().try_for_each(Child::finish)
}

/// Bound to the first of several CPUs.
fn affinity() -> Result<()> {
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    let own = nix::unistd::Pid::from_raw(0);
    let all = sched_getaffinity(own)?;
    let cpus: Vec<usize> = (0..CpuSet::count())
        .filter(|cpu| all.is_set(*cpu).unwrap_or(false))
        .collect();
    if cpus.len() < 2 {
        return skip("one CPU only");
    }
    let child = Child::spawn("child", move || {
        let mut one = CpuSet::new();
        one.set(cpus[0])?;
        sched_setaffinity(own, &one)?;
        Child::checkpoint();
        check_eq!(sched_getaffinity(own)?, one);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    check_eq!(sched_getaffinity(own)?, all);
    child.finish()
}

fn ioprio() -> Result<()> {
    // Best effort, level 7; idle.
    let children = [2usize << 13 | 7, 3 << 13]
        .into_iter()
        .map(|priority| {
            Child::spawn(format!("ioprio {priority:#x}"), move || {
                // SAFETY: takes no address.
                unsafe { zdtm::syscall(libc::SYS_ioprio_set, [1, 0, priority, 0, 0, 0]) }?;
                Child::checkpoint();
                // SAFETY: takes no address.
                let found = unsafe { zdtm::syscall(libc::SYS_ioprio_get, [1, 0, 0, 0, 0, 0]) }?;
                check_eq!(usize::try_from(found)?, priority);
                Ok(())
            })
        })
        .collect::<Result<Vec<_>>>()?;
    zdtm::checkpoint()?;
    children.into_iter().try_for_each(Child::finish)
}

fn timerslack() -> Result<()> {
    // SAFETY: takes no address.
    let prctl = |option, value: libc::c_ulong| ret(unsafe { libc::prctl(option, value) });
    let child = Child::spawn("child", move || {
        prctl(libc::PR_SET_TIMERSLACK, 123_456)?;
        Child::checkpoint();
        check_eq!(prctl(libc::PR_GET_TIMERSLACK, 0)?, 123_456);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    check!(prctl(libc::PR_GET_TIMERSLACK, 0)? != 123_456);
    child.finish()
}
