//! Seccomp: strict mode, filters, and the tree that filters form over threads and forks.

use libc::{c_long, sock_filter, sock_fprog};
use nix::errno::Errno;
use zdtm::{Case, Child, Result, Team, check_eq, exit_signal};

pub(crate) const CASES: &[Case] = &[
    Case::new("seccomp-strict", strict),
    Case::new("seccomp-filter", filter),
    Case::new("seccomp-inherited", inherited),
    Case::new("seccomp-threads", threads),
    Case::new("seccomp-tsync", tsync),
    Case::new("seccomp-log", log),
];

const SET_MODE_FILTER: usize = 1;
const FLAG_TSYNC: usize = 1;
const FLAG_LOG: usize = 2;

/// Makes this call fail with this error from now on, in this thread or with TSYNC in all.
///
/// The calls refused here have no other use in this program: getpriority, getpgid, and such.
fn refuse(call: c_long, error: Errno, flags: usize) -> Result<()> {
    let statement = |code: u32, jump_false: u8, k: u32| -> Result<sock_filter> {
        Ok(sock_filter {
            code: u16::try_from(code)?,
            jt: 0,
            jf: jump_false,
            k,
        })
    };
    let program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)?,
        statement(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            1,
            u32::try_from(call)?,
        )?,
        statement(
            libc::BPF_RET | libc::BPF_K,
            0,
            libc::SECCOMP_RET_ERRNO | u32::try_from(error as i32)?,
        )?,
        statement(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW)?,
    ];
    let program = sock_fprog {
        len: u16::try_from(program.len())?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the program lives through the call.
    unsafe {
        zdtm::syscall(
            libc::SYS_seccomp,
            [SET_MODE_FILTER, flags, (&raw const program).addr(), 0, 0, 0],
        )
    }?;
    Ok(())
}

/// The error of this call with arguments that are right otherwise.
fn error_of(call: c_long) -> Option<Errno> {
    // SAFETY: takes no address.
    let result = unsafe { zdtm::syscall(call, [0; 6]) };
    result
        .err()
        .and_then(|error| error.raw_os_error())
        .map(Errno::from_raw)
}

/// In strict mode only read, write and exit are left.
fn strict() -> Result<()> {
    let (reader, writer) = nix::unistd::pipe()?;
    let spawn = |after: c_long| {
        use std::os::fd::AsRawFd;
        let fd = reader.as_raw_fd();
        Child::spawn("strict", move || {
            Child::set_up();
            // SAFETY: from here on only read and exit are made; the buffer lives through the call.
            unsafe {
                libc::prctl(libc::PR_SET_SECCOMP, 1usize, 0usize, 0usize, 0usize);
                let mut byte = 0u8;
                while libc::syscall(libc::SYS_read, fd, &raw mut byte, 1) != 1 {}
                libc::syscall(after, 0);
                libc::syscall(libc::SYS_exit, 3);
            }
            Ok(())
        })
    };
    let (good, bad) = (spawn(libc::SYS_exit)?, spawn(libc::SYS_getpriority)?);
    for child in [&good, &bad] {
        while zdtm::status_field(child.pid(), "Seccomp")? != "1" {
            std::thread::yield_now();
        }
    }
    zdtm::checkpoint()?;
    check_eq!(zdtm::status_field(good.pid(), "Seccomp")?, "1");
    nix::unistd::write(&writer, b"xx")?;
    good.join()?;
    exit_signal(bad.pid(), nix::sys::signal::Signal::SIGKILL)
}

/// Two filters on top of each other.
fn filter() -> Result<()> {
    let child = Child::spawn("child", || {
        refuse(libc::SYS_getpriority, Errno::EXFULL, 0)?;
        refuse(libc::SYS_getpgid, Errno::EBADSLT, 0)?;
        Child::checkpoint();
        check_eq!(error_of(libc::SYS_getpriority), Some(Errno::EXFULL));
        check_eq!(error_of(libc::SYS_getpgid), Some(Errno::EBADSLT));
        check_eq!(error_of(libc::SYS_getsid), None);
        // The last one to be asked wins, and more can be added.
        refuse(libc::SYS_getsid, Errno::ENOANO, 0)?;
        check_eq!(error_of(libc::SYS_getsid), Some(Errno::ENOANO));
        Ok(())
    })?;
    zdtm::checkpoint()?;
    check_eq!(error_of(libc::SYS_getpriority), None);
    child.finish()
}

/// A child has its parent's filters and its own.
fn inherited() -> Result<()> {
    let parent = Child::spawn("parent", || {
        refuse(libc::SYS_getpriority, Errno::EXFULL, 0)?;
        let child = Child::spawn("child", || {
            refuse(libc::SYS_getpgid, Errno::EBADSLT, 0)?;
            Child::checkpoint();
            check_eq!(error_of(libc::SYS_getpriority), Some(Errno::EXFULL));
            check_eq!(error_of(libc::SYS_getpgid), Some(Errno::EBADSLT));
            Ok(())
        })?;
        Child::checkpoint();
        check_eq!(error_of(libc::SYS_getpriority), Some(Errno::EXFULL));
        check_eq!(error_of(libc::SYS_getpgid), None);
        child.finish()
    })?;
    zdtm::checkpoint()?;
    parent.finish()
}

/// Threads with none, one and two filters.
fn threads() -> Result<()> {
    let team = Team::start(3, |index, set_up| {
        if index >= 1 {
            refuse(libc::SYS_getpriority, Errno::EXFULL, 0)?;
        }
        if index >= 2 {
            refuse(libc::SYS_getpgid, Errno::EBADSLT, 0)?;
        }
        set_up();
        zdtm::wait();
        check_eq!(
            error_of(libc::SYS_getpriority),
            (index >= 1).then_some(Errno::EXFULL)
        );
        check_eq!(
            error_of(libc::SYS_getpgid),
            (index >= 2).then_some(Errno::EBADSLT)
        );
        Ok(())
    })?;
    zdtm::checkpoint()?;
    team.join()?;
    check_eq!(error_of(libc::SYS_getpriority), None);
    Ok(())
}

/// TSYNC gives one thread's filters to all. It works only while their chains have a common ancestor, so it still
/// working tells that the restore has built one chain and not a copy for each.
fn tsync() -> Result<()> {
    let child = Child::spawn("child", || {
        refuse(libc::SYS_getpriority, Errno::EXFULL, 0)?;
        let team = Team::start(2, |_, set_up| {
            set_up();
            zdtm::wait();
            check_eq!(error_of(libc::SYS_getpriority), Some(Errno::EXFULL));
            while error_of(libc::SYS_getpgid) != Some(Errno::EBADSLT) {
                std::thread::yield_now();
            }
            Ok(())
        })?;
        Child::checkpoint();
        refuse(libc::SYS_getpgid, Errno::EBADSLT, FLAG_TSYNC)?;
        team.join()?;
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()
}

fn log() -> Result<()> {
    let child = Child::spawn("child", || {
        refuse(libc::SYS_getpriority, Errno::EXFULL, FLAG_LOG)?;
        Child::checkpoint();
        check_eq!(error_of(libc::SYS_getpriority), Some(Errno::EXFULL));
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()
}
