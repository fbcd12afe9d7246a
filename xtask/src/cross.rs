//! The programs of a guest, built for its machine: static, and in a directory of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::machine::Machine;
use crate::{shell, toolchain, zdtm};

/// Packages, and their programs.
const PROGRAMS: &[(&str, &str)] = &[
    ("criu", "criu"),
    ("zdtm-runner", "zdtm-run"),
    ("zdtm-cases", "zdtm-cases"),
];

/// What was built.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    pub(crate) init: PathBuf,
    programs: Vec<PathBuf>,
}

impl Built {
    /// The driver, the runner, the cases, and what the cases start.
    pub(crate) fn programs(&self) -> &[PathBuf] {
        &self.programs
    }
}

/// Fetches linker and compiler for a machine.
pub(crate) fn provide(machine: &Machine) -> Result<()> {
    shell::need(machine.linking)?;
    if machine.name != std::env::consts::ARCH {
        toolchain::rustc(machine)?;
    }
    Ok(())
}

/// Builds everything for a machine; the driver only if it is going to be called.
pub(crate) fn build(machine: &Machine, criu: bool) -> Result<Built> {
    let wanted = || {
        PROGRAMS
            .iter()
            .filter(|(package, _)| criu || *package != "criu")
    };
    let packages: Vec<&str> = wanted().map(|(package, _)| *package).collect();
    let dir = compile(machine, GUEST, &[&[INIT], &packages[..]].concat())?;
    let mut programs: Vec<PathBuf> = wanted().map(|(_, name)| dir.join(name)).collect();
    programs.extend(compat(machine, &dir)?);
    Ok(Built {
        init: dir.join(INIT),
        programs,
    })
}

/// Builds what is measured in a guest, and what measures it: the driver for speed, as it is anywhere else.
pub(crate) fn build_bench(machine: &Machine) -> Result<Built> {
    let fast = compile(machine, "release", &["criu"])?;
    let dir = compile(machine, GUEST, &[INIT, "xtask", "benches"])?;
    Ok(Built {
        init: dir.join(INIT),
        programs: vec![fast.join("criu"), dir.join("xtask"), dir.join("workload")],
    })
}

const INIT: &str = "zdtm-init";

/// The profile of what shall be built quickly.
const GUEST: &str = "guest";

/// Builds packages for a machine; says where their programs are.
fn compile(machine: &Machine, profile: &str, packages: &[&str]) -> Result<PathBuf> {
    shell::need(machine.linking)?;
    let target_dir = shell::target()?.join("guest");
    let upper = machine.target.replace('-', "_").to_uppercase();
    let mut command = Command::new(shell::cargo_program());
    command.args(["build", "--profile", profile, "--target", machine.target]);
    command.arg("--bins");
    for package in packages {
        command.args(["-p", package]);
    }
    command
        .current_dir(shell::root()?)
        .env("CARGO_TARGET_DIR", &target_dir)
        .env_remove("RUSTFLAGS")
        // Per target, so that programs of the build itself are not concerned.
        .env(
            format!("CARGO_TARGET_{upper}_RUSTFLAGS"),
            "-Ctarget-feature=+crt-static",
        )
        .env(format!("CARGO_TARGET_{upper}_LINKER"), machine.linker);
    // Where the machine is our own, the compiler that is there will do.
    if machine.name != std::env::consts::ARCH {
        command
            .env("RUSTC", toolchain::rustc(machine)?)
            // asm! of MIPS is not stable.
            .env("RUSTC_BOOTSTRAP", "1");
    }
    eprintln!("building for {}", machine.name);
    let status = command.status()?;
    ensure!(status.success(), "the build for {} failed", machine.name);
    Ok(target_dir.join(machine.target).join(profile))
}

/// The 32-bit program of a machine that has such; the case skips itself where there is none.
fn compat(machine: &Machine, dir: &Path) -> Result<Option<PathBuf>> {
    let program = dir.join(zdtm::COMPAT);
    Ok((machine.name == "x86_64" && zdtm::compat(&program)?).then_some(program))
}
