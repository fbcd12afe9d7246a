//! `zdtm --arch`: the suite in guests, one for every machine and kernel, some at a time; or its two halves in guests that
//! differ in their kernels or processors.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use zdtm_runner::{Mode, Options};

use crate::args::Args;
use crate::machine::{self, Machine};
use crate::qemu::End;
use crate::trip::{self, Leg, Outcome, Terms, Trip};
use crate::{busybox, cpus, cross, emulator, kernel, peer, shell};

const USAGE: &str = "zdtm --arch NAME[,NAME]...|all [OPTION]...
  --kernel SERIES   6.1 (default), 6.12, or all that the machine has
  --upgrade A:B     dump under kernel A and restore under B, and the other way round
  --cpu MODEL       QEMU's name of the processor
  --cpu A:B         dump on A and restore on B, and the other way round: who needs more is refused, nobody else
  --cpu all         every change of processor that is known of the machine (xtask/src/cpus.rs)
  --jobs N          guests at a time (default: CPUs)
  --peer DIR        images go both ways between ours and the criu of the Debian system in DIR, and each to itself
  --quick           the cases that CI runs in guests
  --junit DIR       write a file for every guest there
and of the runner: --filter --exclude --mode --iterations --repeat --timeout --known --keep";

/// What CI runs in guests: each part of the driver once, and all that the machine has a say in.
const QUICK: &str = "cpu/,tree/group,tree/session,tree/zombie,tree/vfork,tree/wide,\
    task/blocked,task/capabilities,task/creds,task/robust,task/pending,task/seccomp-filter,task/sigaction,task/sigaltstack,\
    task/sigmask,task/stopped-threads,task/itimer,task/posix-timer-clocks,task/affinity,task/rlimits,task/personality,\
    mm/anon,mm/file-shared,mm/file-private,mm/vdso,mm/brk,mm/stack,mm/arguments,mm/shared-anon,mm/cow,mm/aio,\
    files/epoll-modes,files/eventfd,files/fifo-two,files/ghost-attributes,files/link-remap,files/inotify-queued,files/lock-,\
    files/memfd-,files/pidfd,files/pipe-packets,files/pipe-full,files/cwd-of,files/chroot,files/regular,files/signalfd,\
    files/fd-,files/timerfd,time/";

/// What a guest is made of cannot be had on this machine.
#[derive(Debug)]
pub(crate) struct Missing;

impl std::error::Error for Missing {}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("what guests are made of cannot be had here")
    }
}

/// Fetches what the guests of these machines are made of, as far as it is not there yet.
pub(crate) fn provide(machines: &str) -> Result<()> {
    for machine in machine::named(machines)? {
        let series = machine.kernels.first().context("a kernel")?;
        let provided = kernel::get(machine, series)
            .and_then(|_| cross::provide(machine))
            .and_then(|()| busybox::get(machine))
            .and_then(|_| emulator::command(machine, emulator::picky(machine, series)).map(drop));
        provided.map_err(|error| {
            let why = format!("{}: {error:#}", machine.name);
            anyhow::Error::new(Missing).context(why)
        })?;
    }
    Ok(())
}

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let mut args = Args::new(arguments);
    let Some(machines) = args.value::<String>("--arch")? else {
        return args.finish(USAGE);
    };
    let machines = machine::named(&machines)?;
    let way = Way {
        series: args.value("--kernel")?,
        upgrade: args.value("--upgrade")?,
        cpu: args.value("--cpu")?,
    };
    let jobs = args.value::<usize>("--jobs")?;
    let junit = args.value::<PathBuf>("--junit")?;
    let known = args.value::<PathBuf>("--known")?;
    let peer = args.value::<PathBuf>("--peer")?;
    let quick = args.flag("--quick");
    let mut words = args.rest(USAGE)?;
    words.extend(
        peer.iter()
            .flat_map(|_| peer::WORDS)
            .map(ToString::to_string),
    );
    words.extend(quick.then(|| format!("--filter={QUICK}")));
    // The runner in the guest would refuse them as well, but only after a build and a boot.
    let options = Options::parse(words.clone())?.context("no help here")?;
    let criu = options.modes.is_empty() || options.modes.iter().any(|mode| *mode != Mode::None);

    let mut trips = VecDeque::new();
    for machine in machines {
        trips.extend(way.trips(machine, criu)?);
    }
    let known = known.unwrap_or_else(|| "zdtm/known/criu-rs".into());
    let terms = Terms {
        known: &shell::root()?.join(known),
        peer: peer.as_deref(),
        words: &words,
        junit: junit.as_deref(),
        place: &shell::target()?.join("guest/runs"),
        tag: trips.len() > 1,
    };
    let jobs = jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    report(&all(trips, &terms, jobs)?)
}

/// Makes all trips, some at a time; the outcomes are in the order of the trips.
fn all(trips: VecDeque<Trip>, terms: &Terms<'_>, jobs: usize) -> Result<Vec<Outcome>> {
    let order: Vec<String> = trips.iter().map(|trip| trip.name.clone()).collect();
    let (queue, outcomes) = (Mutex::new(trips), Mutex::new(Vec::new()));
    let work = || -> Result<()> {
        loop {
            let next = queue
                .lock()
                .map_err(|_| anyhow!("a thread died"))?
                .pop_front();
            let Some(trip) = next else { return Ok(()) };
            let made = trip::make(&trip, terms).with_context(|| trip.name.clone())?;
            let mut outcomes = outcomes.lock().map_err(|_| anyhow!("a thread died"))?;
            outcomes.push((trip.name, made));
        }
    };
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow!("a thread died"))??;
        }
        Ok(())
    })?;
    let mut outcomes = outcomes
        .into_inner()
        .map_err(|_| anyhow!("a thread died"))?;
    outcomes.sort_by_key(|(name, _)| order.iter().position(|known| known == name));
    Ok(outcomes.into_iter().flat_map(|(_, made)| made).collect())
}

/// Which kernels and processors.
struct Way {
    series: Option<String>,
    upgrade: Option<String>,
    cpu: Option<String>,
}

impl Way {
    fn trips(&self, machine: &'static Machine, criu: bool) -> Result<Vec<Trip>> {
        let built = cross::build(machine, criu)?;
        let trip = |name: String, legs| Trip {
            name,
            machine,
            built: built.clone(),
            legs,
        };
        let half =
            |name: &str, what: &str, series: &str, cpu: &str, words: &[&str]| -> Result<Leg> {
                Ok(Leg {
                    name: format!("{name} {what}"),
                    kernel: kernel::get(machine, series)?,
                    cpu: cpu.to_owned(),
                    words: words.iter().map(|word| (*word).to_owned()).collect(),
                })
            };
        let mut trips = Vec::new();
        let cpu = self.cpu.as_deref().unwrap_or(machine.cpu);
        if let Some(upgrade) = &self.upgrade {
            let (old, new) = upgrade.split_once(':').context("--upgrade wants A:B")?;
            let cpu = self.cpu.as_deref().or(machine.same).unwrap_or(machine.cpu);
            for (from, to) in [(old, new), (new, old)] {
                let (from, to) = (series(machine, from)?, series(machine, to)?);
                let name = format!("{} {from}>{to}", machine.name);
                let dump = half(&name, "dump", from, cpu, &["--mode=dump"])?;
                let restore = half(&name, "restore", to, cpu, &["--mode=dumped"])?;
                trips.push(trip(name, vec![dump, restore]));
            }
        } else if cpu == "all" || cpu.contains(':') {
            let changes = cpus::named(machine, cpu);
            if changes.is_empty() && cpu != "all" {
                let known = cpus::named(machine, "all");
                let known = known
                    .iter()
                    .map(|change| format!("\n  {}:{}", change.from, change.to));
                let known: String = known.collect();
                bail!(
                    "nobody has written down what {cpu} does to {}; known are{known}",
                    machine.name
                );
            }
            for change in changes {
                let series = series(machine, self.series.as_deref().unwrap_or(change.kernel))?;
                let (there, back) = (change.all_need, change.all_need_back);
                for (from, to, lacks, all_need) in [
                    (change.from, change.to, change.lacks, there),
                    (change.to, change.from, &[][..], back),
                ] {
                    let name = format!("{}-{series} {from}>{to}", machine.name);
                    let dump = half(
                        &name,
                        "dump",
                        series,
                        from,
                        &["--mode=dump", "--plain-libc"],
                    )?;
                    let lacks = format!("--lacks={}", lacks.join(","));
                    let all_need = format!("--all-need={}", all_need.join(","));
                    let words = ["--mode=dumped", &lacks, &all_need];
                    let restore = half(&name, "restore", series, to, &words)?;
                    trips.push(trip(name, vec![dump, restore]));
                }
            }
        } else {
            let all = match self.series.as_deref() {
                Some("all") => machine.kernels.to_vec(),
                one => vec![series(machine, one.unwrap_or("6.1"))?],
            };
            for series in all {
                let name = format!("{}-{series}", machine.name);
                let mut leg = half(&name, "", series, cpu, &[])?;
                leg.name.clone_from(&name);
                trips.push(trip(name, vec![leg]));
            }
        }
        Ok(trips)
    }
}

/// A kernel that the machine has.
pub(crate) fn series(machine: &'static Machine, wanted: &str) -> Result<&'static str> {
    let known = machine.kernels.iter().find(|known| **known == wanted);
    match known {
        Some(known) => Ok(known),
        None => bail!(
            "there is no kernel {wanted} for {}, only {}",
            machine.name,
            machine.kernels.join(" and ")
        ),
    }
}

/// The table, and whether all is well.
fn report(outcomes: &[Outcome]) -> Result<()> {
    println!("\n{:<24} {:>6} {:>7}  result", "guest", "boot", "all");
    let mut failed = 0;
    for outcome in outcomes {
        let result = match &outcome.end {
            End::Verdict { code: 0, taint: 0 } => outcome.summary.clone(),
            End::Verdict { code: 0, taint } => {
                format!("{}; kernel tainted {taint}", outcome.summary)
            }
            End::Verdict { code: 1, .. } => format!("FAILED: {}", outcome.summary),
            End::Verdict { code, .. } => format!("FAILED: the runner ended with {code}"),
            End::NoBoot(why) => format!("FAILED: did not boot: {why}"),
            End::Panic(why) => format!("FAILED: {why}"),
            End::Hang => "FAILED: hung".to_owned(),
            End::Off(why) => format!("FAILED: ended without a verdict, last: {why}"),
        };
        failed += usize::from(!matches!(outcome.end, End::Verdict { code: 0, .. }));
        let seconds = |time: Duration| format!("{:.1}s", time.as_secs_f64());
        println!(
            "{:<24} {:>6} {:>7}  {result}",
            outcome.name,
            seconds(outcome.booted),
            seconds(outcome.took)
        );
    }
    if failed > 0 {
        bail!("{failed} of {} guests failed", outcomes.len());
    }
    Ok(())
}
