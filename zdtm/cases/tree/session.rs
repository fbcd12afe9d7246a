//! Sessions: who leads one, and who is left when the leader has gone.

use nix::sys::prctl;
use nix::unistd::{Pid, getpgrp, getpid, getppid, getsid, setpgid, setsid};
use zdtm::{Case, Child, Result, check_eq, wait_exit};

pub(crate) const CASES: &[Case] = &[
    Case::new("session", living),
    Case::new("session-nested", nested),
    Case::new("session-dead-leader", dead_leader),
    Case::new("session-zombie-leader", zombie_leader),
];

fn place() -> Result<[Pid; 4]> {
    Ok([getpid(), getppid(), getpgrp(), getsid(None)?])
}

/// A process that waits and then checks its place.
fn member(label: &str) -> Result<Child> {
    Child::spawn(label, || {
        let before = place()?;
        Child::checkpoint();
        check_eq!(place()?, before);
        Ok(())
    })
}

/// A leader that lives, and a member.
fn living() -> Result<()> {
    let leader = Child::spawn("leader", || {
        setsid()?;
        let before = place()?;
        let member = member("member")?;
        Child::checkpoint();
        check_eq!(place()?, before);
        member.finish()
    })?;
    zdtm::checkpoint()?;
    leader.finish()
}

/// A session in a session, four deep, with a group in each.
fn nested() -> Result<()> {
    fn level(depth: usize) -> Result<Child> {
        Child::spawn(format!("level {depth}"), move || {
            setsid()?;
            let before = place()?;
            let member = member("member")?;
            let other = member_of_own_group()?;
            let next = match depth {
                0 => None,
                _ => Some(level(depth - 1)?),
            };
            Child::checkpoint();
            check_eq!(place()?, before);
            member.finish()?;
            other.finish()?;
            next.map_or(Ok(()), Child::finish)
        })
    }
    let top = level(3)?;
    zdtm::checkpoint()?;
    top.finish()
}

fn member_of_own_group() -> Result<Child> {
    Child::spawn("group leader", || {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        let before = place()?;
        Child::checkpoint();
        check_eq!(place()?, before);
        Ok(())
    })
}

/// Starts a leader that leaves a member behind and exits. The member is ours then, as we are its subreaper.
fn leave_member() -> Result<(Child, Pid)> {
    prctl::set_child_subreaper(true)?;
    let root = getpid();
    let leader = Child::spawn("leader", move || {
        let session = setsid()?;
        Child::spawn("member", move || {
            Child::checkpoint();
            check_eq!(place()?[1..], [root, session, session]);
            Ok(())
        })?;
        Ok(())
    })?;
    wait_exit(leader.pid())?;
    let pid = leader.pid();
    Ok((leader, pid))
}

fn adopt(leader: Pid) -> Result<Child> {
    let member = zdtm::children()?.into_iter().find(|pid| *pid != leader);
    let member = zdtm::Context::context(member, "the member did not come to the subreaper")?;
    Ok(Child::adopted(member, "member"))
}

fn dead_leader() -> Result<()> {
    let (leader, pid) = leave_member()?;
    leader.join()?;
    let member = adopt(pid)?;
    zdtm::checkpoint()?;
    check_eq!(getsid(Some(member.pid()))?, pid);
    member.finish()
}

fn zombie_leader() -> Result<()> {
    let (leader, pid) = leave_member()?;
    let member = adopt(pid)?;
    zdtm::checkpoint()?;
    check_eq!(getsid(Some(member.pid()))?, pid);
    member.finish()?;
    leader.join()
}
