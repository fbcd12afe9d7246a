//! `cargo xtask fuzz`: what reads the bytes of others must not trust them.
//!
//! The checks are in `fuzz/checks`. Two programs feed them: libFuzzer, where there is a nightly compiler, and the tests
//! named `replay`, which go through the committed corpus on any compiler.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::args::Args;
use crate::shell::target;
use crate::{corpus, shell};

const USAGE: &str = "fuzz [--seconds N] [--only NAME] | --replay | --corpus
  --seconds N  how long each target is fuzzed; default: 60
  --only NAME  only targets whose name contains this
  --replay     only go through the corpus, on this compiler
  --corpus     write the corpus anew";

const TARGETS: &[&str] = &["image", "pagemap", "proc"];

pub(crate) fn run(words: &[String]) -> Result<()> {
    let mut args = Args::new(words);
    let seconds = args.value("--seconds")?.unwrap_or(60u32);
    let only = args.value::<String>("--only")?.unwrap_or_default();
    let replay = args.flag("--replay");
    let write = args.flag("--corpus");
    args.finish(USAGE)?;
    let dir = shell::root()?.join("fuzz");
    if write {
        return corpus::write(&dir.join("corpus"));
    }
    if replay {
        let packages = ["-p", "criu-image", "-p", "criu-proc"];
        return shell::cargo(&[&["test"], &packages[..], &["--test", "replay"]].concat());
    }
    let Some(cargo_fuzz) = cargo_fuzz()? else {
        println!("skipped: no nightly compiler (rustup toolchain install nightly)");
        return Ok(());
    };
    let mut failed = Vec::new();
    for name in TARGETS.iter().filter(|name| name.contains(&only)) {
        if !fuzz(&cargo_fuzz, &dir, name, seconds)? {
            failed.push(*name);
        }
    }
    ensure!(
        failed.is_empty(),
        "found something: {failed:?} (see fuzz/artifacts)"
    );
    Ok(())
}

/// The tool, built if there is none; `None` without a nightly compiler.
fn cargo_fuzz() -> Result<Option<PathBuf>> {
    let nightly = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--version"])
        .output();
    if !nightly.is_ok_and(|output| output.status.success()) {
        return Ok(None);
    }
    if shell::has("cargo-fuzz") {
        return Ok(Some("cargo-fuzz".into()));
    }
    let root = target()?.join("tools");
    let tool = root.join("bin/cargo-fuzz");
    if !tool.exists() {
        let root = root.to_str().context("a path that is text")?;
        shell::cargo(&[
            "install",
            "cargo-fuzz",
            "--locked",
            "--quiet",
            "--root",
            root,
        ])?;
    }
    Ok(Some(tool))
}

/// Whether nothing was found. What is of interest goes to the target directory, not to the committed corpus.
fn fuzz(cargo_fuzz: &Path, dir: &Path, name: &str, seconds: u32) -> Result<bool> {
    let found = target()?.join("fuzz-corpus").join(name);
    std::fs::create_dir_all(&found)?;
    // What libFuzzer says is long; the end of it matters, and only if it found something.
    let log = target()?.join(format!("fuzz-{name}.log"));
    println!("{name}: {seconds} s (see {})", log.display());
    let status = Command::new(cargo_fuzz)
        .args(["fuzz", "run", "--fuzz-dir"])
        .arg(dir)
        .arg(name)
        .args([&found, &dir.join("corpus").join(name)])
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .args(["-max_len=16384", "-print_final_stats=1"])
        // The toolchain that runs us is not the one it needs.
        .env("RUSTUP_TOOLCHAIN", "nightly")
        .env_remove("CARGO")
        .current_dir(dir)
        .stderr(File::create(&log)?)
        .status()
        .with_context(|| cargo_fuzz.display().to_string())?;
    let text = std::fs::read(&log)?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    if status.success() {
        let stats = lines.iter().filter(|line| line.starts_with("stat::"));
        stats.for_each(|line| println!("  {line}"));
    } else {
        println!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
    }
    Ok(status.success())
}
