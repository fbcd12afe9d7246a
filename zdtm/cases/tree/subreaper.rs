//! Subreapers: prctl(PR_SET_CHILD_SUBREAPER), and to whom orphans go.

use nix::sys::prctl;
use nix::unistd::{getpid, getppid};
use zdtm::{Case, Child, Result, check, check_eq};

pub(crate) const CASES: &[Case] = &[
    Case::new("subreaper", flag),
    Case::new("subreaper-adopts", adopts),
    Case::new("subreaper-too-late", too_late),
    Case::new("subreaper-many", many),
];

fn flag() -> Result<()> {
    prctl::set_child_subreaper(true)?;
    let child = Child::spawn("child", || {
        check!(!prctl::get_child_subreaper()?, "it is not inherited");
        Child::checkpoint();
        check!(!prctl::get_child_subreaper()?);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    check!(prctl::get_child_subreaper()?);
    child.finish()
}

/// A process whose parent dies after the restore goes to the nearest subreaper.
fn adopts() -> Result<()> {
    prctl::set_child_subreaper(true)?;
    let near = Child::spawn("near subreaper", || {
        prctl::set_child_subreaper(true)?;
        let reaper = getpid();
        let parent = Child::spawn("parent", move || {
            let parent = getpid();
            Child::spawn("orphan", move || {
                Child::checkpoint();
                while getppid() == parent {
                    std::thread::yield_now();
                }
                check_eq!(getppid(), reaper);
                Ok(())
            })?;
            Child::checkpoint();
            Ok(())
        })?;
        Child::checkpoint();
        parent.finish()?;
        let orphans = zdtm::children()?;
        check_eq!(orphans.len(), 1);
        Child::adopted(orphans[0], "orphan").finish()
    })?;
    zdtm::checkpoint()?;
    near.finish()?;
    check_eq!(zdtm::children()?, []);
    Ok(())
}

/// An orphan that has gone to us stays with us, though a nearer ancestor became a subreaper later.
fn too_late() -> Result<()> {
    prctl::set_child_subreaper(true)?;
    let root = getpid();
    let near = Child::spawn("late subreaper", move || {
        let parent = Child::spawn("parent", move || {
            Child::spawn("orphan", move || {
                Child::checkpoint();
                check_eq!(getppid(), root);
                Ok(())
            })?;
            Ok(())
        })?;
        parent.join()?;
        prctl::set_child_subreaper(true)?;
        Child::checkpoint();
        check_eq!(zdtm::children()?, []);
        Ok(())
    })?;
    let orphan = zdtm::children()?.into_iter().find(|pid| *pid != near.pid());
    let orphan = Child::adopted(zdtm::Context::context(orphan, "no orphan")?, "orphan");
    zdtm::checkpoint()?;
    near.finish()?;
    orphan.finish()
}

/// Subreapers below a subreaper. The kernel loses one flag or another where they are set at the same time.
fn many() -> Result<()> {
    prctl::set_child_subreaper(true)?;
    let mut children = Vec::new();
    for _ in 0..40 {
        children.push(Child::spawn("subreaper", || {
            prctl::set_child_subreaper(true)?;
            Child::checkpoint();
            check!(prctl::get_child_subreaper()?);
            // It gets the orphans of its children.
            Child::spawn("parent", || Child::spawn("orphan", || Ok(())).map(drop))?.join()?;
            check_eq!(zdtm::children()?.len(), 1);
            Ok(())
        })?);
    }
    zdtm::checkpoint()?;
    check!(prctl::get_child_subreaper()?);
    children.into_iter().try_for_each(Child::finish)
}
