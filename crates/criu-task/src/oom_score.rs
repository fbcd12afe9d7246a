//! How eagerly the kernel kills the process when memory is short: `/proc/PID/oom_score_adj`.
//!
//! Lowering it needs `CAP_SYS_RESOURCE`. As with CRIU, a restore without that goes on, with a warning.

use std::fs::File;
use std::io::Write;

use criu_kind::{Answer, Aspect, Error, Result, Saved, ThreadView};
use criu_proc::ProcDir;
use criu_tracee::Program;
use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::entries;

const FILE: &str = "oom_score_adj";

#[derive(Debug)]
pub(crate) struct OomScore;

impl Aspect for OomScore {
    fn name(&self) -> &'static str {
        FILE
    }

    fn ask(&self, _: &ThreadView<'_>, _: &mut Program) -> Result<Answer> {
        Ok(Box::new(|view, _, draft| {
            if view.leader {
                entries::task_of(draft).oom_score_adj = Some(read(view.process)?);
            }
            Ok(())
        }))
    }

    fn dress(&self, _: &Saved<'_>, _: &mut Program) -> Result<()> {
        Ok(())
    }

    fn push(&self, saved: &Saved<'_>, process: &ProcDir) -> Result<()> {
        let wanted = entries::task(saved)?.oom_score_adj.filter(|_| saved.leader);
        let Some(wanted) = wanted else {
            return Ok(());
        };
        if read(process)? == wanted {
            return Ok(());
        }
        let mut file = File::from(process.open_file(FILE, OFlag::O_WRONLY)?);
        match file.write_all(wanted.to_string().as_bytes()) {
            Err(error) if error.raw_os_error() == Some(Errno::EACCES as i32) => {
                tracing::warn!(
                    pid = saved.vpid,
                    wanted,
                    "oom_score_adj needs CAP_SYS_RESOURCE"
                );
                Ok(())
            }
            other => other.map_err(Error::io("write(/proc/PID/oom_score_adj)")),
        }
    }
}

fn read(task: &ProcDir) -> Result<i32> {
    let text = task.read(FILE)?;
    Ok(criu_proc::dec(FILE, &text).map_err(criu_proc::Error::from)?)
}
