//! Credentials, which are a matter of each thread: user and group ids, groups, capabilities, securebits.

use libc::{c_int, c_long};
use zdtm::{Case, Child, Result, Team, check, check_eq, proc_text, ret};

pub(crate) const CASES: &[Case] = &[
    Case::new("groups", groups),
    Case::new("capabilities", capabilities),
    Case::new("capabilities-ambient", ambient),
    Case::new("securebits", securebits),
    Case::new("no-new-privs", no_new_privs),
    Case::new("creds-user", user),
    Case::new("creds-threads", threads),
];

/// A raw call: libc's own setters change all threads at once.
fn call(number: c_long, arguments: [usize; 6]) -> Result<()> {
    // SAFETY: the calls made here take numbers only.
    unsafe { zdtm::syscall(number, arguments) }?;
    Ok(())
}

fn prctl(option: c_int, arguments: [usize; 4]) -> Result<i64> {
    let [a, b, c, d] = arguments;
    // SAFETY: the options used here take numbers only.
    Ok(unsafe { zdtm::syscall(libc::SYS_prctl, [usize::try_from(option)?, a, b, c, d, 0]) }?)
}

/// All the kernel tells of this thread's credentials.
fn credentials() -> Result<Vec<String>> {
    const LINES: &[&str] = &["Uid", "Gid", "Groups", "Cap", "NoNewPrivs"];
    let mut lines: Vec<String> = proc_text("thread-self", "status")?
        .lines()
        .filter(|line| LINES.iter().any(|name| line.starts_with(name)))
        .map(str::to_owned)
        .collect();
    lines.push(format!(
        "securebits {:#x}",
        prctl(libc::PR_GET_SECUREBITS, [0; 4])?
    ));
    Ok(lines)
}

/// Lets a child change its credentials, and checks that they stay.
fn in_child(change: impl FnOnce() -> Result<()>) -> Result<()> {
    let child = Child::spawn("child", || {
        let inherited = credentials()?;
        change()?;
        let before = credentials()?;
        check!(before != inherited, "nothing has changed");
        Child::checkpoint();
        check_eq!(credentials()?, before);
        Ok(())
    })?;
    let own = credentials()?;
    zdtm::checkpoint()?;
    check_eq!(credentials()?, own);
    child.finish()
}

fn groups() -> Result<()> {
    in_child(|| {
        let groups: Vec<nix::unistd::Gid> = (0..40)
            .map(|n| nix::unistd::Gid::from_raw(1000 + 77 * n))
            .collect();
        Ok(nix::unistd::setgroups(&groups)?)
    })
}

/// The three sets, by capset(2); version 3 has two words of each.
fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<()> {
    const VERSION: u32 = 0x2008_0522;
    let header = [VERSION, 0];
    #[allow(clippy::cast_possible_truncation, reason = "the low word is meant")]
    let low = |set: u64| set as u32;
    let mut data = [0u32; 6];
    for (index, set) in [effective, permitted, inheritable].into_iter().enumerate() {
        data[index] = low(set);
        data[index + 3] = low(set >> 32);
    }
    // SAFETY: header and data are as linux/capability.h has them.
    ret(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) })?;
    Ok(())
}

fn permitted() -> Result<u64> {
    Ok(u64::from_str_radix(
        &zdtm::status_field("thread-self", "CapPrm")?,
        16,
    )?)
}

const CHOWN: u64 = 1;
const KILL: u64 = 1 << 5;
const NET_RAW: u64 = 1 << 13;

fn capabilities() -> Result<()> {
    in_child(|| {
        prctl(libc::PR_CAPBSET_DROP, [13, 0, 0, 0])?;
        let all = permitted()?;
        set_capabilities(all & !CHOWN & !KILL, all & !CHOWN, CHOWN | KILL)
    })
}

fn ambient() -> Result<()> {
    in_child(|| {
        let all = permitted()?;
        set_capabilities(all, all, KILL | NET_RAW)?;
        for capability in [5, 13] {
            prctl(libc::PR_CAP_AMBIENT, [2, capability, 0, 0])?; // PR_CAP_AMBIENT_RAISE
        }
        Ok(())
    })
}

fn securebits() -> Result<()> {
    // NOROOT and its lock, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE.
    in_child(|| prctl(libc::PR_SET_SECUREBITS, [1 | 2 | 4 | 64, 0, 0, 0]).map(drop))
}

/// Set in one thread out of two.
fn no_new_privs() -> Result<()> {
    let team = Team::start(2, |index, set_up| {
        if index == 1 {
            prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0])?;
        }
        set_up();
        zdtm::wait();
        check_eq!(
            prctl(libc::PR_GET_NO_NEW_PRIVS, [0; 4])?,
            i64::from(index == 1)
        );
        Ok(())
    })?;
    zdtm::checkpoint()?;
    team.join()?;
    Ok(())
}

/// A process of another user, with all four ids different from each other.
fn user() -> Result<()> {
    in_child(|| {
        call(libc::SYS_setresgid, [1010, 1011, 1012, 0, 0, 0])?;
        call(libc::SYS_setresuid, [1020, 1021, 1022, 0, 0, 0])
    })
}

/// Threads of one process that have nothing in common.
fn threads() -> Result<()> {
    let team = Team::start(4, |index, set_up| {
        let id = 2000 + 10 * index;
        if index > 0 {
            call(libc::SYS_setresgid, [id, id + 1, id + 2, 0, 0, 0])?;
            call(libc::SYS_setfsgid, [id, 0, 0, 0, 0, 0])?;
            let all = permitted()?;
            // Only the real id: the thread stays root in effect, and so dumpable.
            call(libc::SYS_setresuid, [id, 0, 0, 0, 0, 0])?;
            set_capabilities(all & !(1 << index), all & !(1 << index), KILL << index)?;
        }
        let before = credentials()?;
        set_up();
        zdtm::wait();
        check_eq!(credentials()?, before);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    team.join()?;
    Ok(())
}
