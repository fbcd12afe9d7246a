//! Running programs, and saying which.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

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

pub(crate) fn cargo_program() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// Whether there is such a program in PATH, or where only root looks; or such a file.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM.iter().map(PathBuf::from))
        .any(|dir| dir.join(program).is_file())
}

/// Not in everybody's PATH.
const SYSTEM: &[&str] = &["/usr/sbin", "/sbin"];

/// Sees to it that programs are there, given with the Debian packages they come in: installs them as root, else names them.
pub(crate) fn need(programs: &[(&str, &str)]) -> Result<()> {
    let mut missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| !has(program))
        .map(|(_, package)| *package)
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if nix::unistd::geteuid().is_root() && has("apt-get") {
        // The lists may be good enough even if they are not new.
        let _ = run("apt-get", &["update", "-qq"]);
        let words = ["install", "-y", "-qq", "--no-install-recommends"];
        if run("apt-get", &[&words[..], &missing].concat()).is_ok() {
            return Ok(());
        }
    }
    bail!("missing here: apt-get install {}", missing.join(" "))
}

/// Where cargo puts what it builds, however it was told.
pub(crate) fn target() -> Result<PathBuf> {
    static TARGET: OnceLock<PathBuf> = OnceLock::new();
    if let Some(target) = TARGET.get() {
        return Ok(target.clone());
    }
    let output = cargo_output(&["metadata", "--format-version=1", "--no-deps", "--offline"])?;
    let metadata: serde_json::Value = serde_json::from_slice(&output)?;
    let target = metadata["target_directory"].as_str();
    let target = PathBuf::from(target.context("cargo metadata without target_directory")?);
    Ok(TARGET.get_or_init(|| target).clone())
}
