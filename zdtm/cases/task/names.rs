//! Thread ids and thread names.

use std::collections::BTreeSet;

use nix::sys::prctl;
use nix::unistd::gettid;
use zdtm::{Case, Result, Team, check_eq};

pub(crate) const CASES: &[Case] = &[
    Case::new("thread-names", names),
    Case::new("threads-1000", thousand),
];

fn names() -> Result<()> {
    // Asked from /proc as bytes: a name need not be text.
    let comm = || std::fs::read("/proc/thread-self/comm");
    let own = c"the root (x) \xff)";
    prctl::set_name(own)?;
    let team = Team::start(8, move |index, set_up| {
        let name = std::ffi::CString::new(format!("number {index}"))?;
        prctl::set_name(&name)?;
        set_up();
        zdtm::wait();
        check_eq!(comm()?, [name.as_bytes(), b"\n"].concat());
        Ok(())
    })?;
    zdtm::checkpoint()?;
    check_eq!(comm()?, [own.to_bytes(), b"\n"].concat());
    team.join()?;
    Ok(())
}

fn thousand() -> Result<()> {
    let team = Team::start(1000, |_, set_up| {
        let before = gettid();
        set_up();
        zdtm::wait();
        check_eq!(gettid(), before);
        Ok(before)
    })?;
    zdtm::checkpoint()?;
    let ids: BTreeSet<_> = team.join()?.into_iter().collect();
    check_eq!(ids.len(), 1000);
    Ok(())
}
