//! Which QEMU runs a guest: the installed one, or a newer one out of the cache where that is too old.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::Apt;
use crate::machine::Machine;
use crate::{cache, shell};

/// Newer x86_64 kernels crash at boot, most of the times, in what is older than this.
const RECENT: u32 = 8;

/// The release that has a recent one, for machines whose own is too old.
const RELEASE: &str = "bookworm-backports";

/// Whether a kernel needs a recent one.
pub(crate) fn picky(machine: &Machine, series: &str) -> bool {
    machine.name == "x86_64" && series != "6.1"
}

/// The emulator for a guest, with the options that it needs to find its files.
pub(crate) fn command(machine: &Machine, picky: bool) -> Result<Command> {
    let (program, package) = machine.qemu;
    // Nothing old is installed only to find that it is too old.
    if !picky {
        shell::need(&[(program, package)])?;
    }
    if shell::has(program) && (!picky || version(program)? >= RECENT) {
        return Ok(Command::new(program));
    }
    let dir = cache::once("qemu", |dir| {
        let architecture = Command::new("dpkg").arg("--print-architecture").output()?;
        let architecture = String::from_utf8(architecture.stdout)?;
        Apt::open(architecture.trim())?.unpack_whole(&[package], RELEASE, dir)
    })
    .with_context(|| format!("a QEMU not older than {RECENT}"))?;
    let mut command = Command::new(dir.join("usr/bin").join(program));
    for data in ["usr/share/qemu", "usr/share/seabios"] {
        command.arg("-L").arg(dir.join(data));
    }
    // What it needs and the machine did not have.
    let libraries: Vec<PathBuf> = std::fs::read_dir(dir.join("usr/lib"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries)?);
    Ok(command)
}

/// `QEMU emulator version 7.2.22 (...)`.
fn version(program: &str) -> Result<u32> {
    let output = Command::new(program).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text
        .split_whitespace()
        .skip_while(|word| *word != "version")
        .nth(1)
        .and_then(|version| version.split('.').next()?.parse().ok());
    match number {
        Some(number) => Ok(number),
        None => bail!("{program} --version says {:?}", text.lines().next()),
    }
}
