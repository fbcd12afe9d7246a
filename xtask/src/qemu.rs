//! One boot of a guest: QEMU, and what it says over the serial line.
//!
//! The exit status of QEMU means nothing, for it is the same after a power-off and a panic. The verdict is init's last
//! line; whatever ends without it has failed.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::emulator;
use crate::kernel::Kernel;
use crate::machine::Machine;

/// How init begins its lines, and what it says.
const INIT: &str = "zdtm-init: ";
const STARTED: &str = "start";
const VERDICT: &str = "verdict ";

/// No guest takes this long to its first word.
const BOOT: Duration = Duration::from_secs(180);

/// How often it is asked whether somebody has stopped the emulator: that is not the guest's silence.
const LISTEN: Duration = Duration::from_secs(1);

/// What makes a guest.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) machine: &'static Machine,
    pub(crate) kernel: Kernel,
    pub(crate) cpu: String,
    /// Whether an old emulator will not do.
    pub(crate) picky: bool,
    pub(crate) initramfs: PathBuf,
    pub(crate) disk: PathBuf,
    /// Everything that the serial line says.
    pub(crate) log: PathBuf,
    /// Nothing happens in silence for so long.
    pub(crate) silence: Duration,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Init's verdict: the exit code of the runner, and the taint of the kernel.
    Verdict {
        code: i32,
        taint: u64,
    },
    /// It never got to init.
    NoBoot(String),
    Panic(String),
    /// Silent for too long, and killed.
    Hang,
    /// Powered off, or QEMU ended, without a verdict.
    Off(String),
}

/// Boots it and waits for its end; every line of the suite goes to `line`. A boot that fails is tried once more.
pub(crate) fn run(guest: &Guest, line: &mut dyn FnMut(&str)) -> Result<(End, Duration)> {
    let mut log = File::create(&guest.log).with_context(|| guest.log.display().to_string())?;
    let (end, booted) = boot(guest, &mut log, line)?;
    match end {
        End::NoBoot(why) => {
            line(&format!("no boot, once more: {why}"));
            boot(guest, &mut log, line)
        }
        end => Ok((end, booted)),
    }
}

fn boot(guest: &Guest, log: &mut File, line: &mut dyn FnMut(&str)) -> Result<(End, Duration)> {
    let begun = Instant::now();
    let mut child = command(guest)?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone()?)
        .spawn()
        .with_context(|| guest.machine.qemu.0.to_owned())?;
    let output = child.stdout.take().context("it was piped")?;
    let (tell, told) = channel();
    let reader = std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut bytes = Vec::new();
        while matches!(output.read_until(b'\n', &mut bytes), Ok(length) if length > 0) {
            let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            if tell.send(text).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    let (mut booted, mut panic, mut last) = (None, None, String::new());
    let mut silence = Duration::ZERO;
    let end = loop {
        let patience = if booted.is_none() {
            BOOT
        } else {
            guest.silence
        };
        let text = match told.recv_timeout(LISTEN) {
            Ok(text) => text,
            Err(RecvTimeoutError::Timeout) if silence >= patience => break End::Hang,
            Err(RecvTimeoutError::Timeout) => {
                silence += if stopped(&child) {
                    Duration::ZERO
                } else {
                    LISTEN
                };
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break End::Off(last),
        };
        silence = Duration::ZERO;
        writeln!(log, "{text}")?;
        if text.contains("Kernel panic") {
            panic = Some(text.clone());
        }
        // The firmware does not end its last line.
        match text.find(INIT).map(|at| &text[at + INIT.len()..]) {
            Some(STARTED) => booted = Some(begun.elapsed()),
            Some(words) if words.starts_with(VERDICT) => break verdict(words),
            Some(words) => line(words),
            None if booted.is_some() => line(&text),
            None => {}
        }
        if !text.is_empty() {
            last = text;
        }
    };
    // After the verdict it powers off by itself; whatever else it does by then is of no interest.
    if !matches!(end, End::Verdict { .. }) || !ended(&mut child, Duration::from_secs(20)) {
        child.kill()?;
    }
    child.wait()?;
    drop(told);
    reader.join().ok();
    let end = match (end, panic, booted) {
        (end @ End::Verdict { .. }, ..) => end,
        (End::Hang, _, None) => End::NoBoot("silence".to_owned()),
        (_, Some(panic), None) => End::NoBoot(panic),
        (End::Off(last), _, None) => End::NoBoot(last),
        (_, Some(panic), _) => End::Panic(panic),
        (end, ..) => end,
    };
    Ok((end, booted.unwrap_or_default()))
}

/// Whether it is stopped by a signal.
fn stopped(child: &Child) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|rest| rest.starts_with('T'))
}

fn ended(child: &mut Child, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// `verdict CODE TAINT`
fn verdict(words: &str) -> End {
    let mut numbers = words.split_whitespace().skip(1);
    let code = numbers.next().and_then(|word| word.parse().ok());
    let taint = numbers.next().and_then(|word| word.parse().ok());
    match (code, taint) {
        (Some(code), Some(taint)) => End::Verdict { code, taint },
        _ => End::Off(words.to_owned()),
    }
}

/// A processor that gets nowhere for 80 s ends the guest, and the stacks of all are told: at this level of the log nothing
/// else tells them. The usual 20 s are too few where one processor of the host stands for two of the guest.
const LOCKED_UP: &str = "softlockup_panic=1 watchdog_thresh=40 panic_print=0x40";

fn command(guest: &Guest) -> Result<Command> {
    let machine = guest.machine;
    let mut command = emulator::command(machine, guest.picky)?;
    let path = |path: &Path| path.display().to_string();
    command
        .args(machine.board)
        .args(["-cpu", &guest.cpu])
        .args(["-smp", &machine.cpus.to_string(), "-m", "1024"])
        .args(["-accel", "tcg", "-nographic", "-no-reboot", "-nodefaults"])
        .args(["-serial", "stdio", "-monitor", "none"])
        .args(["-kernel", &path(&guest.kernel.image)])
        .args(["-initrd", &path(&guest.initramfs)])
        .args([
            "-append",
            &format!(
                "console={} panic=-1 quiet loglevel=4 secretmem.enable=1 {LOCKED_UP}",
                machine.console
            ),
        ])
        .args([
            "-drive",
            &format!(
                "if=none,id=disk,format=raw,cache=unsafe,file={}",
                path(&guest.disk)
            ),
        ])
        .args(["-device", "virtio-blk-pci,drive=disk"]);
    Ok(command)
}
