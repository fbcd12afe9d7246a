//! Who logged in, for the audit subsystem: `/proc/PID/loginuid`.
//!
//! Only a thread itself may write its own, and on many systems only once. So it writes, which may fail,
//! and then it is looked at from outside; one that stays wrong is warned about.

use criu_kind::{Answer, Aspect, Error, Result, Saved, ThreadView};
use criu_proc::ProcDir;
use criu_tracee::Program;
use nix::errno::Errno;

use crate::entries;

const FILE: &str = "loginuid";
const AT_FDCWD: i32 = -100;
const O_WRONLY_CLOEXEC: i32 = 0o2_000_001;

#[derive(Debug)]
pub(crate) struct Loginuid;

impl Aspect for Loginuid {
    fn name(&self) -> &'static str {
        FILE
    }

    fn ask(&self, _: &ThreadView<'_>, _: &mut Program) -> Result<Answer> {
        Ok(Box::new(|view, _, draft| {
            if view.leader {
                entries::task_of(draft).loginuid = read(view.process)?;
            }
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        let Some(wanted) = wanted(saved)? else {
            return Ok(());
        };
        let path = program.cstr("/proc/thread-self/loginuid");
        let file = program.openat(AT_FDCWD, path, O_WRONLY_CLOEXEC, 0);
        program.tolerate();
        let text = wanted.to_string();
        let length = text.len();
        let text = program.bytes(text);
        program.write(file, text, length);
        program.tolerate();
        program.close(file);
        program.tolerate();
        Ok(())
    }

    fn push(&self, saved: &Saved<'_>, process: &ProcDir) -> Result<()> {
        if let Some(wanted) = wanted(saved)?.filter(|_| saved.leader)
            && let Some(is) = read(process)?
            && wanted != is
        {
            let pid = saved.vpid;
            tracing::warn!(pid, wanted, is, "loginuid cannot be set");
        }
        Ok(())
    }
}

/// What is to be set, if the thread was not born with it.
fn wanted(saved: &Saved<'_>) -> Result<Option<u32>> {
    let loginuid = entries::task(saved)?.loginuid;
    Ok(loginuid.filter(|wanted| saved.now.loginuid != Some(*wanted)))
}

/// The login of a process; `None` on kernels without audit.
pub fn read(process: &ProcDir) -> Result<Option<u32>> {
    match process.read(FILE) {
        Ok(text) => {
            let uid = criu_proc::dec(FILE, &text).map_err(criu_proc::Error::from)?;
            Ok(Some(uid))
        }
        Err(criu_proc::Error::Kernel {
            errno: Errno::ENOENT,
            ..
        }) => Ok(None),
        Err(error) => Err(Error::from(error)),
    }
}
