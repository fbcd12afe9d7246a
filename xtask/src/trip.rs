//! A disk on its way through one guest or several, one after the other: the suite's cases, then what it left of them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::busybox;
use crate::cross::Built;
use crate::disk::{self, Load};
use crate::emulator;
use crate::initramfs;
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::modules::{LATER, Modules};
use crate::peer::Peer;
use crate::qemu::{self, End, Guest};

/// A case in a guest takes longer than on the host.
const TIMEOUT: &str = "--timeout=180";

/// A case is killed before it is silent for so long.
const SILENCE: Duration = Duration::from_secs(300);

/// One guest of a trip.
#[derive(Clone, Debug)]
pub(crate) struct Leg {
    pub(crate) name: String,
    pub(crate) kernel: Kernel,
    pub(crate) cpu: String,
    /// For the runner, beside what all legs have.
    pub(crate) words: Vec<String>,
}

/// The guests that a disk goes through.
#[derive(Clone, Debug)]
pub(crate) struct Trip {
    pub(crate) name: String,
    pub(crate) machine: &'static Machine,
    pub(crate) built: Built,
    pub(crate) legs: Vec<Leg>,
}

/// What all trips have in common.
pub(crate) struct Terms<'a> {
    pub(crate) known: &'a Path,
    pub(crate) peer: Option<&'a Path>,
    pub(crate) words: &'a [String],
    pub(crate) junit: Option<&'a Path>,
    /// Where each trip has a directory.
    pub(crate) place: &'a Path,
    /// Whether lines have to say whose they are.
    pub(crate) tag: bool,
}

/// What came of a leg.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) end: End,
    pub(crate) summary: String,
    pub(crate) booted: Duration,
    pub(crate) took: Duration,
}

/// Makes the trip. A guest that ends without a verdict is its end; failures of cases are not.
pub(crate) fn make(trip: &Trip, terms: &Terms<'_>) -> Result<Vec<Outcome>> {
    let dir = terms
        .place
        .join(trip.name.replace(['>', ':', ' ', ','], "-"));
    std::fs::create_dir_all(&dir)?;
    let modules: Result<Vec<Modules>> = trip
        .legs
        .iter()
        .map(|leg| Modules::read(&leg.kernel.modules, &[initramfs::BOOT, LATER]))
        .collect();
    let modules = modules?;
    let peer = terms.peer.map(|root| Peer::at(root, trip.machine));
    let peer = peer.transpose()?;
    let load = Load {
        built: &trip.built,
        busybox: &busybox::get(trip.machine)?,
        modules: &modules,
        known: Some(terms.known),
        peer: peer.as_ref().map(|peer| (peer, trip.machine)),
    };
    let disk = disk::make(&dir, &load)?;
    let mut outcomes = Vec::new();
    // All legs in one emulator: another one has another processor.
    let mut all = trip.legs.iter().map(|leg| &leg.kernel.series);
    let picky = all.any(|series| emulator::picky(trip.machine, series));
    for (leg, modules) in trip.legs.iter().zip(&modules) {
        let begun = Instant::now();
        let guest = Guest {
            machine: trip.machine,
            kernel: leg.kernel.clone(),
            cpu: leg.cpu.clone(),
            picky,
            initramfs: dir.join("initramfs"),
            disk: disk.clone(),
            log: dir.join(format!("serial-{}.log", outcomes.len())),
            silence: SILENCE,
        };
        let mut words: Vec<String> = [
            "zdtm-run",
            "--criu=/zdtm/criu",
            "--output=/zdtm/out",
            TIMEOUT,
            "--known=/zdtm/known",
            "--junit=/zdtm/out/junit.xml",
        ]
        .map(str::to_owned)
        .into();
        words.push(format!("--jobs={}", trip.machine.cpus));
        words.extend(terms.words.iter().chain(&leg.words).cloned());
        initramfs::write(&guest.initramfs, &trip.built.init, modules, &words)?;
        let (end, summary, booted) = watch(&guest, &leg.name, terms.tag)?;
        let out = keep(&disk, &dir, &leg.name, terms.junit)?;
        let well = matches!(end, End::Verdict { code: 0, .. });
        let over = !matches!(end, End::Verdict { .. });
        if !well {
            println!("{}: what it left: {}", leg.name, out.display());
        }
        let (name, took) = (leg.name.clone(), begun.elapsed());
        outcomes.push(Outcome {
            name,
            end,
            summary,
            booted,
            took,
        });
        if over {
            break;
        }
    }
    Ok(outcomes)
}

/// Boots a guest and prints what its suite says, but for the closing line, which is the summary.
fn watch(guest: &Guest, name: &str, tag: bool) -> Result<(End, String, Duration)> {
    let mut summary = String::new();
    let (end, booted) = qemu::run(guest, &mut |line| {
        if line.contains(" passed, ") {
            summary = line.to_owned();
        } else if !line.starts_with("logs and images") {
            // Those are fetched, and named below.
            let tag = if tag { &format!("{name}: ") } else { "" };
            println!("{tag}{line}");
        }
    })?;
    Ok((end, summary, booted))
}

/// Takes logs, images and results off the disk.
fn keep(disk: &Path, dir: &Path, name: &str, junit: Option<&Path>) -> Result<PathBuf> {
    disk::fetch(disk, dir)?;
    let out = dir.join("out");
    if let Some(junit) = junit
        && out.join("junit.xml").exists()
    {
        std::fs::create_dir_all(junit)?;
        let name = name.replace(['>', ':', ' ', ','], "-");
        std::fs::copy(out.join("junit.xml"), junit.join(format!("{name}.xml")))?;
    }
    Ok(out)
}
