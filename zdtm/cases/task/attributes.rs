//! Small attributes of a task, one call to set each and one to read it.

use libc::c_int;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use zdtm::{Case, Child, Result, check_eq, ret, skip};

pub(crate) const CASES: &[Case] = &[
    Case::new("rlimits", rlimits),
    Case::new("personality", personality),
    Case::new("oom-score-adj", || proc_file("oom_score_adj", "500\n")),
    Case::new("coredump-filter", || {
        proc_file("coredump_filter", "0000007b\n")
    }),
    Case::new("umask", umask),
    Case::new("dumpable", || {
        prctl_pair(libc::PR_SET_DUMPABLE, 0, libc::PR_GET_DUMPABLE, 0)
    }),
    Case::new("keepcaps", || {
        prctl_pair(libc::PR_SET_KEEPCAPS, 1, libc::PR_GET_KEEPCAPS, 1)
    }),
    Case::new("thp-disable", || {
        prctl_pair(libc::PR_SET_THP_DISABLE, 1, libc::PR_GET_THP_DISABLE, 1)
    }),
    Case::new("mce-kill", || {
        prctl_pair(libc::PR_MCE_KILL, 1, libc::PR_MCE_KILL_GET, 1)
    }),
    Case::new("io-flusher", || {
        prctl_pair(PR_SET_IO_FLUSHER, 1, PR_GET_IO_FLUSHER, 1)
    }),
    Case::new("memory-merge", memory_merge).stays("Linux 6.4 made it"),
    Case::new("mdwe", mdwe).stays("Linux 6.3 made it"),
    Case::new("speculation", speculation),
    Case::new("pdeath-sig", pdeath_sig),
    Case::new("membarrier", membarrier),
];

const PR_SET_IO_FLUSHER: c_int = 57;
const PR_GET_IO_FLUSHER: c_int = 58;
const PR_SET_MDWE: c_int = 65;
const PR_GET_MDWE: c_int = 66;
const PR_SET_MEMORY_MERGE: c_int = 67;
const PR_GET_MEMORY_MERGE: c_int = 68;

fn prctl(option: c_int, first: usize, second: usize) -> std::io::Result<c_int> {
    // SAFETY: the options used here take numbers; unused arguments have to be zero.
    ret(unsafe { libc::prctl(option, first, second, 0usize, 0usize) })
}

/// Sets in a child, and finds it there afterwards.
fn prctl_pair(set: c_int, value: usize, get: c_int, wanted: c_int) -> Result<()> {
    let second = if set == libc::PR_MCE_KILL { 1 } else { 0 };
    let before = prctl(get, 0, 0);
    if let Err(error) = before {
        return skip(format!("prctl({get}): {error}"));
    }
    // Tried out in a process of its own, as not all can be taken back.
    let probe = Child::spawn("probe", move || {
        let code = prctl(set, value, second)
            .err()
            .and_then(|error| error.raw_os_error())
            .unwrap_or(0);
        // SAFETY: as in every child.
        unsafe { libc::_exit(code) }
    })?;
    match nix::sys::wait::waitpid(probe.pid(), None)? {
        nix::sys::wait::WaitStatus::Exited(_, 0) => {}
        status => return skip(format!("prctl({set}) fails here: {status:?}")),
    }
    let child = Child::spawn("child", move || {
        prctl(set, value, second)?;
        check_eq!(prctl(get, 0, 0)?, wanted);
        Child::checkpoint();
        check_eq!(prctl(get, 0, 0)?, wanted);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    check_eq!(prctl(get, 0, 0)?, before?, "the parent has not changed");
    child.finish()
}

fn memory_merge() -> Result<()> {
    if prctl(PR_GET_MEMORY_MERGE, 0, 0).is_err() {
        return skip("no PR_SET_MEMORY_MERGE before Linux 6.4, or no KSM");
    }
    prctl_pair(PR_SET_MEMORY_MERGE, 1, PR_GET_MEMORY_MERGE, 1)
}

fn mdwe() -> Result<()> {
    if prctl(PR_GET_MDWE, 0, 0).is_err() {
        return skip("no PR_SET_MDWE before Linux 6.3");
    }
    prctl_pair(PR_SET_MDWE, 1, PR_GET_MDWE, 1)
}

fn rlimits() -> Result<()> {
    const ALL: &[Resource] = &[
        Resource::RLIMIT_AS,
        Resource::RLIMIT_CORE,
        Resource::RLIMIT_CPU,
        Resource::RLIMIT_DATA,
        Resource::RLIMIT_FSIZE,
        Resource::RLIMIT_LOCKS,
        Resource::RLIMIT_MEMLOCK,
        Resource::RLIMIT_MSGQUEUE,
        Resource::RLIMIT_NICE,
        Resource::RLIMIT_NOFILE,
        Resource::RLIMIT_NPROC,
        Resource::RLIMIT_RSS,
        Resource::RLIMIT_RTPRIO,
        Resource::RLIMIT_RTTIME,
        Resource::RLIMIT_SIGPENDING,
        Resource::RLIMIT_STACK,
    ];
    let child = Child::spawn("child", || {
        let mut wanted = Vec::new();
        for (index, resource) in (1..).zip(ALL) {
            let (_, hard) = getrlimit(*resource)?;
            // Large enough to live with, and every one different.
            let most = libc::rlim_t::MAX / 4 + index * 4096;
            let (soft, hard) = (hard.min(most) / 2, hard.min(most));
            setrlimit(*resource, soft, hard)?;
            wanted.push((soft, hard));
        }
        Child::checkpoint();
        for (resource, wanted) in ALL.iter().zip(wanted) {
            check_eq!(getrlimit(*resource)?, wanted, "{resource:?}");
        }
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()
}

fn personality() -> Result<()> {
    // ADDR_NO_RANDOMIZE, WHOLE_SECONDS, and the sub-personality of a kernel 2.6.
    const WANTED: libc::c_ulong = 0x0004_0000 | 0x0200_0000 | 0x0002_0000;
    let child = Child::spawn("child", || {
        // SAFETY: takes no address.
        unsafe { libc::personality(WANTED) };
        Child::checkpoint();
        // SAFETY: as above; this value only asks.
        let found = unsafe { libc::personality(0xffff_ffff) };
        check_eq!(libc::c_ulong::try_from(found)?, WANTED);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()
}

/// A value set by writing a file of /proc/self.
fn proc_file(name: &'static str, value: &'static str) -> Result<()> {
    let child = Child::spawn("child", move || {
        let number = value.trim().trim_start_matches('0');
        let number = if name == "coredump_filter" {
            format!("0x{number}")
        } else {
            number.to_owned()
        };
        std::fs::write(format!("/proc/self/{name}"), number)?;
        check_eq!(zdtm::proc_text("self", name)?, value);
        Child::checkpoint();
        check_eq!(zdtm::proc_text("self", name)?, value);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()
}

fn umask() -> Result<()> {
    let set = |mask| nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask)).bits();
    let child = Child::spawn("child", move || {
        set(0o137);
        Child::checkpoint();
        check_eq!(set(0), 0o137);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    check_eq!(set(0), 0o022);
    child.finish()
}

/// Store bypass disabled, where the machine lets a task choose.
fn speculation() -> Result<()> {
    // Not in libc everywhere: `include/uapi/linux/prctl.h`.
    const PR_GET_SPECULATION_CTRL: i32 = 52;
    const PR_SET_SPECULATION_CTRL: i32 = 53;
    const STORE_BYPASS: usize = 0;
    let get = || prctl(PR_GET_SPECULATION_CTRL, STORE_BYPASS, 0);
    // PR_SPEC_PRCTL: a task may choose.
    if !get().is_ok_and(|state| state & 1 != 0) {
        return skip("no choice about store bypass on this machine");
    }
    let child = Child::spawn("child", move || {
        prctl(PR_SET_SPECULATION_CTRL, STORE_BYPASS, 4)?; // PR_SPEC_DISABLE
        let before = get()?;
        Child::checkpoint();
        check_eq!(get()?, before);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()
}

/// The signal a child asked for when its parent dies comes when the restored parent dies.
fn pdeath_sig() -> Result<()> {
    use nix::sys::prctl;
    use nix::sys::signal::{SigSet, Signal};
    prctl::set_child_subreaper(true)?;
    let parent = Child::spawn("parent", || {
        Child::spawn("child", || {
            prctl::set_pdeathsig(Signal::SIGUSR2)?;
            SigSet::from(Signal::SIGUSR2).thread_block()?;
            Child::checkpoint();
            check_eq!(prctl::get_pdeathsig()?, Some(Signal::SIGUSR2));
            check_eq!(SigSet::from(Signal::SIGUSR2).wait()?, Signal::SIGUSR2);
            Ok(())
        })?;
        Child::checkpoint();
        Ok(())
    })?;
    zdtm::checkpoint()?;
    parent.finish()?;
    let orphans = zdtm::children()?;
    check_eq!(orphans.len(), 1);
    Child::adopted(orphans[0], "child").finish()
}

fn membarrier() -> Result<()> {
    const PRIVATE: usize = 1 << 3;
    const REGISTER_PRIVATE: usize = 1 << 4;
    const REGISTER_GLOBAL: usize = 1 << 2;
    // SAFETY: takes no address.
    let call = |command| unsafe { zdtm::syscall(libc::SYS_membarrier, [command, 0, 0, 0, 0, 0]) };
    let child = Child::spawn("child", move || {
        call(REGISTER_PRIVATE)?;
        call(REGISTER_GLOBAL)?;
        // MEMBARRIER_CMD_GET_REGISTRATIONS, since 6.3. An older kernel does not tell the dump either.
        let told = call(1 << 9).is_ok();
        Child::checkpoint();
        call(PRIVATE)?;
        if let (true, Ok(registered)) = (told, call(1 << 9)) {
            check_eq!(
                usize::try_from(registered)?,
                REGISTER_PRIVATE | REGISTER_GLOBAL
            );
        }
        Ok(())
    })?;
    zdtm::checkpoint()?;
    zdtm::check!(call(PRIVATE).is_err(), "we have not registered");
    child.finish()
}
