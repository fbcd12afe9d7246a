//! Process ids and who is whose parent.

use nix::unistd::{Pid, getpgrp, getpid, getppid, getsid, gettid};
use zdtm::{Case, Child, Result, check_eq};

pub(crate) const CASES: &[Case] = &[
    Case::new("ids", ids),
    Case::new("deep", deep),
    Case::new("wide", wide),
    Case::new("wait-living-child", wait_living_child),
];

/// Everything a task can ask about its own place.
fn place() -> Result<[Pid; 5]> {
    Ok([getpid(), getppid(), gettid(), getpgrp(), getsid(None)?])
}

fn ids() -> Result<()> {
    let root = place()?;
    let child = Child::spawn("child", || {
        let before = place()?;
        Child::checkpoint();
        check_eq!(place()?, before);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    check_eq!(place()?, root);
    child.finish()
}

/// A chain of 20, each the parent of the next.
fn deep() -> Result<()> {
    fn link(depth: usize) -> Result<()> {
        let before = place()?;
        let next = match depth {
            0 => None,
            _ => Some(Child::spawn(format!("depth {depth}"), move || {
                link(depth - 1)
            })?),
        };
        Child::checkpoint();
        check_eq!(place()?, before);
        next.map_or(Ok(()), Child::finish)
    }
    let chain = Child::spawn("chain", || link(20))?;
    zdtm::checkpoint()?;
    chain.finish()
}

/// A hundred children of one parent.
fn wide() -> Result<()> {
    let children = (0..100)
        .map(|index| {
            Child::spawn(format!("child {index}"), || {
                let before = place()?;
                Child::checkpoint();
                check_eq!(place()?, before);
                Ok(())
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let before = zdtm::children()?;
    zdtm::checkpoint()?;
    check_eq!(zdtm::children()?, before);
    children.into_iter().try_for_each(Child::finish)
}

/// A child that lives through the restore and then exits by itself is waited for as ever.
fn wait_living_child() -> Result<()> {
    let child = Child::spawn("child", || {
        Child::checkpoint();
        Ok(())
    })?;
    zdtm::checkpoint()?;
    let pid = child.pid();
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    check_eq!(
        waitpid(pid, Some(WaitPidFlag::WNOHANG))?,
        WaitStatus::StillAlive
    );
    child.finish()
}
