//! Running programs, and saying which.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The workspace.
pub(crate) fn root() -> Result<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(own.parent().context("xtask has a parent")?.to_owned())
}

/// Runs a program in the workspace; failing is an error.
pub(crate) fn run(program: &str, arguments: &[impl AsRef<OsStr>]) -> Result<()> {
    let words: Vec<_> = arguments
        .iter()
        .map(|argument| argument.as_ref().to_string_lossy())
        .collect();
    eprintln!("+ {program} {}", words.join(" "));
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root()?)
        .status()
        .with_context(|| program.to_owned())?;
    if !status.success() {
        bail!("{program} {}: {status}", words.join(" "));
    }
    Ok(())
}

/// The cargo that runs us.
pub(crate) fn cargo(arguments: &[&str]) -> Result<()> {
    run(&cargo_program(), arguments)
}

/// What a cargo command prints.
pub(crate) fn cargo_output(arguments: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(cargo_program())
        .args(arguments)
        .current_dir(root()?)
        .output()?;
    if !output.status.success() {
        bail!(
            "cargo {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}

fn cargo_program() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// Whether there is such a program in PATH.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
