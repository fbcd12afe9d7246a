//! What can go wrong between a tracer and its tasks.

use nix::errno::Errno;
use nix::unistd::Pid;
use syscalls::Sysno;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call of a [`crate::Program`] failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A call of the tracer's own failed.
    #[error("{call}: {errno}")]
    Kernel {
        /// The call, as in its man page.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
    /// The task ended while it was held.
    #[error("task {0} has gone")]
    Gone(Pid),
    /// The task is traced by somebody else.
    #[error("task {pid} is already traced by process {tracer}; stop that debugger first")]
    Traced {
        /// The task.
        pid: Pid,
        /// Who traces it.
        tracer: Pid,
    },
    /// The task did not stop in time.
    #[error("task {0} does not stop: it is in an uninterruptible sleep")]
    Unresponsive(Pid),
    /// A task stopped where no stop was expected.
    #[error("task {pid} stopped with {stop} at {ip:#x} in the middle of a batch")]
    Stray {
        /// The task.
        pid: Pid,
        /// The stop, as text.
        stop: String,
        /// Where.
        ip: u64,
    },
    /// No place for the stub: the task has no executable mapping at all.
    #[error("task {0} has no executable mapping to run a syscall from")]
    NoPlace(Pid),
    /// A [`crate::Local`] site was given a call that would act on the tracer's own memory or life.
    #[error("{0} may not run in the tracer itself")]
    Refused(Sysno),
    /// A call needs more room than a batch has.
    #[error("a call with {need} bytes of data does not fit a batch of {room}")]
    TooLarge {
        /// What the call needs.
        need: usize,
        /// What there is.
        room: usize,
    },
}

/// A failed call of a program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sysno}: {errno}")]
pub struct CallError {
    /// Which syscall.
    pub sysno: Sysno,
    /// Its errno.
    pub errno: Errno,
    /// Its place in the program.
    pub index: usize,
    /// The call as text.
    pub text: String,
}

impl Error {
    /// The errno at the bottom, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Call(error) => Some(error.errno),
            Self::Kernel { errno, .. } => Some(*errno),
            Self::Gone(_) => Some(Errno::ESRCH),
            _ => None,
        }
    }
}

/// Names the call of a failed nix function.
pub(crate) trait Context<T> {
    fn call(self, call: &'static str) -> Result<T>;
}

impl<T> Context<T> for nix::Result<T> {
    fn call(self, call: &'static str) -> Result<T> {
        self.map_err(|errno| Error::Kernel { call, errno })
    }
}

/// Without `CAP_SYS_ADMIN`, or on a kernel without it, filters stay in force.
pub(crate) fn if_allowed(result: Result<()>) -> Result<()> {
    match result {
        Err(Error::Kernel {
            errno: Errno::EPERM | Errno::EINVAL,
            ..
        }) => Ok(()),
        other => other,
    }
}

/// Who has gone need not be let go.
pub(crate) fn gone_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(
            Error::Gone(_)
            | Error::Kernel {
                errno: Errno::ESRCH,
                ..
            },
        ) => Ok(()),
        other => other,
    }
}
