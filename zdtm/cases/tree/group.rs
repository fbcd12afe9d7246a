//! Process groups, with and without their leaders.

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getpgid, getpgrp, getpid, setpgid};
use zdtm::{Case, Child, Result, check, check_eq, wait_exit};

pub(crate) const CASES: &[Case] = &[
    Case::new("group", living),
    Case::new("group-dead-leader", || dead(false)),
    Case::new("group-zombie-leader", || dead(true)),
];

fn member() -> Result<Child> {
    Child::spawn("member", || {
        // The parent puts us into a group meanwhile.
        Child::checkpoint();
        Ok(())
    })
}

/// Two groups; a signal to one reaches all of it and nobody else.
fn living() -> Result<()> {
    let one = [member()?, member()?, member()?];
    let other = member()?;
    for child in &one {
        setpgid(child.pid(), one[0].pid())?;
    }
    setpgid(other.pid(), other.pid())?;
    zdtm::checkpoint()?;
    for child in &one {
        check_eq!(getpgid(Some(child.pid()))?, one[0].pid());
    }
    check_eq!(getpgid(Some(other.pid()))?, other.pid());
    check_eq!(getpgrp(), getpid());
    killpg(one[0].pid(), Signal::SIGUSR1)?;
    for child in &one {
        let status = waitpid(child.pid(), None)?;
        check!(
            matches!(status, WaitStatus::Signaled(_, Signal::SIGUSR1, _)),
            "{status:?}"
        );
    }
    other.finish()
}

/// A group that outlives its leader, who is a zombie or not even that.
fn dead(zombie: bool) -> Result<()> {
    let (leader, child) = (member()?, member()?);
    let group = leader.pid();
    setpgid(group, group)?;
    setpgid(child.pid(), group)?;
    nix::sys::signal::kill(group, Signal::SIGTERM)?;
    wait_exit(group)?;
    let leader = if zombie {
        Some(leader)
    } else {
        leader.join().map(|()| None)?
    };
    zdtm::checkpoint()?;
    check_eq!(getpgid(Some(child.pid()))?, group);
    // A newcomer can still join.
    let newcomer = member()?;
    setpgid(newcomer.pid(), group)?;
    newcomer.finish()?;
    child.finish()?;
    check_eq!(
        killpg(Pid::from_raw(group.as_raw()), None),
        if zombie {
            Ok(())
        } else {
            Err(nix::errno::Errno::ESRCH)
        }
    );
    leader.map_or(Ok(()), Child::join)
}
