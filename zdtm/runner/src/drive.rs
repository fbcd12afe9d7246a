//! The course of one run, seen from its driver.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::carry;
use crate::criu::{self, Call};
use crate::job::Job;
use crate::options::Mode;
use crate::outcome::Outcome;
use crate::visible::{self, Process, Visible};

/// What has glibc take the instructions that every x86_64 has, and that no 64-bit ARM lacks.
const PLAIN_LIBC: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX_Fast_Unaligned_Load,-BMI1,-BMI2,-ERMS,-FMA,-FSRM,\
     -LZCNT,-MOVBE,-POPCNT,-RTM,-SSSE3,-SSE4_1,-SSE4_2,-XSAVE,-XSAVEC:glibc.cpu.name=generic",
);

/// How long a tree may take to look the same twice, or to look as before.
const SETTLE: Duration = Duration::from_millis(1500);

/// Runs the case through its mode.
pub(crate) fn run(job: &Job) -> Outcome {
    let mut run = Run {
        job,
        deadline: Instant::now() + job.timeout,
        root: Pid::from_raw(0),
        status: None,
        remark: String::new(),
    };
    run.course()
        .unwrap_or_else(|error| Outcome::Fail(format!("runner: {error:#}")))
}

struct Run<'a> {
    job: &'a Job,
    deadline: Instant,
    root: Pid,
    /// How the root ended, once it did.
    status: Option<WaitStatus>,
    /// Said beside a pass.
    remark: String,
}

/// An early end: the verdict is already known.
macro_rules! fail {
    ($($why:tt)+) => { return Ok(Outcome::Fail(format!($($why)+))) };
}

impl Run<'_> {
    fn course(&mut self) -> Result<Outcome> {
        if self.job.column.mode == Mode::Dumped {
            let outcome = self.second_half()?;
            return Ok(match self.job.lacks.is_empty() {
                true => carry::judge(outcome, &self.job.case.stays),
                false => outcome,
            });
        }
        self.start()?;
        if let Some(outcome) = self.until_ready()? {
            return Ok(outcome);
        }
        let before = self.settled()?;
        for iteration in 0..self.job.iterations {
            if let Some(outcome) = self.checkpoint(iteration)? {
                return Ok(outcome);
            }
            if self.job.column.mode == Mode::Dump && self.remark.is_empty() {
                carry::leave(self.job, self.root, &before)?;
                return Ok(Outcome::Pass("dumped".to_owned()));
            }
            let changes = &self.job.case.changes;
            if let Some(outcome) = self.differences(|after| before.differences(&after, changes))? {
                return Ok(outcome);
            }
        }
        self.verdict()
    }

    /// Restores what an earlier run has dumped, elsewhere.
    fn second_half(&mut self) -> Result<Outcome> {
        let lacks = &self.job.lacks;
        let (root, before) = carry::take(self.job)?;
        carry::make_way()?;
        self.root = root;
        let refusal = self.restore(&self.job.dir.join("img0"))?;
        if !lacks.is_empty() {
            let Some(Outcome::Fail(why)) = refusal else {
                fail!("restored, though this CPU lacks {}", lacks.join(", "));
            };
            if let Some(need) = lacks.iter().find(|need| !why.contains(*need)) {
                fail!("the refusal does not name {need}: {why}");
            }
            let left = visible::processes()?.len();
            if left > 1 {
                fail!("refused, but {left} processes are there");
            }
            let line = why.lines().nth(1).unwrap_or(&why).trim().to_owned();
            return Ok(Outcome::Pass(line));
        }
        if let Some(outcome) = refusal {
            return Ok(outcome);
        }
        let mut changes = self.job.case.changes.clone();
        changes.extend(carry::ELSEWHERE.iter().map(|key| (*key).to_owned()));
        let differences = |mut after: Visible| {
            let mut before = before.clone();
            before.keep_common(&mut after);
            before.differences(&after, &changes)
        };
        if let Some(outcome) = self.differences(differences)? {
            return Ok(outcome);
        }
        self.verdict()
    }

    fn start(&mut self) -> Result<()> {
        let work = self.job.work();
        fs::create_dir_all(&work)?;
        // Children of other users report here as well.
        fs::set_permissions(&work, fs::Permissions::from_mode(0o777))?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.job.dir.join("case.log"))?;
        let child = Command::new(&self.job.cases)
            .arg(&self.job.case.name)
            .env_clear()
            .env("ZDTM_DIR", &work)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("RUST_BACKTRACE", "0")
            .envs(self.job.plain_libc.then_some(PLAIN_LIBC))
            .current_dir(&work)
            .stdin(File::open("/dev/null").map(Stdio::from)?)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| self.job.cases.display().to_string())?;
        // Waited for by number: after a restore it is a child that nobody here has spawned.
        self.root = Pid::from_raw(i32::try_from(child.id())?);
        Ok(())
    }

    /// Waits for "ready"; an outcome when the case ended instead, or hangs.
    fn until_ready(&mut self) -> Result<Option<Outcome>> {
        loop {
            if self.job.work().join("ready").exists() {
                return Ok(None);
            }
            self.reap()?;
            if self.status.is_some() {
                return self.verdict_of_the_case().map(Some);
            }
            if Instant::now() > self.deadline {
                return Ok(Some(Outcome::Fail(format!(
                    "never got ready{}",
                    self.pid().map(visible::sleeping).unwrap_or_default()
                ))));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// One dump, and what the mode wants after it. An outcome when it ended early.
    fn checkpoint(&mut self, iteration: usize) -> Result<Option<Outcome>> {
        let mode = self.job.column.mode;
        if mode == Mode::None {
            return Ok(None);
        }
        let images = self.job.dir.join(format!("img{iteration}"));
        let tree = visible::tree(self.pid()?)?;
        let mut arguments = vec!["-t".to_owned(), self.root.to_string()];
        arguments.extend_from_slice(&self.job.case.options);
        arguments.extend_from_slice(&self.job.case.dump);
        if mode == Mode::PreDump {
            if !criu::check(&self.job.column.dump_with, "mem_dirty_track")? {
                return Ok(Some(Outcome::Skip("no memory tracking here".to_owned())));
            }
            arguments.push("--track-mem".to_owned());
            for round in 0..2 {
                let pre = self.job.dir.join(format!("img{iteration}-pre{round}"));
                if let Some(outcome) = self.call("pre-dump", &pre, &arguments)? {
                    return Ok(Some(outcome));
                }
                arguments.retain(|argument| !argument.starts_with("--prev-images-dir"));
                arguments.push(format!("--prev-images-dir=../img{iteration}-pre{round}"));
            }
        }
        match mode {
            Mode::LeaveRunning => arguments.push("--leave-running".to_owned()),
            Mode::LeaveStopped => arguments.push("--leave-stopped".to_owned()),
            Mode::Restore | Mode::PreDump | Mode::None | Mode::Dump | Mode::Dumped => {}
        }
        let dumped = criu::call(
            &self.job.column.dump_with,
            "dump",
            &images,
            &arguments,
            self.deadline,
        )?;
        match dumped {
            Call::Done => {}
            Call::Refused(why) if !self.job.case.refused.is_empty() => {
                let mut errors = why
                    .lines()
                    .skip(1)
                    .filter(|line| !line.contains("RLIMIT_NOFILE"));
                let error = errors.next().unwrap_or_default().trim();
                self.remark = format!("refused, {}: {error}", self.job.case.refused);
                return Ok(None);
            }
            Call::Refused(why) | Call::Hung(why) => return Ok(Some(Outcome::Fail(why))),
        }
        match mode {
            Mode::LeaveStopped => {
                for process in &tree {
                    if let Some(outcome) = self.stopped(process)? {
                        return Ok(Some(outcome));
                    }
                }
                // Wakes those that were not stopped before.
                for process in tree.iter().filter(|process| !"TZ".contains(process.state)) {
                    kill(Pid::from_raw(i32::try_from(process.pid)?), Signal::SIGCONT)?;
                }
                Ok(None)
            }
            Mode::Restore | Mode::PreDump => {
                if let Some(outcome) = self.gone(&tree)? {
                    return Ok(Some(outcome));
                }
                self.status = None;
                self.restore(&images)
            }
            Mode::Dump => self.gone(&tree),
            Mode::LeaveRunning | Mode::None | Mode::Dumped => Ok(None),
        }
    }

    fn restore(&self, images: &Path) -> Result<Option<Outcome>> {
        let mut arguments = vec!["-d".to_owned()];
        arguments.extend_from_slice(&self.job.case.options);
        arguments.extend_from_slice(&self.job.case.restore);
        self.call("restore", images, &arguments)
    }

    fn call(&self, verb: &str, images: &Path, arguments: &[String]) -> Result<Option<Outcome>> {
        let binary = if verb == "restore" {
            &self.job.column.restore_with
        } else {
            &self.job.column.dump_with
        };
        Ok(
            match criu::call(binary, verb, images, arguments, self.deadline)? {
                Call::Done => None,
                Call::Refused(why) | Call::Hung(why) => Some(Outcome::Fail(why)),
            },
        )
    }

    /// After `--leave-stopped` everything has to be stopped.
    fn stopped(&self, process: &Process) -> Result<Option<Outcome>> {
        // It may still be on its way into the stop.
        let deadline = Instant::now() + SETTLE;
        loop {
            let now = visible::processes()?
                .into_iter()
                .find(|now| now.pid == process.pid);
            let why = match now {
                Some(now) if "TZ".contains(now.state) => return Ok(None),
                Some(now) => format!("{} is {}, not stopped", process.pid, now.state),
                None => format!("{} is gone", process.pid),
            };
            if Instant::now() > deadline {
                return Ok(Some(Outcome::Fail(why)));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// After a dump that kills: waits until no pid of the tree is taken any more.
    fn gone(&mut self, tree: &[Process]) -> Result<Option<Outcome>> {
        let deadline = self.deadline.min(Instant::now() + SETTLE);
        loop {
            self.reap()?;
            let left: Vec<u32> = visible::processes()?
                .into_iter()
                .filter(|process| tree.iter().any(|dumped| dumped.pid == process.pid))
                .map(|process| process.pid)
                .collect();
            if left.is_empty() {
                return Ok(None);
            }
            if Instant::now() > deadline {
                return Ok(Some(Outcome::Fail(format!(
                    "alive after the dump: {left:?}"
                ))));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Looks until two looks agree; a case that never rests says so in its `changes`.
    fn settled(&self) -> Result<Visible> {
        let deadline = Instant::now() + SETTLE;
        let mut last = Visible::look(self.pid()?)?;
        loop {
            std::thread::sleep(Duration::from_millis(5));
            let look = Visible::look(self.pid()?)?;
            if last.differences(&look, &self.job.case.changes).is_empty()
                || Instant::now() > deadline
            {
                return Ok(look);
            }
            last = look;
        }
    }

    /// Looks until there are no differences, for tasks that take a moment to get back to sleep.
    fn differences(&self, between: impl Fn(Visible) -> Vec<String>) -> Result<Option<Outcome>> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let lines = between(Visible::look(self.pid()?)?);
            if lines.is_empty() {
                return Ok(None);
            }
            if Instant::now() > deadline {
                let (count, lines) = (lines.len(), lines.join("\n"));
                let why = format!("looks different ({count} lines)\n{lines}");
                return Ok(Some(Outcome::Fail(why)));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Tells the case to check, and waits for what it says.
    fn verdict(&mut self) -> Result<Outcome> {
        if kill(self.root, Signal::SIGTERM).is_err() {
            fail!("the restored root is gone");
        }
        while self.status.is_none() {
            self.reap()?;
            if Instant::now() > self.deadline {
                fail!(
                    "hung after the restore{}",
                    self.pid().map(visible::sleeping).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.verdict_of_the_case()
    }

    fn verdict_of_the_case(&self) -> Result<Outcome> {
        let read = |name: &str| fs::read_to_string(self.job.work().join(name)).unwrap_or_default();
        let failures = read("failures");
        let status = self
            .status
            .map_or_else(String::new, |status| format!("{status:?}"));
        Ok(match Outcome::load(&self.job.work().join("result")) {
            Ok(Outcome::Pass(_))
                if failures.is_empty() && matches!(self.status, Some(WaitStatus::Exited(_, 0))) =>
            {
                Outcome::Pass(self.remark.clone())
            }
            Ok(Outcome::Skip(reason)) => Outcome::Skip(reason),
            // A child says better than its parent what went wrong.
            Ok(Outcome::Fail(why)) => Outcome::Fail(format!("{failures}{why}")),
            Ok(Outcome::Pass(_)) => Outcome::Fail(format!("passed, but: {status} {failures}")),
            Err(_) => Outcome::Fail(format!("ended without a verdict: {status}\n{failures}")),
        })
    }

    /// Reaps whatever ended; orphans of the case come here too.
    fn reap(&mut self) -> Result<()> {
        loop {
            match waitpid(
                None::<Pid>,
                Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL),
            ) {
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return Ok(()),
                Ok(status) if status.pid() == Some(self.root) => self.status = Some(status),
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn pid(&self) -> Result<u32> {
        Ok(u32::try_from(self.root.as_raw())?)
    }
}
