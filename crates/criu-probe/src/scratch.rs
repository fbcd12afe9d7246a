//! A task to try things in: cloned from us, stopped before it does anything, killed when dropped.

use std::fs;

use criu_tracee::{Error, Nursery, Outcome, Program, Ret, Site, Stopped, Tracee, spawn_root};
use nix::errno::Errno;

use crate::feature::{Answer, Lack, judge, refusal, unreadable};

/// A held task that nobody will miss.
pub(crate) struct Scratch {
    task: Tracee,
}

impl Scratch {
    /// A new one.
    pub(crate) fn new() -> Result<Self, Lack> {
        let nursery = nursery()?;
        let task = spawn_root(&nursery, &[], 0)
            .map_err(|error| Lack::unknown(format!("no task to try it in: {error}")))?;
        Ok(Scratch { task })
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> i32 {
        self.task.pid().as_raw()
    }

    /// Its only thread, for ptrace(2).
    pub(crate) fn stopped(&self) -> Result<&Stopped, Lack> {
        let gone = || Lack::unknown("the task to try it in has gone");
        self.task
            .threads()
            .first()
            .and_then(|thread| thread.stopped().ok())
            .ok_or_else(gone)
    }

    /// Runs a program of which every call must succeed, unless it is tolerated.
    pub(crate) fn run(&mut self, program: &Program) -> Result<Outcome, Lack> {
        self.task.run(program).map_err(|error| lack(&error))
    }

    /// Runs a program whose last call is the question.
    pub(crate) fn ask(
        &mut self,
        build: impl FnOnce(&mut Program) -> Ret,
    ) -> Result<Result<i64, Errno>, Lack> {
        let mut program = Program::new();
        let question = build(&mut program);
        program.tolerate();
        Ok(self.run(&program)?.get(question))
    }

    /// Runs a program that makes a descriptor last, and gives that.
    pub(crate) fn fd(&mut self, build: impl FnOnce(&mut Program) -> Ret) -> Result<i64, Lack> {
        let mut program = Program::new();
        let fd = build(&mut program);
        Ok(self.run(&program)?.value(fd))
    }

    /// Reads a file of its `/proc` directory.
    pub(crate) fn read(&self, name: &str) -> Result<String, Lack> {
        let path = format!("/proc/{}/{name}", self.pid());
        fs::read_to_string(&path).map_err(|error| unreadable(&path, &error))
    }

    /// The addresses of the mapping whose name ends so.
    pub(crate) fn mapping(&self, name: &str) -> Result<Option<(u64, u64)>, Lack> {
        let maps = self.read("maps")?;
        let line = maps.lines().find(|line| line.ends_with(name));
        let range = line.and_then(|line| line.split(' ').next()?.split_once('-'));
        let hex = |text| u64::from_str_radix(text, 16).ok();
        Ok(range.and_then(|(start, end)| Some((hex(start)?, hex(end)?))))
    }
}

/// Asks one question in a task of its own; see [`judge`].
pub(crate) fn try_once(
    call: &str,
    also_yes: &[Errno],
    build: impl FnOnce(&mut Program) -> Ret,
) -> Answer {
    judge(call, Scratch::new()?.ask(build)?, also_yes)
}

/// What the failure of a program says.
pub(crate) fn lack(error: &Error) -> Lack {
    match error {
        Error::Call(error) => refusal(&error.sysno.to_string(), error.errno),
        Error::Kernel { call, errno } => refusal(call, *errno),
        other => Lack::unknown(other.to_string()),
    }
}

/// The stub must lie where nothing of ours is: low, where no mapping goes by itself.
fn nursery() -> Result<Nursery, Lack> {
    let mut last = Lack::unknown("no hole for a stub");
    for at in (0x1000_0000..0x7000_0000_u64).step_by(0x100_0000) {
        match Nursery::map(at, 1) {
            Ok(nursery) => return Ok(nursery),
            Err(error) => last = lack(&error),
        }
    }
    Err(last)
}
