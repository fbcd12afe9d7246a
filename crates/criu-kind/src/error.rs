//! How kinds fail, and of what a failure speaks.

use std::fmt;

use nix::errno::Errno;
use nix::unistd::Pid;

/// A result of a kind.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An honest refusal.
    #[error("{fact}")]
    Unsupported {
        /// What is there that cannot be kept.
        fact: String,
        /// What the user can do.
        remedy: String,
    },
    /// A refusal that may not be one a moment later.
    #[error("{fact}")]
    Busy {
        /// What is under way.
        fact: String,
        /// What the user can do if it stays so.
        remedy: String,
    },
    /// A held task, or a call made in it or here, failed.
    #[error(transparent)]
    Tracee(#[from] criu_tracee::Error),
    /// A call of the driver's own failed.
    #[error("{call}: {errno}")]
    Kernel {
        /// The call, as in its man page.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
    /// `/proc` said what it should not.
    #[error(transparent)]
    Proc(#[from] criu_proc::Error),
    /// An image is missing, broken or hostile.
    #[error(transparent)]
    Image(#[from] criu_image::Error),
    /// Images contradict each other or the file system.
    #[error("{image}: {why}")]
    Corrupt {
        /// The image.
        image: String,
        /// What does not fit.
        why: String,
    },
    /// The task ended meanwhile.
    #[error("task {0} has gone")]
    Gone(Pid),
    /// A failure with its subject.
    #[error("{subject}: {source}")]
    Within {
        /// Of what.
        subject: Subject,
        /// The failure.
        source: Box<Error>,
    },
    /// Several refusals, found in one pass.
    #[error("{}", Listed(.0))]
    Several(Vec<Error>),
}

impl From<criu_proc::ParseError> for Error {
    fn from(error: criu_proc::ParseError) -> Self {
        Self::Proc(error.into())
    }
}

struct Listed<'a>(&'a [Error]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} problems:", self.0.len())?;
        self.0.iter().try_for_each(|error| write!(f, " [{error}]"))
    }
}

impl Error {
    /// A refusal.
    pub fn unsupported(fact: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Unsupported {
            fact: fact.into(),
            remedy: remedy.into(),
        }
    }

    /// A refusal that may not be one a moment later.
    pub fn busy(fact: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Busy {
            fact: fact.into(),
            remedy: remedy.into(),
        }
    }

    /// A failed call of the driver's own.
    pub fn kernel(call: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Kernel { call, errno }
    }

    /// The same for `std::io`.
    pub fn io(call: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::Kernel {
            call,
            errno: Errno::from_raw(error.raw_os_error().unwrap_or(libc_eio())),
        }
    }

    /// An image that does not fit.
    pub fn corrupt(image: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Corrupt {
            image: image.into(),
            why: why.into(),
        }
    }

    /// One error for a list of them; `Ok` if there is none.
    pub fn all(mut errors: Vec<Self>) -> Result<()> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }

    /// The failure without its subjects.
    pub fn cause(&self) -> &Self {
        match self {
            Self::Within { source, .. } => source.cause(),
            other => other,
        }
    }

    /// All failures of a list, however deep, without their subjects.
    pub fn causes(&self) -> Vec<&Self> {
        match self {
            Self::Within { source, .. } => source.causes(),
            Self::Several(errors) => errors.iter().flat_map(Self::causes).collect(),
            other => vec![other],
        }
    }

    /// Whether it is nothing but refusals.
    pub fn is_refusal(&self) -> bool {
        let refusal = |one: &Self| matches!(one, Self::Unsupported { .. } | Self::Busy { .. });
        self.causes().into_iter().all(refusal)
    }

    /// Whether it may be gone a moment later.
    pub fn may_pass(&self) -> bool {
        let passes = |one: &Self| matches!(one, Self::Busy { .. });
        self.causes().into_iter().all(passes)
    }

    /// The subjects, outermost first.
    pub fn subjects(&self) -> Vec<&Subject> {
        match self {
            Self::Within { subject, source } => {
                let mut all = vec![subject];
                all.extend(source.subjects());
                all
            }
            _ => Vec::new(),
        }
    }

    /// The errno at the bottom, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self.cause() {
            Self::Kernel { errno, .. } => Some(*errno),
            Self::Tracee(error) => error.errno(),
            Self::Gone(_) => Some(Errno::ESRCH),
            _ => None,
        }
    }
}

const fn libc_eio() -> i32 {
    Errno::EIO as i32
}

/// What a failure is about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subject {
    /// A process.
    Task {
        /// Its id.
        pid: i32,
        /// Its name.
        comm: String,
    },
    /// A thread of it.
    Thread(i32),
    /// A descriptor.
    Fd {
        /// Its number.
        fd: i32,
        /// Where its link in `/proc/PID/fd` points.
        link: String,
    },
    /// A mapping.
    Vma {
        /// First byte.
        start: u64,
        /// One past the last.
        end: u64,
        /// Its name in `maps`.
        name: String,
    },
    /// A file by its path, or another object by its kind and name.
    Object(String),
    /// An aspect of a task, by name.
    Aspect(&'static str),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task { pid, comm } => write!(f, "task {pid} ({comm})"),
            Self::Thread(tid) => write!(f, "thread {tid}"),
            Self::Fd { fd, link } => write!(f, "fd {fd} ({link})"),
            Self::Vma { start, end, name } => write!(f, "vma {start:x}-{end:x} {name}"),
            Self::Object(name) => f.write_str(name),
            Self::Aspect(name) => f.write_str(name),
        }
    }
}

/// Adds the subject to a failure.
pub trait Within<T> {
    /// Says of what the failure speaks.
    fn within(self, subject: impl FnOnce() -> Subject) -> Result<T>;
}

impl<T, E: Into<Error>> Within<T> for std::result::Result<T, E> {
    fn within(self, subject: impl FnOnce() -> Subject) -> Result<T> {
        self.map_err(|error| Error::Within {
            subject: subject(),
            source: Box::new(error.into()),
        })
    }
}
