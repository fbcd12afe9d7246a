//! `cargo xtask bench`: what a dump and a restore take, beside what another criu takes in the same minutes.
//!
//! Each sample is a new target, dumped, restored and killed. Samples of the two commands alternate, so that other
//! load hits both; the minimum is what the machine can do, the median what one meets. Time is that of the whole
//! command, from its creation to its end. Left out: what it takes to write images to a disk (they go to memory), and
//! the first run, in which both look what the kernel can do.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use criu_image::{Directory, StoreExt, desc, pb};

use nix::unistd::Pid;

use crate::args::Args;
use crate::bench_guest;
use crate::criu::{Criu, built, complaint, ours};
use crate::room;
use crate::target::{Target, census};

const USAGE: &str = "bench [OPTION]...
  --criu PATH      measure this criu; default: the one of this workspace
  --peer PATH      compare with this one: a program, or the root of a Debian system that has a criu
  --only NAME      only cases whose name contains this; those of connections run only so, as many samples take
                   more ports than a host has, and CRIU 4.1.1 needs a kernel before 6.16 for them
  --runs N         samples per case and command; default: 10, of large ones 5
  --series         1, 2, 4, 8, 16 times the amount: time for each element must not grow
  --workload PATH  the program that is dumped; default: the one of this workspace
  --arch NAME      in a guest, which is emulated: only ratios mean something
  --kernel SERIES  of the guest: 6.1 (default), 6.12";

/// A name, the words for `workload`, and how many samples there are by default.
struct Case {
    name: String,
    shape: Vec<String>,
    /// For dumps of the peer.
    peer_options: &'static [&'static str],
    /// For dump and restore.
    options: &'static [&'static str],
    runs: usize,
}

impl Case {
    fn new(name: &str, shape: &str, runs: usize) -> Self {
        let shape: Vec<String> = shape.split(' ').map(str::to_owned).collect();
        let established: &[_] = match shape[0].as_str() {
            "connections" => &["--tcp-established"],
            _ => &[],
        };
        Self {
            name: name.to_owned(),
            shape,
            peer_options: &[],
            options: established,
            runs,
        }
    }

    /// The peer holds no packets back, ours does. CRIU 4.1.1 locks a connection by two programs (iptables), a second for
    /// twenty to forty; or by libnftables, which ends it as soon as it has 1024 descriptors.
    fn peer_unlocked(mut self) -> Self {
        self.peer_options = &["--network-lock", "skip"];
        self
    }
}

fn cases() -> Vec<Case> {
    vec![
        Case::new("minimal process", "minimal", 10),
        Case::new("1000 threads", "threads 1000", 10),
        Case::new("4000 mappings", "mappings 4000", 10),
        Case::new("200 processes of 10 MiB", "processes 200 10", 5),
        Case::new("10000 descriptors", "descriptors 100 100", 10),
        Case::new("100 connections, locked", "connections 100", 2),
        Case::new("200 connections, locked", "connections 200", 2),
        Case::new("400 connections, locked", "connections 400", 2),
        Case::new("10000 connections", "connections 10000", 5).peer_unlocked(),
        Case::new("2 GiB random", "memory 2048 0", 5),
        Case::new("2 GiB half zero", "memory 2048 1", 5),
    ]
}

/// What grows, the words for `workload` before and after the number, and the first number.
const SERIES: &[(&str, &str, &str, usize)] = &[
    ("threads", "threads", "", 250),
    ("processes", "processes", " 1", 50),
    ("mappings", "mappings", "", 1000),
    ("files", "files", "", 1000),
    ("processes of 100 descriptors", "descriptors", " 100", 25),
    ("connections", "connections", "", 625),
];

/// How many numbers of a series there are. 50 to 400 processes are enough: each has a page table.
fn doublings(first: usize) -> u32 {
    if first < 100 { 4 } else { 5 }
}

struct Options {
    criu: Criu,
    peer: Option<Criu>,
    workload: PathBuf,
    only: String,
    runs: Option<usize>,
    series: bool,
}

pub(crate) fn run(words: &[String]) -> Result<()> {
    if words.iter().any(|word| word.starts_with("--arch")) {
        return bench_guest::run(words);
    }
    let mut args = Args::new(words);
    let chosen = args.value::<PathBuf>("--criu")?;
    let peer = args.value::<PathBuf>("--peer")?;
    let only = args.value("--only")?.unwrap_or_default();
    let runs = args.value("--runs")?;
    let series = args.flag("--series");
    let workload = args.value("--workload")?;
    args.finish(USAGE)?;
    let criu = match &chosen {
        Some(path) => path.clone(),
        None => ours()?,
    };
    let options = Options {
        criu: Criu::at(&criu)?,
        peer: peer.as_deref().map(Criu::at).transpose()?,
        workload: match workload {
            Some(path) => path,
            None => built("benches", "workload")?,
        },
        only,
        runs,
        series,
    };
    if !room::is_inside() {
        let status = room::enter("bench", words)?;
        ensure!(status.success(), "a measurement failed");
        return Ok(());
    }
    room::furnish()?;
    let failed = if options.series {
        all_series(&options)?
    } else {
        all_cases(&options)?
    };
    ensure!(failed == 0, "{failed} measurements failed");
    Ok(())
}

/// One dump and restore.
#[derive(Clone, Copy)]
struct Sample {
    dump: Took,
    frozen: Duration,
    restore: Took,
}

#[derive(Clone, Copy)]
struct Took {
    time: Duration,
    peak_kib: u64,
    /// From its start until packets of connections were held back, and until the last were free again; zero: never.
    locked: Duration,
    free: Duration,
}

/// Samples of one command, or why there are none.
type Samples = Result<Vec<Sample>>;

/// Alternates; a command that fails is not tried again.
fn measure(options: &Options, case: &Case) -> Result<[Option<Samples>; 2]> {
    let commands = [Some(&options.criu), options.peer.as_ref()];
    let mut samples = commands.map(|criu| criu.map(|_| Ok(Vec::new())));
    for run in 0..options.runs.unwrap_or(case.runs) {
        for turn in 0..2 {
            let which = (run + turn) % 2;
            if let (Some(criu), Some(Ok(list))) = (commands[which], &mut samples[which]) {
                match sample(options, criu, case) {
                    Ok(sample) => list.push(sample),
                    Err(error) => samples[which] = Some(Err(error)),
                }
                room::empty()?;
            }
        }
    }
    Ok(samples)
}

fn sample(options: &Options, criu: &Criu, case: &Case) -> Result<Sample> {
    let (dir, images) = (room::fresh("target")?, room::fresh("images")?);
    let mut words = vec![options.workload.clone().into_os_string()];
    words.extend(case.shape.iter().map(OsString::from));
    let mut target = Target::start(&words, &dir)?;
    if let Err(error) = target.file("ready", Duration::from_secs(120)) {
        target.end()?;
        return Err(error);
    }
    // The last of them go to sleep.
    std::thread::sleep(Duration::from_millis(20));
    let before = census()?;
    let pid = target.pid().to_string();
    let of_peer = match &options.peer {
        Some(peer) if std::ptr::eq(peer, criu) => case.peer_options,
        _ => &[],
    };
    let words = [&["-t", &pid], of_peer, case.options].concat();
    let dump = match timed(options, criu.words("dump", &images, &words)) {
        Ok(took) => took,
        Err(printed) => {
            target.end()?;
            bail!("dump: {}", complaint(&images, "dump", &printed));
        }
    };
    target.killed()?;
    match std::fs::read_to_string(dir.join("other-side")) {
        // Whom it has connections with stays.
        Ok(pid) => room::bury(Pid::from_raw(pid.parse()?))?,
        Err(_) => room::empty()?,
    }
    let frozen = frozen_time(&images)?;
    let words = [&["-d"], case.options].concat();
    let restore = match timed(options, criu.words("restore", &images, &words)) {
        Ok(took) => took,
        Err(printed) => bail!("restore: {}", complaint(&images, "restore", &printed)),
    };
    ensure!(
        census()? == before,
        "not all processes and threads were restored"
    );
    room::empty()?;
    room::fresh("target")?;
    room::fresh("images")?;
    Ok(Sample {
        dump,
        frozen,
        restore,
    })
}

/// Runs a command; if it fails, what it printed is the error.
fn timed(options: &Options, words: Vec<OsString>) -> Result<Took, Vec<u8>> {
    let attempt = || -> Result<Option<Took>> {
        let dir = Path::new("/run");
        let printed = File::create(dir.join("printed"))?;
        let status = Command::new(&options.workload)
            .arg("time")
            .arg(dir.join("took"))
            .args(words)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(printed.try_clone()?)
            .stderr(printed)
            .status()?;
        ensure!(status.success(), "the stopwatch failed: {status}");
        let text = std::fs::read_to_string(dir.join("took"))?;
        let mut numbers = text.split(' ').map(str::parse::<u64>);
        let mut next = || numbers.next().context("five numbers")?.context("a number");
        let time = Duration::from_nanos(next()?);
        let peak_kib = next()?;
        let succeeded = next()? == 0;
        let took = Took {
            time,
            peak_kib,
            locked: Duration::from_nanos(next()?),
            free: Duration::from_nanos(next()?),
        };
        Ok(succeeded.then_some(took))
    };
    match attempt() {
        Ok(Some(took)) => Ok(took),
        Ok(None) => Err(std::fs::read("/run/printed").unwrap_or_default()),
        Err(error) => Err(format!("{error:#}").into_bytes()),
    }
}

/// From the statistics that a dump leaves beside its images.
fn frozen_time(images: &Path) -> Result<Duration> {
    let store = Directory::open(images)?;
    let stats = store.entry::<pb::StatsEntry>(desc::STATS, "dump")?;
    let dump = stats.dump.as_ref().context("statistics of a dump")?;
    Ok(Duration::from_micros(dump.frozen_time.into()))
}

/// What is shown of a sample: its name, its number, and how to print it.
type Aspect = (&'static str, fn(&Sample) -> f64, fn(f64) -> String);

const DUMP: Aspect = ("dump", |sample| millis(sample.dump.time), time);
const RESTORE: Aspect = ("restore", |sample| millis(sample.restore.time), time);

const ASPECTS: &[Aspect] = &[
    DUMP,
    ("  frozen", |sample| millis(sample.frozen), time),
    // A dump ends with its connections parked, and a restore finds them so.
    (LOCKED, |sample| millis(held(&sample.dump)), time),
    (
        "  peak memory",
        |sample| sample.dump.peak_kib as f64,
        memory,
    ),
    RESTORE,
    (LOCKED, |sample| millis(sample.restore.free), time),
    (
        "  peak memory",
        |sample| sample.restore.peak_kib as f64,
        memory,
    ),
];

/// The network is locked; left out where it never is.
const LOCKED: &str = "  locked";

fn held(dump: &Took) -> Duration {
    match dump.locked {
        Duration::ZERO => Duration::ZERO,
        locked => dump.time.saturating_sub(locked),
    }
}

fn all_cases(options: &Options) -> Result<usize> {
    warm_up(options);
    println!(
        "{:<24} {:<14} {:>9} {:>9} {:>9} {:>9} {:>7} {:>7}",
        "", "", "median", "minimum", "peer med", "peer min", "med/med", "min/min"
    );
    let mut failed = 0;
    for case in cases() {
        let too_many_ports = case.shape[0] == "connections" && options.only.is_empty();
        if !case.name.contains(&options.only) || too_many_ports {
            continue;
        }
        let [ours, peer] = measure(options, &case)?;
        failed += explain(&case.name, "", &ours) + explain(&case.name, "peer: ", &peer);
        for (index, (what, number, print)) in ASPECTS.iter().enumerate() {
            let columns = [&ours, &peer].map(|samples| summary(samples.as_ref(), *number));
            // Who never locks has no time of it.
            let is_locked = |number: &f64| *what != LOCKED || *number > 0.0;
            let columns = columns
                .map(|(median, minimum)| (median.filter(is_locked), minimum.filter(is_locked)));
            if *what == LOCKED && columns == [(None, None); 2] {
                continue;
            }
            let name = if index == 0 { case.name.as_str() } else { "" };
            print!("{name:<24} {what:<14}");
            for (median, minimum) in columns {
                print!(
                    " {:>9} {:>9}",
                    median.map_or_else(dash, print),
                    minimum.map_or_else(dash, print)
                );
            }
            let [ours, peer] = columns;
            println!(" {:>7} {:>7}", ratio(ours.0, peer.0), ratio(ours.1, peer.1));
        }
    }
    Ok(failed)
}

fn all_series(options: &Options) -> Result<usize> {
    warm_up(options);
    println!("minima; x: how much more than of half as many, 2 is linear");
    println!(
        "{:<30} {:<8} {:>9} {:>10} {:>5} {:>9} {:>10} {:>5} {:>7}",
        "", "", "", "each", "x", "peer", "each", "x", "ratio"
    );
    let mut failed = 0;
    for (what, before, after, first) in SERIES {
        if !what.contains(&options.only) {
            continue;
        }
        let mut last = [[None; 2]; 2];
        for step in 0..doublings(*first) {
            let count = first << step;
            let name = format!("{count} {what}");
            let case = Case::new(&name, &format!("{before} {count}{after}"), 5);
            let samples = measure(options, &case)?;
            let [ours, peer] = &samples;
            failed += explain(&name, "", ours) + explain(&name, "peer: ", peer);
            for (verb, (label, number, print)) in [DUMP, RESTORE].into_iter().enumerate() {
                print!(
                    "{:<30} {label:<8}",
                    if verb == 0 { name.as_str() } else { "" }
                );
                let mut minima = [None; 2];
                for (which, samples) in samples.iter().enumerate() {
                    let minimum = summary(samples.as_ref(), number).1;
                    let each = minimum.map(|ms| format!("{:.1} µs", ms * 1000.0 / count as f64));
                    print!(
                        " {:>9} {:>10} {:>5}",
                        minimum.map_or_else(dash, print),
                        each.unwrap_or_else(dash),
                        ratio(minimum, last[verb][which])
                    );
                    last[verb][which] = minimum;
                    minima[which] = minimum;
                }
                println!(" {:>7}", ratio(minima[0], minima[1]));
            }
        }
    }
    Ok(failed)
}

/// The first run of each finds out what the kernel can do, and keeps it in /run.
fn warm_up(options: &Options) {
    for criu in [Some(&options.criu), options.peer.as_ref()]
        .into_iter()
        .flatten()
    {
        let _ = sample(options, criu, &Case::new("", "minimal", 1)).and(room::empty());
    }
}

/// Says why there are no samples.
fn explain(name: &str, who: &str, samples: &Option<Samples>) -> usize {
    match samples {
        Some(Err(error)) => {
            println!("{name}: {who}{error:#}");
            1
        }
        _ => 0,
    }
}

/// Median and minimum.
fn summary(samples: Option<&Samples>, number: fn(&Sample) -> f64) -> (Option<f64>, Option<f64>) {
    let Some(Ok(samples)) = samples else {
        return (None, None);
    };
    let mut numbers: Vec<f64> = samples.iter().map(number).collect();
    numbers.sort_by(f64::total_cmp);
    let at = |index: usize| numbers.get(index).copied();
    let half = numbers.len() / 2;
    let median = match numbers.len() % 2 {
        0 => at(half.wrapping_sub(1))
            .zip(at(half))
            .map(|(low, high)| (low + high) / 2.0),
        _ => at(half),
    };
    (median, at(0))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn time(millis: f64) -> String {
    match millis {
        ..10.0 => format!("{millis:.2} ms"),
        ..100.0 => format!("{millis:.1} ms"),
        _ => format!("{millis:.0} ms"),
    }
}

fn memory(kib: f64) -> String {
    format!("{:.1} MiB", kib / 1024.0)
}

fn ratio(one: Option<f64>, other: Option<f64>) -> String {
    one.zip(other)
        .map_or_else(dash, |(one, other)| format!("{:.2}", one / other))
}

fn dash() -> String {
    "-".to_owned()
}
