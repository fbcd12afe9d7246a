//! Why a run failed, as one record: for the last line of the log, for the person, and for programs (`error.json`).
//!
//! CRIU's users mostly see "type DUMP errno 0" and then search a log of thousands of lines. Here the whole
//! answer travels as one value: at which stage, on which task and object, what the kernel said, what to do.

use std::error::Error;
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::Path;

use nix::errno::Errno;
use serde::{Serialize, Serializer};

/// What sort of failure this is, by what the caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The request was wrong; ask differently.
    Usage,
    /// We cannot do this yet.
    NotImplemented,
    /// This object cannot be kept, by us or by the kernel.
    Unsupported,
    /// The kernel refused something that should have worked.
    Kernel,
    /// The images are damaged or contradict themselves.
    Corrupt,
    /// The task was gone.
    Gone,
    /// A script said no.
    Script,
    /// This machine is not like the one the images are from.
    Incompatible,
}

/// The task a failure is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Task {
    /// Its pid, as the caller sees it.
    pub pid: i32,
    /// Its name, if it could be read.
    pub comm: Option<String>,
}

/// The facts of a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// What sort it is.
    pub kind: Kind,
    /// The verb or the stage of it that failed.
    pub stage: &'static str,
    /// Whose object it was.
    pub task: Option<Task>,
    /// The descriptor, mapping, mount, image, option…
    pub object: Option<String>,
    /// The call the kernel refused.
    pub syscall: Option<String>,
    /// Its answer.
    #[serde(serialize_with = "spell")]
    pub errno: Option<Errno>,
    /// What went wrong, in words.
    pub cause: String,
    /// What the caller may do.
    pub remedy: Option<String>,
    /// What the process returns.
    pub exit_status: u8,
}

/// A failed run. Built where the chain of errors ends, in the driver; the libraries have errors of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure(Box<Record>);

impl Failure {
    /// A failure with nothing but its cause.
    pub fn new(kind: Kind, stage: &'static str, cause: impl Into<String>) -> Self {
        let cause = cause.into();
        Failure(Box::new(Record {
            kind,
            stage,
            task: None,
            object: None,
            syscall: None,
            errno: None,
            cause,
            remedy: None,
            exit_status: 1,
        }))
    }

    /// The request was wrong.
    pub fn usage(cause: impl Into<String>) -> Self {
        Failure::new(Kind::Usage, "options", cause)
    }

    /// The end of a chain of errors: its words become the cause, the errno at its root is kept apart.
    pub fn from_chain(stage: &'static str, error: &(dyn Error + 'static)) -> Self {
        let mut failure = Failure::new(Kind::Kernel, stage, "");
        let mut words: Vec<String> = Vec::new();
        let mut next = Some(error);
        while let Some(link) = next {
            next = link.source();
            if let Some(known) = link.downcast_ref::<Failure>() {
                return known.clone();
            }
            if let Some(errno) = errno_of(link) {
                failure.errno = Some(errno);
                continue;
            }
            let text = link.to_string().replace('\n', " ");
            // Some errors repeat their source in their own text: the longer one already says it.
            if !words.last().is_some_and(|last| last.ends_with(&text)) {
                words.push(text);
            }
        }
        failure.cause = words.join(": ");
        failure
    }

    /// Says what sort it is, where the chain cannot.
    #[must_use]
    pub fn of_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Names the task.
    #[must_use]
    pub fn task(mut self, pid: i32, comm: Option<&str>) -> Self {
        self.task = Some(Task {
            pid,
            comm: comm.map(str::to_owned),
        });
        self
    }

    /// Names the object.
    #[must_use]
    pub fn object(mut self, object: impl fmt::Display) -> Self {
        self.object = Some(object.to_string());
        self
    }

    /// Names the call and its answer.
    #[must_use]
    pub fn call(mut self, syscall: &str, errno: Errno) -> Self {
        self.syscall = Some(syscall.to_owned());
        self.errno = Some(errno);
        self
    }

    /// Says what the caller may do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Sets what the process returns.
    #[must_use]
    pub fn exits(mut self, status: u8) -> Self {
        self.exit_status = status;
        self
    }

    /// Writes `error.json` into the work directory.
    pub fn save(&self, work_dir: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        std::fs::write(work_dir.join(FILE_NAME), text)
    }
}

/// The name of the record in the work directory.
pub const FILE_NAME: &str = "error.json";

/// Removes the record of an earlier run, so that one found there is always of the last run.
pub fn forget(work_dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(work_dir.join(FILE_NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn errno_of(error: &(dyn Error + 'static)) -> Option<Errno> {
    let from_io = || {
        error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
            .map(Errno::from_raw)
    };
    error.downcast_ref::<Errno>().copied().or_else(from_io)
}

fn spell<S: Serializer>(errno: &Option<Errno>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Spelled {
        number: i32,
        name: String,
        text: &'static str,
    }
    errno
        .map(|errno| Spelled {
            number: errno as i32,
            name: format!("{errno:?}"),
            text: errno.desc(),
        })
        .serialize(serializer)
}

impl Deref for Failure {
    type Target = Record;
    fn deref(&self) -> &Record {
        &self.0
    }
}

impl DerefMut for Failure {
    fn deref_mut(&mut self) -> &mut Record {
        &mut self.0
    }
}

impl Error for Failure {}

impl fmt::Display for Failure {
    /// One line: `dump: task 42 (sh): fd 7: fcntl: Operation not permitted (EPERM); try this`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let task = self.task.as_ref().map(|task| match &task.comm {
            Some(comm) => format!("task {} ({comm})", task.pid),
            None => format!("task {}", task.pid),
        });
        let errno = self
            .errno
            .map(|errno| format!("{} ({errno:?})", errno.desc()));
        let cause = Some(self.cause.clone()).filter(|cause| !cause.is_empty());
        let parts = [
            Some(self.stage.to_owned()),
            task,
            self.object.clone(),
            cause,
            self.syscall.clone(),
            errno,
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(": "))?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_chain_becomes_one_line() {
        let error = anyhow::Error::new(Errno::EPERM)
            .context("fdinfo")
            .context("fd 7 eventfd");
        let failure = Failure::from_chain("describe", error.as_ref()).task(42, Some("sh"));
        expect!["describe: task 42 (sh): fd 7 eventfd: fdinfo: Operation not permitted (EPERM)"]
            .assert_eq(&failure.to_string());
    }

    #[test]
    fn a_failure_inside_a_chain_is_kept() {
        let inner = Failure::new(Kind::Script, "post-dump", "status 3").exits(3);
        let outer = anyhow::Error::new(inner.clone()).context("dump");
        assert_eq!(Failure::from_chain("dump", outer.as_ref()), inner);
    }

    #[test]
    fn the_record_is_saved_and_forgotten() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        forget(dir.path())?;
        Failure::new(Kind::Kernel, "drain", "")
            .object("mm 3")
            .call("pwritev", Errno::ENOSPC)
            .remedy("make room")
            .save(dir.path())?;
        expect![[r#"
            {
              "kind": "kernel",
              "stage": "drain",
              "task": null,
              "object": "mm 3",
              "syscall": "pwritev",
              "errno": {
                "number": 28,
                "name": "ENOSPC",
                "text": "No space left on device"
              },
              "cause": "",
              "remedy": "make room",
              "exit_status": 1
            }
        "#]]
        .assert_eq(&std::fs::read_to_string(dir.path().join(FILE_NAME))?);
        forget(dir.path())?;
        assert!(!dir.path().join(FILE_NAME).exists());
        Ok(())
    }
}
