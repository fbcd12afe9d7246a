//! `cargo xtask demo`: a program is dumped, killed, restored, and goes on.
//!
//! The program is this very binary, started again as a workload: threads that count, 64 MiB of memory
//! whose checksum it prints, an open file, a child at the other end of a pipe. An ordinary user gets
//! the same in a user and pid namespace of its own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

const MIB: usize = 1 << 20;
const WORKLOAD: &str = "XTASK_DEMO_WORKLOAD";
/// Where criu is, when it is built already.
const BUILT: &str = "XTASK_DEMO_BUILT";

/// Runs the demonstration.
pub(crate) fn run(_: &[String]) -> anyhow::Result<()> {
    if let Some(dir) = std::env::var_os(WORKLOAD) {
        return workload(Path::new(&dir));
    }
    let criu = build()?;
    if !is_root() {
        println!("not root: going on in a user and pid namespace of our own");
        let status = Command::new("unshare")
            .args([
                "--user",
                "--map-root-user",
                "--pid",
                "--fork",
                "--mount",
                "--mount-proc",
            ])
            .arg(std::env::current_exe()?)
            .arg("demo")
            .env(BUILT, &criu)
            .status()
            .context("unshare (package util-linux)")?;
        ensure!(status.success(), "the demonstration failed");
        return Ok(());
    }
    // In a pid namespace of its own every run has the same pid.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let dir = std::env::temp_dir().join(format!("criu-rs-demo-{}", now.as_nanos()));
    fs::create_dir(&dir)?;
    let outcome = demonstrate(&criu, &dir);
    if outcome.is_ok() {
        fs::remove_dir_all(&dir)?;
    } else {
        eprintln!("images and logs are kept in {}", dir.display());
    }
    outcome
}

fn build() -> anyhow::Result<PathBuf> {
    // Inside the namespace everything is built already, perhaps by another user.
    if let Some(criu) = std::env::var_os(BUILT) {
        return Ok(criu.into());
    }
    crate::criu::ours()
}

fn is_root() -> bool {
    fs::read_to_string("/proc/self/status")
        .unwrap_or_default()
        .lines()
        .any(|line| line.starts_with("Uid:\t0\t"))
}

fn demonstrate(criu: &Path, dir: &Path) -> anyhow::Result<()> {
    let images = dir.join("images");
    fs::create_dir(&images)?;
    let diary = dir.join("diary");
    let out = File::create(dir.join("workload.log"))?;
    let mut command = Command::new("setsid");
    command
        .arg(std::env::current_exe()?)
        .arg("demo")
        .env(WORKLOAD, dir)
        .current_dir("/");
    command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out);
    let mut child = command.spawn().context("setsid (package util-linux)")?;
    let pid = child.id();
    let before = last_line(&diary, 3)?;
    println!(
        "a program with 4 threads, 64 MiB, a file, a pipe and a child runs as pid {pid}; it writes:\n  {before}"
    );

    let dumped = timed(criu, &["dump", "-t", &pid.to_string(), "-D"], &images)?;
    let status = child.wait()?;
    println!(
        "dumped in {dumped:.1?}, {} MiB of images; the program is dead: {status}",
        size(&images)? / MIB as u64
    );
    std::thread::sleep(Duration::from_millis(300));
    bury();
    let frozen = last_line(&diary, 1)?;

    let restored = timed(criu, &["restore", "-d", "-D"], &images)?;
    println!("restored in {restored:.1?}");
    let after = next_line(&diary, &frozen)?;
    println!("it was here when it was dumped:\n  {frozen}\nand has gone on:\n  {after}");
    let goes_on = tick(&after)? == tick(&frozen)? + 1;
    nix_kill(pid)?;
    ensure!(goes_on, "a tick is missing between the two lines");
    ensure!(
        !fs::read_to_string(&diary)?.contains("WRONG"),
        "the program found its own state wrong"
    );
    println!("it found all of its state as it was");
    Ok(())
}

/// In a pid namespace of our own we are init: orphans are ours to reap, and their pids are needed.
fn bury() {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    if std::process::id() == 1 {
        while waitpid(None, Some(WaitPidFlag::WNOHANG))
            .is_ok_and(|status| status != WaitStatus::StillAlive)
        {}
    }
}

/// Ends the restored program: it is nobody's child of ours any more.
fn nix_kill(pid: u32) -> anyhow::Result<()> {
    let status = Command::new("kill")
        .args(["-KILL", &pid.to_string()])
        .status()?;
    ensure!(status.success(), "kill {pid}");
    Ok(())
}

fn timed(criu: &Path, args: &[&str], images: &Path) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let output = Command::new(criu)
        .args(args)
        .arg(images)
        .args(["-v4", "-o", "criu.log"])
        .output()?;
    let took = start.elapsed();
    if !output.status.success() {
        bail!(
            "criu {}: {}",
            args[0],
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(took)
}

fn size(dir: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        sum += entry?.metadata()?.len();
    }
    Ok(sum)
}

fn lines(diary: &Path) -> Vec<String> {
    fs::read_to_string(diary)
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn last_line(diary: &Path, at_least: usize) -> anyhow::Result<String> {
    for _ in 0..200 {
        let lines = lines(diary);
        if lines.len() >= at_least
            && let Some(line) = lines.last()
        {
            return Ok(line.clone());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("the program writes nothing")
}

fn next_line(diary: &Path, after: &str) -> anyhow::Result<String> {
    for _ in 0..200 {
        let lines = lines(diary);
        if let Some(line) = lines
            .iter()
            .position(|line| line == after)
            .and_then(|at| lines.get(at + 1))
        {
            return Ok(line.clone());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("the restored program writes nothing")
}

fn tick(line: &str) -> anyhow::Result<u64> {
    let number = line.split_ascii_whitespace().nth(1).context("a tick")?;
    Ok(number.trim_end_matches(':').parse()?)
}

static COUNTS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// The program: never returns.
fn workload(dir: &Path) -> anyhow::Result<()> {
    let mut memory = vec![0u8; 64 * MIB];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for chunk in memory.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    let expected = checksum(&memory);
    for count in &COUNTS {
        std::thread::spawn(move || {
            loop {
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }
    let mut echo = Command::new("cat");
    // It ends with us: its input does.
    let mut echo = echo
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let mut to = echo.stdin.take().context("piped")?;
    let mut from = echo.stdout.take().context("piped")?;
    let mut diary = File::create(dir.join("diary"))?;
    for tick in 1u64.. {
        let counted: Vec<u64> = COUNTS
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        let sum = checksum(&memory);
        to.write_all(&tick.to_le_bytes())?;
        let mut back = [0; 8];
        from.read_exact(&mut back)?;
        let right = sum == expected && u64::from_le_bytes(back) == tick;
        let verdict = if right { "ok" } else { "WRONG" };
        writeln!(
            diary,
            "tick {tick}: threads counted {counted:?}, 64 MiB sum to {sum:016x}, the child answered: {verdict}"
        )?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn checksum(memory: &[u8]) -> u64 {
    memory
        .chunks_exact(8)
        .fold(0xcbf2_9ce4_8422_2325, |hash, chunk| {
            let word = u64::from_le_bytes([
                chunk[0], chunk[1], chunk[2], chunk[3], chunk[4], chunk[5], chunk[6], chunk[7],
            ]);
            (hash ^ word).wrapping_mul(0x0100_0000_01b3)
        })
}
