//! `cargo xtask programs`: real programs are dumped, killed, restored, and asked whether all is well.
//!
//! Every time it is a new process, dumped at another moment. After the restore it must get on with its work, end when
//! it is told to, and leave a result that a second process finds right. `zdtm/programs/README.md` says what the
//! programs do.

use std::ffi::OsString;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::args::Args;
use crate::catalogue::{PROGRAMS, Program};
use crate::client::Client;
use crate::criu::{Criu, complaint, ours};
use crate::target::{Target, census, last_line};
use crate::{room, shell};

const USAGE: &str = "programs [--times N] [--generations N] [--criu PATH] [--only NAME]
  --times N        how often each program is tried; default: 10
  --generations N  how often it is dumped and restored each time; default: 2, so that a restored one is dumped too
  --criu PATH      try this criu: a program, or the root of a Debian system that has one
  --only NAME      only programs whose name contains this";

struct Options {
    criu: Criu,
    times: u32,
    generations: u32,
}

pub(crate) fn run(words: &[String]) -> Result<()> {
    let mut args = Args::new(words);
    let chosen = args.value::<PathBuf>("--criu")?;
    let times = args.value("--times")?.unwrap_or(10);
    let generations = args.value("--generations")?.unwrap_or(2);
    let only = args.value::<String>("--only")?.unwrap_or_default();
    args.finish(USAGE)?;
    let criu = match &chosen {
        Some(path) => path.clone(),
        None => ours()?,
    };
    let options = Options {
        criu: Criu::at(&criu)?,
        times,
        generations,
    };
    if !room::is_inside() {
        let status = room::enter("programs", words)?;
        ensure!(status.success(), "a program failed");
        return Ok(());
    }
    room::furnish()?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    println!("{:<10} {:>7} {:>9} {:>9}", "", "passed", "dump", "restore");
    for program in PROGRAMS
        .iter()
        .filter(|program| program.name.contains(&only))
    {
        let missing: Vec<_> = program
            .needs
            .iter()
            .filter(|(tool, _)| !shell::has(tool))
            .collect();
        if let Some((tool, _)) = missing.first() {
            let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
            println!(
                "{:<10} skipped: no {tool} (apt-get install {})",
                program.name,
                packages.join(" ")
            );
            skipped += 1;
            continue;
        }
        match several(program, &options) {
            Ok(()) => passed += 1,
            Err(error) => {
                println!("{:<10} failed: {error:#}", program.name);
                failed += 1;
            }
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    ensure!(failed == 0, "{failed} programs failed");
    Ok(())
}

/// What the two commands took.
struct Took {
    dump: Duration,
    restore: Duration,
}

/// All times of one program; stops at the first that fails.
fn several(program: &Program, options: &Options) -> Result<()> {
    let places = Places {
        src: shell::root()?.join("zdtm/programs"),
        once: room::fresh("once")?,
        python: python()?,
    };
    if !program.prepare.is_empty() {
        places.command(program.prepare, &places.once)?;
    }
    let (mut dumps, mut restores) = (Vec::new(), Vec::new());
    for time in 1..=options.times {
        let (dir, images) = (room::fresh("target")?, room::fresh("images")?);
        let outcome = once(program, options, &places, &dir, &images, time);
        room::empty()?;
        match outcome {
            Ok(took) => {
                dumps.extend(took.iter().map(|took| took.dump));
                restores.extend(took.iter().map(|took| took.restore));
            }
            Err(error) => {
                let kept = room::keep(&dir, &format!("{}-target", program.name))?;
                room::keep(&images, &format!("{}-images", program.name))?;
                return Err(error).with_context(|| format!("time {time} (see {})", kept.display()));
            }
        }
    }
    let count = options.times;
    println!(
        "{:<10} {count:>3} of {count:<3} {} {}",
        program.name,
        median(dumps),
        median(restores)
    );
    Ok(())
}

fn once(
    program: &Program,
    options: &Options,
    places: &Places,
    dir: &Path,
    images: &Path,
    time: u32,
) -> Result<Vec<Took>> {
    // Own session: setsid(1) becomes the program, as it is nobody's group leader.
    let port = free_port()?;
    let mut words = places.words(program.run, port);
    words.insert(0, "setsid".into());
    let mut target = Target::start(&words, dir)?;
    let pid = Pid::from_raw(i32::try_from(target.pid())?);
    let settled = match program.settle {
        "" => Ok(()),
        settle => places.run(settle, dir, port),
    };
    if let Err(error) = settled.and_then(|()| target.file("ready", Duration::from_secs(60))) {
        target.end()?;
        return Err(error);
    }
    let mut client = match program.client {
        "" => None,
        words => Some(Client::start(&places.words(words, port), dir)?),
    };
    // Every time it is dumped at another moment.
    std::thread::sleep(Duration::from_millis(u64::from(time * 37 % 100)));
    let took = generations(program, options, dir, images, target, &mut client)?;
    if let Some(client) = client {
        client.end()?;
    }
    kill(pid, Signal::SIGTERM)?;
    let status = end_of(pid)?;
    ensure!(
        status == WaitStatus::Exited(pid, program.exit),
        "it ended with {status:?}: {}",
        last_line(&dir.join("log"))
    );
    if let Ok(text) = std::fs::read_to_string(dir.join("wrong")) {
        bail!(
            "it found itself wrong: {}",
            text.lines().next().unwrap_or_default()
        );
    }
    ensure!(
        dir.join(program.result).exists(),
        "it left no {}",
        program.result
    );
    if !program.check.is_empty() {
        places
            .run(program.check, dir, port)
            .context("what it left is not right")?;
    }
    Ok(took)
}

/// Dumped and restored, and that again.
fn generations(
    program: &Program,
    options: &Options,
    dir: &Path,
    images: &Path,
    target: Target,
    client: &mut Option<Client>,
) -> Result<Vec<Took>> {
    let number = target.pid().to_string();
    let mut target = Some(target);
    let mut took = Vec::new();
    for generation in 1..=options.generations {
        if client.is_some() {
            goes_on(program, dir, client).context("before the dump")?;
        }
        let place = images.join(generation.to_string());
        std::fs::create_dir(&place)?;
        let dump = match call(
            &options.criu,
            "dump",
            &place,
            &[&["-t", &number], program.options],
        ) {
            Ok(took) => took,
            Err(error) => {
                if let Some(target) = target {
                    target.end()?;
                }
                return Err(error).with_context(|| format!("generation {generation}"));
            }
        };
        if let Some(target) = target.take() {
            target.killed()?;
        }
        match client {
            None => room::empty()?,
            Some(client) => room::bury(client.pid()?)?,
        }
        let restore = call(
            &options.criu,
            "restore",
            &place,
            &[&["-d"], program.options],
        )
        .with_context(|| format!("generation {generation}"))?;
        took.push(Took { dump, restore });
        goes_on(program, dir, client).with_context(|| format!("after restore {generation}"))?;
    }
    Ok(took)
}

/// Waits until it has done something.
fn goes_on(program: &Program, dir: &Path, client: &mut Option<Client>) -> Result<()> {
    if program.progress.is_empty() {
        return Ok(());
    }
    let read = || std::fs::read(dir.join(program.progress)).unwrap_or_default();
    let (before, deadline) = (read(), Instant::now() + Duration::from_secs(20));
    while read() == before {
        if let Some(client) = client {
            client.lives()?;
        }
        ensure!(
            Instant::now() < deadline,
            "it does not go on; tasks: {:?}",
            census()?
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Waits for the end of a restored process, which is our child.
fn end_of(pid: Pid) -> Result<WaitStatus> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        match waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
            .context("the restored process is no child of ours")?
        {
            WaitStatus::StillAlive => std::thread::sleep(Duration::from_millis(2)),
            status => return Ok(status),
        }
    }
    bail!("it does not end when it is told to; tasks: {:?}", census()?)
}

/// Runs one criu command.
fn call(criu: &Criu, verb: &str, images: &Path, more: &[&[&str]]) -> Result<Duration> {
    let words = criu.words(verb, images, &[&["-v4"], &more.concat()[..]].concat());
    let printed = images.join(format!("{verb}.out"));
    let out = File::create(&printed)?;
    let start = Instant::now();
    let status = Command::new(&words[0])
        .args(&words[1..])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .status()?;
    let took = start.elapsed();
    if !status.success() {
        bail!(
            "{verb}: {}",
            complaint(images, verb, &std::fs::read(&printed)?)
        );
    }
    Ok(took)
}

/// What the placeholders stand for.
struct Places {
    src: PathBuf,
    once: PathBuf,
    python: PathBuf,
}

impl Places {
    fn words(&self, text: &str, port: u16) -> Vec<OsString> {
        let fill = |word: &str| {
            word.replace("{src}", &self.src.to_string_lossy())
                .replace("{once}", &self.once.to_string_lossy())
                .replace("{python}", &self.python.to_string_lossy())
                .replace("{port}", &port.to_string())
                .into()
        };
        text.split(' ').map(fill).collect()
    }

    /// Runs it to its end; what it printed is the error.
    fn run(&self, text: &str, dir: &Path, port: u16) -> Result<()> {
        let words = self.words(text, port);
        let output = Command::new(&words[0])
            .args(&words[1..])
            .current_dir(dir)
            .stdin(Stdio::null())
            .output()
            .with_context(|| text.to_owned())?;
        if !output.status.success() {
            let printed = [output.stdout, output.stderr].concat();
            let printed = String::from_utf8_lossy(&printed).into_owned();
            bail!("{text}: {}: {}", output.status, printed.trim());
        }
        Ok(())
    }

    fn command(&self, text: &str, dir: &Path) -> Result<()> {
        self.run(text, dir, free_port()?)
    }
}

/// The interpreter itself: `python3` may be a script that looks for one.
pub(crate) fn python() -> Result<PathBuf> {
    if !shell::has("python3") {
        return Ok("python3".into());
    }
    let output = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output()?;
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

/// Free when asked for.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn median(mut times: Vec<Duration>) -> String {
    times.sort();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    format!("{:>6} ms", middle.as_millis())
}
