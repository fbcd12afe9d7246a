//! `ci`: what a change has to pass. CI runs this and nothing more.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::guest::{self, Missing};
use crate::{codegen, shell, stub, tidy, zdtm};

/// Programs that have to be there, and the Debian packages they come in.
const PROGRAMS: &[(&str, &str)] = &[
    ("cc", "gcc"),
    ("git", "git"),
    ("objcopy", "binutils"),
    ("ip", "iproute2"),
    ("python3", "python3"),
    ("setsid", "util-linux"),
];

/// A step: its name, and what it does.
type Step = (&'static str, fn() -> Result<()>);

/// In this order: cheap ones first.
const STEPS: &[Step] = &[
    ("programs", programs),
    ("tidy", || tidy::run(&[])),
    ("format", || shell::cargo(&["fmt", "--all", "--check"])),
    ("codegen", || codegen::run(&["--check".to_owned()])),
    ("stub", || stub::run(&[])),
    ("clippy", || {
        shell::cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ])
    }),
    ("test", || shell::cargo(&["test", "--workspace"])),
    ("zdtm", || {
        let junit = shell::target()?.join("zdtm.xml");
        zdtm::run(&[
            format!("--junit={}", junit.display()),
            "--known=zdtm/known/criu-rs".to_owned(),
        ])
    }),
    ("kill", || again(&["kill", "--times=40"])),
    ("network", || again(&["network", "--times=40"])),
    ("guests", guests),
];

/// The machines of the guests.
const GUESTS: &str = "all";

/// All steps, or the named ones.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    std::env::set_current_dir(shell::root()?)?;
    let wanted = |name: &str| arguments.iter().any(|wanted| wanted == name);
    let steps = STEPS
        .iter()
        .filter(|(name, _)| arguments.is_empty() || wanted(name));
    let mut left_out = Vec::new();
    for (name, step) in steps {
        let started = Instant::now();
        eprintln!("== {name}");
        match step() {
            // What cannot be had here says nothing of the change. Who names the step wants it.
            Err(error) if arguments.is_empty() && error.is::<Missing>() => {
                left_out.push(format!("{name} DID NOT RUN: {error:#}"));
            }
            done => done.with_context(|| format!("ci step {name}"))?,
        }
        eprintln!("== {name}: {:.1}s", started.elapsed().as_secs_f64());
    }
    for step in left_out {
        eprintln!("== {step}");
    }
    Ok(())
}

/// A verb in a process of its own: who has once unshared a pid namespace starts nobody when the first in there is dead.
fn again(words: &[&str]) -> Result<()> {
    let own = std::env::current_exe()?;
    shell::run(&own.to_string_lossy(), words)
}

/// Some of the suite under the kernels and on the machines that this one is not.
fn guests() -> Result<()> {
    let junit = shell::target()?.join("guests");
    guest::provide(GUESTS)?;
    zdtm::run(&[
        format!("--arch={GUESTS}"),
        format!("--junit={}", junit.display()),
        "--quick".to_owned(),
    ])
}

/// Installs what is missing, where there is apt to do it.
fn programs() -> Result<()> {
    shell::need(PROGRAMS)
}
