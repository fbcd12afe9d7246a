//! A process whose first thread has exited while others go on.

use nix::unistd::getpid;
use zdtm::{Case, Child, Result, check_eq, status_field};

pub(crate) const CASES: &[Case] =
    &[Case::new("exited-leader", run).refused("the leader has no registers to save")];

fn run() -> Result<()> {
    let child = Child::spawn("child", || {
        let pid = getpid();
        std::thread::spawn(move || {
            while status_field(pid, "State").is_ok_and(|state| !state.starts_with('Z')) {
                std::thread::yield_now();
            }
            Child::checkpoint();
            // SAFETY: ends the process; its leader is gone already.
            unsafe { libc::_exit(i32::from(getpid() != pid)) };
        });
        // SAFETY: ends this thread alone.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
        Ok(())
    })?;
    check_eq!(&status_field(child.pid(), "State")?[..1], "Z");
    zdtm::checkpoint()?;
    child.finish()
}
