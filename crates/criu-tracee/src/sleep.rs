//! How long a thread has been asleep in a call that wants to wait for so long.
//!
//! A call whose timeout counts from when it was made can only be made again with what is left of it. The
//! kernel tells nobody what is left, so it is computed: from when the scheduler last saw the thread
//! (`se.exec_start` in `/proc/PID/task/TID/sched`), read before the stop wakes it. That is the clock of
//! the run queue, which differs from processor to processor; so the tracer asks itself on each of them
//! what time it is there.
//!
//! A thread that was woken in vain and fell asleep again has waited longer than this finds. One that
//! has run since it was looked at counts as not having slept. So a wait may become longer, never shorter.
//! Where the kernel has no such file (`CONFIG_SCHED_DEBUG`) nobody has slept.
//!
//! `kernel/sched/debug.c`, `proc_sched_show_task`; `update_curr` in `kernel/sched/fair.c`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use criu_arch::Arch;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::look::{self, read_text};
use crate::native::Native;

/// A call: its number, its arguments, and the instruction pointer behind it.
type Call = (u64, [u64; 6], u64);

/// The sleep that a stop has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sleep {
    pub(crate) call: Call,
    pub(crate) lasted: Duration,
}

/// A sleeper, as it was before it was stopped.
#[derive(Clone, Copy, Debug)]
struct Nap {
    call: Call,
    cpu: usize,
    /// On the clock of that processor, in nanoseconds.
    since: u64,
    switches: u64,
}

/// Sleepers, and the time on their processors.
#[derive(Debug, Default)]
pub(crate) struct Naps {
    all: BTreeMap<Pid, Nap>,
    clocks: BTreeMap<usize, (u64, Instant)>,
}

impl Naps {
    /// Looks at threads that still run freely, each given with its process.
    pub(crate) fn of(tids: &[(Pid, Pid)]) -> Self {
        let naps = look::side_by_side(tids, |(pid, tid)| Some((*tid, nap(*pid, *tid)?)));
        let all: BTreeMap<Pid, Nap> = naps.into_iter().flatten().collect();
        let mut cpus: Vec<usize> = all.values().map(|nap| nap.cpu).collect();
        cpus.sort_unstable();
        cpus.dedup();
        Self {
            all,
            clocks: clocks(&cpus),
        }
    }

    /// Which call this thread, which is stopped by now, slept in when it was stopped, and for how long.
    pub(crate) fn of_stopped(&self, tid: Pid) -> Option<Sleep> {
        let nap = self.all.get(&tid)?;
        let (clock, read) = self.clocks.get(&nap.cpu)?;
        let (_, switches) = sched(&format!("/proc/{tid}/task/{tid}/sched"))?;
        // It went to the stop, and nowhere else.
        (switches == nap.switches + 1).then(|| Sleep {
            call: nap.call,
            lasted: Duration::from_nanos(clock.saturating_sub(nap.since)) + read.elapsed(),
        })
    }
}

fn nap(pid: Pid, tid: Pid) -> Option<Nap> {
    let call = read_text(&format!("/proc/{pid}/task/{tid}/syscall"))?;
    let call = call_of(&call)?;
    let (nr, args, _) = &call;
    if !Native::CALLS.rewound && !Native::may_time_out(*nr, args) {
        return None;
    }
    let (since, switches) = sched(&format!("/proc/{pid}/task/{tid}/sched"))?;
    let stat = read_text(&format!("/proc/{pid}/task/{tid}/stat"))?;
    // Field 39, the 37th after the name.
    let cpu = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(36)?;
    Some(Nap {
        call,
        cpu: cpu.parse().ok()?,
        since,
        switches,
    })
}

/// The call that a thread sleeps in: `NUMBER 0xARG … 0xSP 0xPC`.
fn call_of(text: &str) -> Option<Call> {
    let mut fields = text.split_ascii_whitespace();
    let nr = fields.next()?.parse().ok()?;
    let mut hex = || u64::from_str_radix(fields.next()?.strip_prefix("0x")?, 16).ok();
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = hex()?;
    }
    let _sp = hex()?;
    Some((nr, args, hex()?))
}

/// When the scheduler last looked at a thread, and how often it gave up its processor.
fn sched(path: &str) -> Option<(u64, u64)> {
    let text = read_text(path)?;
    let value = |name| {
        text.lines()
            .find_map(|line| Some(line.strip_prefix(name)?.split_once(':')?.1.trim()))
    };
    Some((
        nanos(value("se.exec_start")?)?,
        value("nr_voluntary_switches")?.parse().ok()?,
    ))
}

/// Milliseconds with six digits behind the point.
fn nanos(text: &str) -> Option<u64> {
    let (millis, rest) = text.split_once('.')?;
    let millis: u64 = millis.parse().ok()?;
    let rest: u64 = rest.parse().ok().filter(|_| rest.len() == 6)?;
    millis.checked_mul(1_000_000)?.checked_add(rest)
}

/// What time it is on each of these processors, where we may run.
fn clocks(cpus: &[usize]) -> BTreeMap<usize, (u64, Instant)> {
    let mut clocks = BTreeMap::new();
    let this = Pid::from_raw(0);
    if cpus.is_empty() {
        return clocks;
    }
    let Ok(home) = sched_getaffinity(this) else {
        return clocks;
    };
    for cpu in cpus {
        let mut only = CpuSet::new();
        if only.set(*cpu).is_err() || sched_setaffinity(this, &only).is_err() {
            continue;
        }
        // Brings our own entry up to date.
        std::thread::yield_now();
        if let Some((now, _)) = sched("/proc/thread-self/sched") {
            clocks.insert(*cpu, (now, Instant::now()));
        }
    }
    if let Err(error) = sched_setaffinity(this, &home) {
        tracing::debug!(%error, "the tracer stays on one processor");
    }
    clocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeper_tells_its_call() {
        let text = "230 0x0 0x0 0x7f0 0x7f4 0x0 0x0 0x7f8 0x7f79\n";
        let call = (230, [0, 0, 0x7f0, 0x7f4, 0, 0], 0x7f79);
        assert_eq!(call_of(text), Some(call));
        assert_eq!(call_of("running\n"), None);
        assert_eq!(call_of("-1 0x7ffe 0x40\n"), None);
    }

    #[test]
    fn times_of_the_scheduler() {
        assert_eq!(nanos("5212810.911052"), Some(5_212_810_911_052));
        assert_eq!(nanos("5"), None);
        assert_eq!(nanos("5.1"), None);
    }
}
