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
    shell::need(machine.linking)?;
    let target_dir = shell::target()?.join("guest");
    let upper = machine.target.replace('-', "_").to_uppercase();
    let wanted = || {
        PROGRAMS
            .iter()
            .filter(|(package, _)| criu || *package != "criu")
    };
    let mut command = Command::new(shell::cargo_program());
    command.args(["build", "--profile", "guest", "--target", machine.target]);
    command.args(["-p", "zdtm-init"]);
    for (package, _) in wanted() {
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
    let dir = target_dir.join(machine.target).join("guest");
    let mut programs: Vec<PathBuf> = wanted().map(|(_, name)| dir.join(name)).collect();
    programs.extend(compat(machine, &dir)?);
    Ok(Built {
        init: dir.join("zdtm-init"),
        programs,
    })
}

/// The 32-bit program of a machine that has such; the case skips itself where there is none.
fn compat(machine: &Machine, dir: &Path) -> Result<Option<PathBuf>> {
    let program = dir.join(zdtm::COMPAT);
    Ok((machine.name == "x86_64" && zdtm::compat(&program)?).then_some(program))
}
