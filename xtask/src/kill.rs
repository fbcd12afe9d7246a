//! `cargo xtask kill`: criu dies by SIGKILL at any moment, and nothing is lost.
//!
//! Of a dump, the tasks must go on as if nothing had been, but for one mapping that may stay behind. Of a restore,
//! nothing may be left: no task, no file, no mount; and the next restore must work. A restore that had come so far
//! that all tasks ran is as good.
//!
//! Moments are spread evenly over the time an undisturbed run takes, and a tenth more. Dumps leave the target running,
//! so that what is asked of it is the same at every moment.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::args::Args;
use crate::criu::{Criu, built, complaint, ours};
use crate::observe::{Diary, View};
use crate::room;
use crate::surroundings::{Surroundings, as_dumped, given_names};
use crate::target::{Target, census, last_line};

const USAGE: &str = "kill [--times N] [--criu PATH] [--only dump|restore] [--from PART] [--seed N]
  --times N    how many moments of each; default: 200
  --criu PATH  try this criu: a program, or the root of a Debian system that has one
  --only NAME  only this one
  --from PART  only moments after this part of an undisturbed run; default: 0
  --seed N     the moments of an earlier run";

/// How long the tasks have to show that all is well, or to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// The target has a file that lost a name and has another one.
const LINKS: &str = "--link-remap";

struct Options {
    criu: Criu,
    workload: PathBuf,
    times: u32,
    moments: Moments,
}

pub(crate) fn run(words: &[String]) -> Result<()> {
    let mut args = Args::new(words);
    let chosen = args.value::<PathBuf>("--criu")?;
    let times = args.value("--times")?.unwrap_or(200);
    let only = args.value::<String>("--only")?.unwrap_or_default();
    let from = args.value("--from")?.unwrap_or(0.0);
    let seed = args.value("--seed")?;
    args.finish(USAGE)?;
    let criu = match &chosen {
        Some(path) => path.clone(),
        None => ours()?,
    };
    let workload = built("benches", "workload")?;
    if !room::is_inside() {
        let status = room::enter("kill", words)?;
        ensure!(status.success(), "something was lost");
        return Ok(());
    }
    room::furnish()?;
    room::mount_queues()?;
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = seed.unwrap_or(u64::from(clock.subsec_nanos()));
    println!("seed {seed}");
    let mut options = Options {
        criu: Criu::at(&criu)?,
        workload,
        times,
        moments: Moments { state: seed, from },
    };
    let mut lost = 0;
    if "dump".contains(&only) {
        lost += dumps(&mut options).context("dump")?;
    }
    if "restore".contains(&only) {
        lost += restores(&mut options).context("restore")?;
    }
    ensure!(lost == 0, "{lost} losses");
    Ok(())
}

/// Random numbers: SplitMix64.
struct Moments {
    state: u64,
    from: f64,
}

impl Moments {
    /// A moment from the start, or a later one, to a tenth behind the end.
    fn next(&mut self, undisturbed: Duration) -> Duration {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        let random = (word >> 11) as f64 / (1u64 << 53) as f64;
        undisturbed.mul_f64(self.from + (1.1 - self.from) * random)
    }
}

/// How a criu command ended that may have been killed.
enum End {
    Killed,
    Done,
    Failed(String),
}

/// Runs a command, and kills it at the moment if it has not ended by then.
fn call(
    options: &Options,
    verb: &str,
    images: &Path,
    more: &[&str],
    moment: Option<Duration>,
) -> Result<(End, Duration)> {
    let words = options.criu.words(verb, images, more);
    let printed = Path::new("/run/printed");
    let out = File::create(printed)?;
    let start = Instant::now();
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()?;
    if let Some(moment) = moment {
        sleep_until(start + moment);
        child.kill()?;
    }
    let status = wait(&mut child)?;
    let took = start.elapsed();
    let end = match (status.signal(), status.success()) {
        (Some(9), _) => End::Killed,
        (_, true) => End::Done,
        _ => End::Failed(format!(
            "{verb}: {}",
            complaint(images, verb, &std::fs::read(printed)?)
        )),
    };
    Ok((end, took))
}

fn wait(child: &mut Child) -> Result<std::process::ExitStatus> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    child.kill()?;
    child.wait()?;
    bail!("criu hangs")
}

/// To the microsecond: the scheduler would be late.
fn sleep_until(moment: Instant) {
    while let Some(left) = moment.checked_duration_since(Instant::now()) {
        if left > Duration::from_micros(300) {
            std::thread::sleep(left - Duration::from_micros(300));
        } else {
            std::hint::spin_loop();
        }
    }
}

/// Asks again until the answer is right or patience is at its end; the last reason is the error.
fn eventually<T>(mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// The middle of what some undisturbed runs take.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// A target that has shown that it works.
fn start(options: &Options) -> Result<Target> {
    let words = [options.workload.as_os_str(), "checked".as_ref()];
    let mut target = Target::start(&words, &room::fresh("target")?)?;
    let dir = target.dir.clone();
    let works = target
        .file("ready", Duration::from_secs(20))
        .and_then(|()| going_on(&dir));
    match works {
        Ok(()) => Ok(target),
        Err(error) => {
            target.end()?;
            Err(error)
        }
    }
}

fn going_on(dir: &Path) -> Result<()> {
    let before = eventually(|| Diary::read(dir))?;
    eventually(|| before.goes_on(&Diary::read(dir)?))
}

/// Lets the restored target look at everything once more, and end.
fn finish(dir: &Path) -> Result<()> {
    File::create(dir.join("finish"))?;
    eventually(|| {
        ensure!(
            dir.join("finished").exists(),
            "it does not finish: {}",
            last_line(&dir.join("log"))
        );
        Ok(())
    })?;
    room::empty()
}

/// What all targets and runs of one kind came to.
#[derive(Default)]
struct Tally {
    killed: u32,
    lost: u32,
    /// Mappings a killed dump left behind; restores that were complete when they were killed.
    other: usize,
}

impl Tally {
    fn add(&mut self, what: &str, moment: Duration, end: End, verdict: Result<usize>) {
        self.killed += u32::from(matches!(end, End::Killed));
        let verdict = match end {
            End::Failed(why) => Err(anyhow::anyhow!(why)),
            _ => verdict,
        };
        match verdict {
            Ok(other) => self.other += other,
            Err(error) => {
                println!("{what}: lost at {} µs: {error:#}", moment.as_micros());
                self.lost += 1;
            }
        }
    }
}

/// Kills dumps; returns how many targets were lost.
fn dumps(options: &mut Options) -> Result<u32> {
    let mut target = start(options)?;
    let mut times = Vec::new();
    for _ in 0..5 {
        let (end, took, verdict) = dump(options, &target, None)?;
        if let End::Failed(why) = end {
            bail!("undisturbed: {why}");
        }
        verdict.context("undisturbed")?;
        times.push(took);
    }
    let undisturbed = median(times);
    let mut tally = Tally::default();
    for _ in 0..options.times {
        let moment = options.moments.next(undisturbed);
        let (end, _, verdict) = dump(options, &target, Some(moment))?;
        let lost = verdict.is_err();
        tally.add("dump", moment, end, verdict);
        if lost {
            target.end()?;
            target = start(options)?;
        }
    }
    println!(
        "dump: {} times (an undisturbed one takes {} µs), {} killed, {} lost, {} mappings left behind",
        options.times,
        undisturbed.as_micros(),
        tally.killed,
        tally.lost,
        tally.other
    );
    // After all that it can be dumped for good, and all it has is as it was.
    let dir = target.dir.clone();
    let images = image_of(options, target).context("in the end")?;
    let given = given_names(&dir)?;
    restored(options, &images, &dir)
        .and_then(|()| finish(&dir))
        .context("in the end")?;
    as_dumped(&dir, &given)?;
    Ok(tally.lost)
}

/// One dump, and whether the target is well afterwards; if so, how many mappings were left behind.
fn dump(
    options: &Options,
    target: &Target,
    moment: Option<Duration>,
) -> Result<(End, Duration, Result<usize>)> {
    let images = room::fresh("images")?;
    let before = eventually(View::new)?;
    let pid = target.pid().to_string();
    let (end, took) = call(options, "dump", &images, &["-t", &pid, "-R", LINKS], moment)?;
    let verdict = eventually(|| before.compare(&View::new()?)).and_then(|more| {
        going_on(&target.dir)?;
        Ok(more)
    });
    Ok((end, took, verdict))
}

/// Dumps it for good.
fn image_of(options: &Options, target: Target) -> Result<PathBuf> {
    let images = room::fresh("images")?;
    let pid = target.pid().to_string();
    let (end, _) = call(options, "dump", &images, &["-t", &pid, LINKS], None)?;
    if let End::Failed(why) = end {
        target.end()?;
        bail!(why);
    }
    target.killed()?;
    room::empty()?;
    Ok(images)
}

/// Restores it undisturbed, and sees it work.
fn restored(options: &Options, images: &Path, dir: &Path) -> Result<()> {
    let work = room::fresh("work")?;
    Diary::blank(dir)?;
    let (end, _) = call(options, "restore", images, &restore_words(&work), None)?;
    if let End::Failed(why) = end {
        bail!(why);
    }
    going_on(dir)
}

/// What a restore leaves besides tasks goes to a directory of its own.
fn restore_words(work: &Path) -> [&str; 5] {
    // Its name is ours, and text.
    let work = work.to_str().unwrap_or_default();
    ["-d", "-W", work, "--pidfile", PIDFILE]
}

/// In the directory of the work.
const PIDFILE: &str = "pid";

/// Kills restores; returns how many left something behind, or could not be repeated.
fn restores(options: &mut Options) -> Result<u32> {
    let target = start(options)?;
    let dir = target.dir.clone();
    let images = image_of(options, target)?;
    let given = given_names(&dir)?;
    ensure!(!given.is_empty(), "the dump gave no file a name");
    as_dumped(&dir, &given)?;
    let mut times = Vec::new();
    for _ in 0..5 {
        let work = room::fresh("work")?;
        Diary::blank(&dir)?;
        let (end, took) = call(options, "restore", &images, &restore_words(&work), None)?;
        if let End::Failed(why) = end {
            bail!("undisturbed: {why}");
        }
        going_on(&dir).context("undisturbed")?;
        room::empty()?;
        as_dumped(&dir, &given)?;
        times.push(took);
    }
    let undisturbed = median(times);
    let script = fails()?;
    let before = Surroundings::new(&images, &dir)?;
    for action in ACTIONS {
        failed(options, &images, &dir, &script, action)?;
        let after = Surroundings::new(&images, &dir)?;
        let compared = before.compare(&after);
        compared.with_context(|| format!("a restore that failed at {action}"))?;
    }
    let mut tally = Tally::default();
    for _ in 0..options.times {
        let moment = options.moments.next(undisturbed);
        let work = room::fresh("work")?;
        Diary::blank(&dir)?;
        let (end, _) = call(
            options,
            "restore",
            &images,
            &restore_words(&work),
            Some(moment),
        )?;
        let verdict = nothing_or_all(&dir);
        room::empty()?;
        let verdict = verdict.and_then(|all| {
            if all > 0 {
                as_dumped(&dir, &given)?;
            } else {
                ensure!(!work.join(PIDFILE).exists(), "a pid file came");
            }
            before.compare(&Surroundings::new(&images, &dir)?)?;
            restored(options, &images, &dir).context("the next restore")?;
            Ok(all)
        });
        room::empty()?;
        if verdict.is_err() {
            before.clear(&Surroundings::new(&images, &dir)?)?;
        }
        as_dumped(&dir, &given)?;
        tally.add("restore", moment, end, verdict);
    }
    println!(
        "restore: {} times (an undisturbed one takes {} µs), {} killed, {} lost, {} complete when killed or before",
        options.times,
        undisturbed.as_micros(),
        tally.killed,
        tally.lost,
        tally.other
    );
    restored(options, &images, &dir)
        .and_then(|()| finish(&dir))
        .context("in the end")?;
    Ok(tally.lost)
}

/// Where a restore can be made to fail.
const ACTIONS: &[&str] = &[
    "pre-restore",
    "setup-namespaces",
    "post-restore",
    "pre-resume",
];

/// A script that fails at the action that a file beside it names.
fn fails() -> Result<PathBuf> {
    let dir = room::fresh("script")?;
    let path = dir.join("script");
    let text = "#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" != \"$(cat /dev/shm/script/at)\" ]\n";
    std::fs::write(&path, text)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))?;
    Ok(path)
}

/// A restore that fails when all is nearly done; no task is there afterwards, and no pid file.
fn failed(options: &Options, images: &Path, dir: &Path, script: &Path, action: &str) -> Result<()> {
    std::fs::write(script.with_file_name("at"), action)?;
    let work = room::fresh("work")?;
    Diary::blank(dir)?;
    let script = script.to_str().context("text")?;
    let words = [&restore_words(&work)[..], &["--action-script", script]].concat();
    let (end, _) = call(options, "restore", images, &words, None)?;
    let is_failed = matches!(end, End::Failed(_));
    ensure!(
        is_failed,
        "a restore whose script fails at {action} does not fail"
    );
    ensure!(
        nothing_or_all(dir)? == 0,
        "tasks are left of a restore that failed at {action}"
    );
    ensure!(!work.join(PIDFILE).exists(), "a pid file is left");
    Ok(())
}

/// After a killed restore: no task is there (0), or all are and work (1).
fn nothing_or_all(dir: &Path) -> Result<usize> {
    // The orphans of the killed command are ours: reap those that are dead.
    let is_empty = || -> Result<bool> {
        while let Ok(status) = waitpid(
            None::<Pid>,
            Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL),
        ) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        Ok(census()?.is_empty())
    };
    let mut before = None;
    eventually(|| {
        if is_empty()? {
            return Ok(0);
        }
        let names = names()?;
        let works = View::new().and_then(|_| {
            let now = Diary::read(dir)?;
            let before = before.get_or_insert(now);
            before.goes_on(&Diary::read(dir)?)
        });
        works.with_context(|| format!("left: {names}"))?;
        Ok(1)
    })
}

/// The tasks in the room, for people.
fn names() -> Result<String> {
    let mut names = Vec::new();
    for pid in room::others()? {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        names.push(stat.split(' ').take(3).collect::<Vec<_>>().join(" "));
    }
    Ok(names.join(", "))
}
