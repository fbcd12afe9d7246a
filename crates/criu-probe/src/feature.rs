//! A question to the kernel, and its answer.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// Who needs a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Every dump or restore.
    Mandatory,
    /// Trees that use a certain object.
    Extra,
    /// What is an experiment still.
    Experimental,
    /// Nobody in general: asked by name only.
    Named,
}

/// One thing a kernel may be able to do.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// Its name for `criu check --feature`.
    pub name: &'static str,
    /// Who needs it.
    pub class: Class,
    /// What it is needed for.
    pub needed_for: &'static str,
    /// Whether the name is CRIU's, too.
    pub in_criu: bool,
    pub(crate) probe: fn() -> Answer,
}

impl Feature {
    /// Asks the running kernel. Some answers need a task of their own and take a millisecond.
    pub fn probe(&self) -> Answer {
        (self.probe)()
    }
}

/// Yes, or what is lacking.
pub type Answer = Result<(), Lack>;

/// Why the answer is not yes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The kernel cannot do it.
    Missing(String),
    /// It could not be tried.
    Unknown(String),
}

impl Lack {
    pub(crate) fn missing(why: impl Into<String>) -> Self {
        Lack::Missing(why.into())
    }

    pub(crate) fn unknown(why: impl Into<String>) -> Self {
        Lack::Unknown(why.into())
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lack::Missing(why) => write!(f, "missing: {why}"),
            Lack::Unknown(why) => write!(f, "cannot be told here: {why}"),
        }
    }
}

impl std::error::Error for Lack {}

/// A refusal for want of privilege says nothing about the kernel; any other says no.
pub(crate) fn refusal(call: &str, errno: Errno) -> Lack {
    let why = format!("{call}: {} ({errno:?})", errno.desc());
    match errno {
        Errno::EPERM
        | Errno::EACCES
        | Errno::EMFILE
        | Errno::ENFILE
        | Errno::ENOMEM
        | Errno::ENETUNREACH => Lack::Unknown(why),
        _ => Lack::Missing(why),
    }
}

/// The same of a file that cannot be read.
pub(crate) fn unreadable(path: &str, error: &io::Error) -> Lack {
    match error.raw_os_error() {
        Some(errno) => refusal(path, Errno::from_raw(errno)),
        None => Lack::unknown(format!("{path}: {error}")),
    }
}

/// Yes if `condition` holds.
pub(crate) fn require(condition: bool, otherwise: &str) -> Answer {
    condition
        .then_some(())
        .ok_or_else(|| Lack::missing(otherwise))
}

/// Yes if the kernel accepts the call, or refuses it with an errno that only a kernel that knows it gives.
pub(crate) fn judge(call: &str, result: Result<i64, Errno>, also_yes: &[Errno]) -> Answer {
    match result {
        Ok(_) => Ok(()),
        Err(errno) if also_yes.contains(&errno) => Ok(()),
        Err(errno) => Err(refusal(call, errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_privilege_is_not_want_of_kernel() {
        assert_eq!(judge("x", Ok(3), &[]), Ok(()));
        assert_eq!(judge("x", Err(Errno::EFAULT), &[Errno::EFAULT]), Ok(()));
        assert!(matches!(
            judge("x", Err(Errno::EPERM), &[]),
            Err(Lack::Unknown(_))
        ));
        let lack = Lack::missing("x: Function not implemented (ENOSYS)");
        assert_eq!(judge("x", Err(Errno::ENOSYS), &[]), Err(lack));
    }
}
