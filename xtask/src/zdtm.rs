//! `zdtm`: builds criu and the cases in release, and runs the suite on this machine; or, with `--arch`, in guests.

use std::path::Path;

use anyhow::{Result, bail};
use zdtm_runner::Options;

use crate::{guest, shell};

/// The 32-bit program of the compat cases: source, and its name beside the case binary.
const COMPAT_SOURCE: &str = "zdtm/cases/cpu/compat32.S";
pub(crate) const COMPAT: &str = "zdtm-compat32";

/// All options are the runner's; without `--criu` and its like the release build is tested.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    std::env::set_current_dir(shell::root()?)?;
    if arguments.iter().any(|word| word.starts_with("--arch")) {
        return guest::run(arguments);
    }
    let release = shell::target()?.join("release");
    let Some(mut options) = Options::parse(arguments.to_vec())? else {
        return Ok(());
    };
    let foreign = !options.dump_with.is_empty() && !options.restore_with.is_empty();
    build(&release, !foreign && !options.list)?;
    // The runner re-executes itself inside of namespaces, so it is its own program and not part of this one.
    let own_cases = options.cases.parent() == std::env::current_exe()?.parent();
    if own_cases {
        options.cases = release.join("zdtm-cases");
    }
    let mut words: Vec<String> = arguments.to_vec();
    let output = shell::target()?.join("zdtm");
    words.insert(0, format!("--output={}", output.display()));
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
fn build(release: &Path, criu: bool) -> Result<()> {
    shell::cargo(&[
        "build",
        "--release",
        "-p",
        "zdtm-cases",
        "-p",
        "zdtm-runner",
    ])?;
    if criu {
        crate::criu::ours()?;
    }
    compat(&release.join(COMPAT)).map(|_| ())
}

/// Makes the 32-bit program, if a compiler can; the case skips itself where there is none.
pub(crate) fn compat(program: &Path) -> Result<bool> {
    let time = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    let source = Path::new(COMPAT_SOURCE);
    if !source.exists() || time(program) > time(source) {
        return Ok(program.exists());
    }
    let path = program.display().to_string();
    let words = [
        "-m32",
        "-nostdlib",
        "-static",
        "-Wl,--build-id=none",
        "-o",
        &path,
        COMPAT_SOURCE,
    ];
    let made = shell::has("cc") && shell::run("cc", &words).is_ok();
    if !made {
        eprintln!("no 32-bit program: the compat case will be skipped");
    }
    Ok(made)
}
