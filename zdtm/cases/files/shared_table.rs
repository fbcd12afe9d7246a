//! Processes that share a descriptor table, or their working directory, root and umask, without being threads.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, chdir, getcwd};
use zdtm::{Case, Child, Result, check, check_eq, ret};

pub(crate) const CASES: &[Case] = &[
    Case::new("fds-shared-by-processes", family),
    Case::new("fds-shared-with-grandchild", grandchild),
    Case::new("fds-shared-by-siblings", siblings),
    Case::new("fds-shared-and-left", left),
    Case::new("cwd-shared-by-processes", directories),
    Case::new("memory-shared-by-processes", memory).refused("CRIU has no way to keep it either"),
];

const NUMBER: RawFd = 400;

fn open_as_number() -> Result<()> {
    let file = File::open("/dev/null")?;
    // SAFETY: the number is free, and is left open.
    ret(unsafe { libc::dup2(file.as_raw_fd(), NUMBER) })?;
    Ok(())
}

fn sees_number() -> bool {
    // SAFETY: takes no address.
    unsafe { libc::fcntl(NUMBER, libc::F_GETFD) >= 0 }
}

/// Somebody who must see after the restore what another one opens then; or must not.
fn watcher(label: &str, flags: i32, sees: bool) -> Result<Child> {
    Child::sharing(label, flags, move || {
        Child::checkpoint();
        check_eq!(sees_number(), sees);
        Ok(())
    })
}

/// Parent, child and grandchild have one table, and a child of each has a copy.
fn family() -> Result<()> {
    let child = Child::sharing("child", libc::CLONE_FILES, || {
        let grandchild = watcher("grandchild", libc::CLONE_FILES, true)?;
        let apart = watcher("apart", 0, false)?;
        Child::checkpoint();
        check!(sees_number());
        grandchild.finish()?;
        apart.finish()
    })?;
    let apart = watcher("apart too", 0, false)?;
    let before = File::open("/proc/self/maps")?;
    zdtm::checkpoint()?;
    open_as_number()?;
    // SAFETY: takes no address.
    check!(unsafe { libc::fcntl(before.as_raw_fd(), libc::F_GETFD) } >= 0);
    child.finish()?;
    apart.finish()
}

/// Who stands between has a table of its own by now.
fn grandchild() -> Result<()> {
    let child = Child::sharing("child", libc::CLONE_FILES, || {
        let grandchild = watcher("grandchild", libc::CLONE_FILES, true)?;
        // SAFETY: takes no address.
        ret(unsafe { libc::unshare(libc::CLONE_FILES) })?;
        Child::checkpoint();
        check!(!sees_number());
        grandchild.finish()
    })?;
    zdtm::checkpoint()?;
    open_as_number()?;
    child.finish()
}

/// Two children have one table that their parent has left.
fn siblings() -> Result<()> {
    let opener = Child::sharing("opener", libc::CLONE_FILES, || {
        Child::checkpoint();
        open_as_number()
    })?;
    let sees = watcher("sees", libc::CLONE_FILES, true)?;
    // SAFETY: takes no address.
    ret(unsafe { libc::unshare(libc::CLONE_FILES) })?;
    zdtm::checkpoint()?;
    opener.finish()?;
    check!(!sees_number());
    sees.finish()
}

/// A table that was shared once, and is not any more.
fn left() -> Result<()> {
    let child = Child::sharing("child", libc::CLONE_FILES, || {
        // SAFETY: takes no address.
        ret(unsafe { libc::unshare(libc::CLONE_FILES) })?;
        Child::checkpoint();
        check!(!sees_number());
        Ok(())
    })?;
    zdtm::checkpoint()?;
    open_as_number()?;
    child.finish()
}

fn directories() -> Result<()> {
    let elsewhere = zdtm::dir().join("elsewhere");
    std::fs::create_dir(&elsewhere)?;
    let wanted = elsewhere.clone();
    let shares = |label: &str, flags, cwd: PathBuf, mask: u32| {
        Child::sharing(label, flags, move || {
            Child::checkpoint();
            check_eq!(getcwd()?, cwd);
            let mask = Mode::from_bits_truncate(mask);
            check_eq!(umask(mask), mask);
            Ok(())
        })
    };
    let shared = shares("shares", libc::CLONE_FS, wanted, 0o027)?;
    let apart = shares("apart", 0, getcwd()?, 0o022)?;
    zdtm::checkpoint()?;
    chdir(&elsewhere)?;
    umask(Mode::from_bits_truncate(0o027));
    shared.finish()?;
    apart.finish()
}

/// A child that is a thread but for its place in the tree.
fn memory() -> Result<()> {
    extern "C" fn sleep(_: *mut libc::c_void) -> i32 {
        loop {
            // SAFETY: waits for a signal; none is handled here.
            unsafe { libc::pause() };
        }
    }
    let stack = zdtm::Mapping::anonymous(1 << 16)?;
    // SAFETY: the stack is of this child alone, and lives as long as the case.
    let pid = ret(unsafe {
        let top = stack.pointer().add(stack.length());
        libc::clone(
            sleep,
            top.cast(),
            libc::CLONE_VM | libc::SIGCHLD,
            std::ptr::null_mut(),
        )
    })?;
    zdtm::checkpoint()?;
    let pid = Pid::from_raw(pid);
    kill(pid, Signal::SIGKILL)?;
    zdtm::wait_exit(pid)
}
