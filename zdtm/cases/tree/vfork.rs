//! A parent that sleeps in vfork(2) until its child execs or exits.

use nix::unistd::Pid;
use zdtm::{Case, Child, Result, exit_code};

pub(crate) const CASES: &[Case] =
    &[Case::new("vfork", run).refused("the end of the child could not wake a restored parent")];

fn run() -> Result<()> {
    let parent = Child::spawn("parent", || {
        // Nobody can speak for us once we sleep.
        Child::set_up();
        let flags = usize::try_from(libc::CLONE_VFORK | libc::SIGCHLD)?;
        // SAFETY: without CLONE_VM this is fork(2) in a process of one thread; the parent just returns later.
        let pid = unsafe { zdtm::syscall(libc::SYS_clone, [flags, 0, 0, 0, 0, 0]) }?;
        if pid == 0 {
            zdtm::wait();
            // SAFETY: as in every child.
            unsafe { libc::_exit(7) };
        }
        exit_code(Pid::from_raw(i32::try_from(pid)?), 7)
    })?;
    while zdtm::stat_field(parent.pid(), 3)? != "D" {
        std::thread::yield_now();
    }
    zdtm::checkpoint()?;
    let grandchild = zdtm::proc_text(format!("{0}/task/{0}", parent.pid()), "children")?;
    nix::sys::signal::kill(
        Pid::from_raw(grandchild.trim().parse()?),
        nix::sys::signal::SIGTERM,
    )?;
    parent.join()
}
