//! `zdtm`: builds criu and the cases in release, and runs the suite on this machine.

use std::path::Path;

use anyhow::{Result, bail};
use zdtm_runner::Options;

use crate::shell;

/// The 32-bit program of the compat cases: source, and where the case binary looks for it.
const COMPAT_SOURCE: &str = "zdtm/cases/cpu/compat32.S";
const COMPAT: &str = "target/release/zdtm-compat32";

/// All options are the runner's; without `--criu` and its like the release build is tested.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let root = shell::root()?;
    std::env::set_current_dir(&root)?;
    let release = root.join("target/release");
    let Some(mut options) = Options::parse(arguments.to_vec())? else {
        return Ok(());
    };
    let foreign = !options.dump_with.is_empty() && !options.restore_with.is_empty();
    build(!foreign && !options.list)?;
    // The runner re-executes itself inside of namespaces, so it is its own program and not part of this one.
    let own_cases = options.cases.parent() == std::env::current_exe()?.parent();
    if own_cases {
        options.cases = release.join("zdtm-cases");
    }
    let mut words: Vec<String> = arguments.to_vec();
    words.push(format!("--cases={}", options.cases.display()));
    if !foreign && options.dump_with.is_empty() && options.restore_with.is_empty() {
        words.push(format!("--criu={}", release.join("criu").display()));
    }
    let runner = release.join("zdtm-run");
    match std::process::Command::new(runner)
        .args(words)
        .status()?
        .code()
    {
        Some(0) => Ok(()),
        Some(1) => bail!("there are failures"),
        code => bail!("zdtm-run ended with {code:?}"),
    }
}

/// Builds the cases, the runner, and criu unless another one is tested.
fn build(criu: bool) -> Result<()> {
    let mut words = vec![
        "build",
        "--release",
        "-p",
        "zdtm-cases",
        "-p",
        "zdtm-runner",
    ];
    if criu {
        words.extend(["-p", "criu"]);
    }
    shell::cargo(&words)?;
    compat()
}

/// The 32-bit program, where a compiler can make one; the case skips itself where there is none.
fn compat() -> Result<()> {
    let newer = |path: &str| {
        Path::new(path)
            .metadata()
            .and_then(|meta| meta.modified())
            .ok()
    };
    if !Path::new(COMPAT_SOURCE).exists() || newer(COMPAT) > newer(COMPAT_SOURCE) {
        return Ok(());
    }
    let words = [
        "-m32",
        "-nostdlib",
        "-static",
        "-Wl,--build-id=none",
        "-o",
        COMPAT,
        COMPAT_SOURCE,
    ];
    if !shell::has("cc") || shell::run("cc", &words).is_err() {
        eprintln!("no 32-bit program: the compat case will be skipped");
    }
    Ok(())
}
