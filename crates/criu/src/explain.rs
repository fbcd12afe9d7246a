//! From the errors of the libraries to the record of a failure.

use criu_kind::{Error, Subject};
use nix::errno::Errno;

use crate::error::{Failure, Kind};

/// What failed at this stage: the subjects become task and object, the bottom becomes call and errno.
pub(crate) fn failure(stage: &'static str, error: &Error) -> Failure {
    let mut failure = cause(stage, error.cause());
    let mut objects = Vec::new();
    for subject in error.subjects() {
        match subject {
            Subject::Task { pid, comm } => failure = failure.task(*pid, Some(comm)),
            other => objects.push(other.to_string()),
        }
    }
    if !objects.is_empty() {
        failure = failure.object(objects.join(": "));
    }
    match failure.errno {
        Some(Errno::ENOSPC | Errno::EDQUOT) if failure.remedy.is_none() => {
            failure.remedy("make room on the file system of the images directory")
        }
        _ => failure,
    }
}

fn cause(stage: &'static str, error: &Error) -> Failure {
    let plain = |kind| Failure::new(kind, stage, error.to_string());
    match error {
        Error::Unsupported { fact, remedy } | Error::Busy { fact, remedy } => {
            let failure = Failure::new(Kind::Unsupported, stage, fact);
            if remedy.is_empty() {
                failure
            } else {
                failure.remedy(remedy)
            }
        }
        Error::Tracee(error) => of_tracee(stage, error),
        Error::Kernel { call, errno } => Failure::new(Kind::Kernel, stage, "").call(call, *errno),
        Error::Proc(criu_proc::Error::Kernel { call, name, errno }) => {
            Failure::new(Kind::Kernel, stage, format!("/proc/PID/{name}")).call(call, *errno)
        }
        Error::Proc(criu_proc::Error::Gone(_)) | Error::Gone(_) => plain(Kind::Gone),
        Error::Image(criu_image::Error::Io { .. }) => Failure::from_chain(stage, error),
        Error::Image(inner) => Failure::from_chain(stage, inner).of_kind(Kind::Corrupt),
        Error::Corrupt { .. } => plain(Kind::Corrupt),
        Error::Several(_) if error.is_refusal() => {
            let remedies = error
                .causes()
                .into_iter()
                .filter_map(|one| cause(stage, one).remedy.clone());
            let mut remedies: Vec<_> = remedies.collect();
            remedies.sort();
            remedies.dedup();
            let failure = plain(Kind::Unsupported);
            if remedies.is_empty() {
                failure
            } else {
                failure.remedy(remedies.join("; "))
            }
        }
        _ => plain(Kind::Kernel),
    }
}

fn of_tracee(stage: &'static str, error: &criu_tracee::Error) -> Failure {
    use criu_tracee::Error::{Call, Gone, Kernel as Own};
    match error {
        Call(error) => Failure::new(Kind::Kernel, stage, "").call(&error.text, error.errno),
        Own { call, errno } => Failure::new(Kind::Kernel, stage, "").call(call, *errno),
        Gone(_) => Failure::new(Kind::Gone, stage, error.to_string()),
        other => Failure::new(Kind::Kernel, stage, other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use criu_kind::Within;
    use expect_test::expect;
    use nix::errno::Errno;

    fn within(error: Error) -> Error {
        let fd = || Subject::Fd {
            fd: 7,
            link: "anon_inode:[io_uring]".into(),
        };
        let task = || Subject::Task {
            pid: 42,
            comm: "redis".into(),
        };
        let result: criu_kind::Result<()> = Err(error).within(fd).within(task);
        result.expect_err("an error stays one")
    }

    #[test]
    fn subjects_and_causes() {
        let refused = within(Error::unsupported(
            "io_uring cannot be kept",
            "turn it off in the program",
        ));
        expect!["describe: task 42 (redis): fd 7 (anon_inode:[io_uring]): io_uring cannot be kept; turn it off in the program"]
            .assert_eq(&failure("describe", &refused).to_string());
        let kernel = failure(
            "describe",
            &within(Error::kernel("pidfd_getfd")(Errno::EPERM)),
        );
        expect!["describe: task 42 (redis): fd 7 (anon_inode:[io_uring]): pidfd_getfd: Operation not permitted (EPERM)"]
            .assert_eq(&kernel.to_string());
        assert_eq!(
            (kernel.kind, kernel.errno),
            (Kind::Kernel, Some(Errno::EPERM))
        );
        let missing = Error::Image(criu_image::Error::Missing {
            image: "core-1.img".into(),
        });
        let missing = failure("load", &missing);
        expect!["load: image core-1.img is missing"].assert_eq(&missing.to_string());
        assert_eq!(missing.kind, Kind::Corrupt);
        let several = Error::all(vec![
            Error::unsupported("a", "do x"),
            Error::unsupported("b", "do x"),
        ]);
        expect!["survey: 2 problems: [a] [b]; do x"]
            .assert_eq(&failure("survey", &several.expect_err("two")).to_string());
        // Those of several descriptors of several tasks, all with their remedies.
        let task = || {
            let both = vec![
                within(Error::unsupported("a", "do x")),
                within(Error::busy("b", "wait")),
            ];
            Error::all(both).expect_err("two")
        };
        let all = Error::all(vec![task(), task()]).expect_err("two");
        assert!(all.is_refusal() && !all.may_pass());
        let told = failure("survey", &all);
        assert_eq!(told.kind, Kind::Unsupported);
        assert_eq!(told.remedy.as_deref(), Some("do x; wait"));
        assert_eq!(told.to_string().matches("fd 7").count(), 4);
    }
}
