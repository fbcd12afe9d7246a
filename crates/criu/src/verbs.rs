//! From what was asked to who does it.

use std::io::{IsTerminal, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use criu_tracee::{Name, Names, Program};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::wait::wait;
use nix::unistd::Pid;

use crate::error::{self, Failure, Kind};
use crate::log::{Log, Target};
use crate::options::{CheckOptions, Common, CpuinfoOptions, DumpOptions, RestoreOptions};
use crate::progress::Progress;
use crate::{check, cpuinfo};
use criu_cli::config::Surroundings;
use criu_cli::typed::Typed;
use criu_cli::verb::Verb;

/// Does what was typed: opens the log, runs the verb in it, and leaves the record of a failure.
pub fn run(
    typed: &Typed,
    around: &Surroundings,
    out: &mut dyn Write,
) -> Result<(), (Failure, bool)> {
    let start = Instant::now();
    let silent = |failure| (failure, false);
    let common = Common::read(typed, around).map_err(silent)?;
    let keeps_record = matches!(typed.verb, Verb::Dump | Verb::PreDump | Verb::Restore);
    if keeps_record {
        for dir in [&common.images, &common.work] {
            is_directory(dir).map_err(silent)?;
        }
        // A record that stayed would speak of this run, and of what another one met.
        error::forget(&common.work).map_err(|error| {
            let record = common.work.join(error::FILE_NAME);
            silent(Failure::from_chain("options", &error).object(record.display()))
        })?;
    }
    let log = Log::open(&common.log, common.verbosity, start)
        .map_err(|error| silent(Failure::from_chain("log", &error).object(&common.log)))?;
    log.during(|| {
        tracing::info!(
            "Version: {} ({})",
            crate::COMPATIBLE,
            crate::NAME_AND_VERSION
        );
        for (option, why) in typed.remarks() {
            tracing::info!(option, "does nothing: {why}");
        }
        dispatch(typed, around, &common, out).map_err(|failure| {
            if keeps_record && let Err(error) = failure.save(&common.work) {
                tracing::warn!(%error, "{} is not written", error::FILE_NAME);
            }
            tracing::error!(target: "criu", "{failure}");
            (failure, log.shows_errors)
        })
    })
}

fn dispatch(
    typed: &Typed,
    around: &Surroundings,
    common: &Common,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    match typed.verb {
        Verb::Dump => crate::dump::dump(&DumpOptions::read(typed, around)?, &progress(common)),
        Verb::Restore => restore(&RestoreOptions::read(typed, around)?, &progress(common)),
        Verb::Check => check::check(&CheckOptions::read(typed)?, out),
        Verb::CpuinfoDump | Verb::CpuinfoCheck => {
            cpuinfo::run(&CpuinfoOptions::read(typed)?, &common.images)
        }
        verb => Err(verb.not_yet()),
    }
}

/// Restores, and stays for as long as was asked.
fn restore(options: &RestoreOptions, progress: &Progress) -> Result<(), Failure> {
    crate::restore::restore(options, progress)?;
    match options.exec.as_slice() {
        [program, args @ ..] => {
            let error = Command::new(program).args(args).exec();
            Err(Failure::from_chain("exec-cmd", &error).object(program.display()))
        }
        [] if options.detached || options.tree.plan => Ok(()),
        [] => reap(),
    }
}

/// Writes the root task's pid. As late as can be, but before tasks run: an existing file is a refusal.
pub fn write_pidfile(path: &Path, pid: Pid, names: &mut Names) -> Result<(), Failure> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        Failure::from_chain("pidfile", error).object(path.display())
    };
    let mut program = Program::new();
    let at = program.cstr(path.as_os_str().as_bytes());
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    program.openat(AT_FDCWD.as_raw_fd(), at, flags.bits(), 0o600);
    let made = names.make(&Name::Path(path.to_owned()), &program);
    made.map_err(|error| match error.errno() {
        Some(errno) => failed(&std::io::Error::from(errno)),
        None => failed(&error),
    })?;
    std::fs::write(path, pid.to_string()).map_err(|error| failed(&error))
}

/// Waits until no child is left: the root task, and zombies it leaves to us. Their ends are not ours to judge.
fn reap() -> Result<(), Failure> {
    loop {
        match wait() {
            Err(Errno::ECHILD) => return Ok(()),
            Err(errno) if errno != Errno::EINTR => {
                return Err(Failure::new(Kind::Kernel, "wait", "").call("wait4", errno));
            }
            _ => {}
        }
    }
}

/// A person watches if standard error is a terminal and the log is not there too.
fn progress(common: &Common) -> Progress {
    Progress::new(std::io::stderr().is_terminal() && common.log != Target::Stderr)
}

fn is_directory(path: &Path) -> Result<(), Failure> {
    let failed =
        |error: std::io::Error| Failure::from_chain("options", &error).object(path.display());
    match std::fs::metadata(path).map_err(failed)?.is_dir() {
        true => Ok(()),
        false => Err(Failure::usage("not a directory").object(path.display())),
    }
}
