//! `zdtm --arch`: the suite in guests, one for every machine and kernel, some at a time.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use zdtm_runner::{Mode, Options};

use crate::args::Args;
use crate::cross::{self, Built};
use crate::disk::{self, Load};
use crate::kernel::{self, Kernel};
use crate::machine::{self, Machine};
use crate::modules::{LATER, Modules};
use crate::qemu::{self, End, Guest};
use crate::{initramfs, shell};

const USAGE: &str = "zdtm --arch NAME[,NAME]...|all [OPTION]...
  --kernel SERIES   6.1 (default), 6.12, or all that the machine has
  --cpu MODEL       QEMU's name of the processor
  --jobs N          guests at a time (default: CPUs)
  --junit DIR       write MACHINE-SERIES.xml there
and of the runner: --filter --exclude --mode --iterations --repeat --timeout --known --keep";

/// A case in a guest takes longer than on the host.
const TIMEOUT: &str = "--timeout=180";

/// One boot to make.
struct Task {
    machine: &'static Machine,
    series: String,
    kernel: Kernel,
    built: Built,
}

/// What came of it.
struct Outcome {
    name: String,
    end: End,
    summary: String,
    booted: Duration,
    took: Duration,
}

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let mut args = Args::new(arguments);
    let Some(machines) = args.value::<String>("--arch")? else {
        return args.finish(USAGE);
    };
    let machines = machine::named(&machines)?;
    let series = args.value::<String>("--kernel")?;
    let cpu = args.value::<String>("--cpu")?;
    let jobs = args.value::<usize>("--jobs")?;
    let junit = args.value::<PathBuf>("--junit")?;
    let known = args.value::<PathBuf>("--known")?;
    let words = args.rest(USAGE)?;
    // The runner in the guest would refuse them as well, but only after a build and a boot.
    let options = Options::parse(words.clone())?.context("no help here")?;
    let criu = options.modes.is_empty() || options.modes.iter().any(|mode| *mode != Mode::None);

    let mut tasks = VecDeque::new();
    for machine in machines {
        let built = cross::build(machine, criu)?;
        for series in wanted(machine, series.as_deref())? {
            let kernel = kernel::get(machine, series)?;
            let (built, series) = (built.clone(), series.to_owned());
            tasks.push_back(Task {
                machine,
                series,
                kernel,
                built,
            });
        }
    }
    let jobs = jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let tag = tasks.len() > 1;
    let root = shell::root()?;
    let known = root.join(known.unwrap_or_else(|| "zdtm/known/criu-rs".into()));
    let (queue, outcomes) = (Mutex::new(tasks), Mutex::new(Vec::new()));
    let work = || -> Result<()> {
        loop {
            let Some(task) = queue
                .lock()
                .map_err(|_| anyhow::anyhow!("a guest's thread died"))?
                .pop_front()
            else {
                return Ok(());
            };
            let outcome = one(&task, cpu.as_deref(), &known, &words, tag, junit.as_deref())
                .with_context(|| format!("{} {}", task.machine.name, task.series))?;
            if let Ok(mut outcomes) = outcomes.lock() {
                outcomes.push(outcome);
            }
        }
    };
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("a guest's thread died"))??;
        }
        Ok(())
    })?;
    report(outcomes.into_inner().unwrap_or_default())
}

/// The kernels to boot on a machine.
fn wanted<'a>(machine: &'a Machine, series: Option<&'a str>) -> Result<Vec<&'a str>> {
    match series {
        None => Ok(vec!["6.1"]),
        Some("all") => Ok(machine.kernels.to_vec()),
        Some(one) if machine.kernels.contains(&one) => Ok(vec![one]),
        Some(one) => bail!(
            "there is no kernel {one} for {}, only {}",
            machine.name,
            machine.kernels.join(" and ")
        ),
    }
}

fn one(
    task: &Task,
    cpu: Option<&str>,
    known: &Path,
    words: &[String],
    tag: bool,
    junit: Option<&Path>,
) -> Result<Outcome> {
    let begun = Instant::now();
    let name = format!("{}-{}", task.machine.name, task.series);
    let dir = shell::target()?.join("guest/runs").join(&name);
    std::fs::create_dir_all(&dir)?;
    let modules = Modules::read(&task.kernel.modules, &[initramfs::BOOT, LATER])?;
    let load = Load {
        built: &task.built,
        modules: &modules,
        known: Some(known),
    };
    let guest = Guest {
        machine: task.machine,
        series: task.series.clone(),
        kernel: task.kernel.clone(),
        cpu: cpu.unwrap_or(task.machine.cpu).to_owned(),
        initramfs: dir.join("initramfs"),
        disk: disk::make(&dir, &load)?,
        log: dir.join("serial.log"),
    };
    let mut arguments = vec![
        TIMEOUT.to_owned(),
        "--known=/zdtm/known".to_owned(),
        "--junit=/zdtm/out/junit.xml".to_owned(),
    ];
    arguments.push(format!("--jobs={}", task.machine.cpus));
    arguments.extend_from_slice(words);
    initramfs::write(&guest.initramfs, &task.built.init, &modules, &arguments)?;
    let mut summary = String::new();
    let (end, booted) = qemu::run(&guest, &mut |line| {
        if line.contains(" passed, ") {
            summary = line.to_owned();
        } else if !line.starts_with("logs and images") {
            // Those are fetched, and named below.
            let tag = if tag { &format!("{name}: ") } else { "" };
            println!("{tag}{line}");
        }
    })?;
    let out = dir.join("out");
    disk::fetch(&guest.disk, &out)?;
    if let Some(junit) = junit
        && out.join("out/junit.xml").exists()
    {
        std::fs::create_dir_all(junit)?;
        std::fs::copy(out.join("out/junit.xml"), junit.join(format!("{name}.xml")))?;
    }
    if !matches!(end, End::Verdict { code: 0, .. }) {
        println!("{name}: what it left: {}", dir.display());
    }
    Ok(Outcome {
        name,
        end,
        summary,
        booted,
        took: begun.elapsed(),
    })
}

/// The table, and whether all is well.
fn report(mut outcomes: Vec<Outcome>) -> Result<()> {
    outcomes.sort_by(|a, b| a.name.cmp(&b.name));
    println!("\n{:<14} {:>6} {:>7}  result", "guest", "boot", "all");
    let mut failed = 0;
    for outcome in &outcomes {
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
            "{:<14} {:>6} {:>7}  {result}",
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
