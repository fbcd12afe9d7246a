//! What can go wrong: the text was not what the kernel prints, the kernel said no, or the task is gone.

use std::borrow::Cow;

use nix::errno::Errno;
use nix::unistd::Pid;

/// Why something under `/proc` could not be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is not what the kernel prints.
    #[error(transparent)]
    Malformed(#[from] ParseError),
    /// The kernel refused a call on a file under `/proc/PID`.
    #[error("{call} {name}: {errno}")]
    Kernel {
        /// The system call.
        call: &'static str,
        /// The file, relative to `/proc/PID`.
        name: String,
        /// What the kernel answered.
        errno: Errno,
    },
    /// The task has exited and was reaped: `/proc/PID` is an empty shell.
    #[error("task {0} is gone")]
    Gone(Pid),
}

/// Text that is not what the kernel prints, and where. Shown as `status:2: expected an octal number, found "0092"`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.describe())]
pub struct ParseError {
    /// The file's name under `/proc/PID`.
    pub file: &'static str,
    /// The line, from 1; 0 when the whole file lacks something.
    pub line: u32,
    /// What should have been there.
    pub expected: Cow<'static, str>,
    /// The text that was there, at most 80 bytes of it, with what is not UTF-8 replaced.
    pub found: String,
}

impl ParseError {
    fn describe(&self) -> String {
        match self.line {
            0 => format!("{}: expected {}", self.file, self.expected),
            line => format!(
                "{}:{line}: expected {}, found {:?}",
                self.file, self.expected, self.found
            ),
        }
    }

    pub(crate) fn new(
        file: &'static str,
        line: u32,
        expected: impl Into<Cow<'static, str>>,
        found: &[u8],
    ) -> Self {
        let shown = found.get(..80).unwrap_or(found);
        Self {
            file,
            line,
            expected: expected.into(),
            found: String::from_utf8_lossy(shown).into_owned(),
        }
    }

    pub(crate) fn missing(file: &'static str, expected: impl Into<Cow<'static, str>>) -> Self {
        Self::new(file, 0, expected, b"")
    }
}
