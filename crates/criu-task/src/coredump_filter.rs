//! Which mappings a core file of the process has: `/proc/PID/coredump_filter`. Kept in the extension.

use std::fs::File;
use std::io::Write;

use criu_kind::{Answer, Aspect, Error, Result, Saved, ThreadView};
use criu_proc::ProcDir;
use criu_tracee::Program;
use nix::fcntl::OFlag;

const FILE: &str = "coredump_filter";

#[derive(Debug)]
pub(crate) struct CoredumpFilter;

impl Aspect for CoredumpFilter {
    fn name(&self) -> &'static str {
        FILE
    }

    fn ask(&self, _: &ThreadView<'_>, _: &mut Program) -> Result<Answer> {
        Ok(Box::new(|view, _, draft| {
            if view.leader {
                draft.ext.coredump_filter = read(view.process)?;
            }
            Ok(())
        }))
    }

    fn dress(&self, _: &Saved<'_>, _: &mut Program) -> Result<()> {
        Ok(())
    }

    fn push(&self, saved: &Saved<'_>, process: &ProcDir) -> Result<()> {
        let wanted = saved.ext.and_then(|ext| ext.coredump_filter);
        let Some(wanted) = wanted.filter(|_| saved.leader) else {
            return Ok(());
        };
        if read(process)? == Some(wanted) {
            return Ok(());
        }
        File::from(process.open_file(FILE, OFlag::O_WRONLY)?)
            .write_all(format!("{wanted:#x}").as_bytes())
            .map_err(Error::io("write(/proc/PID/coredump_filter)"))
    }
}

/// Nothing for a kernel without core files.
fn read(process: &ProcDir) -> Result<Option<u32>> {
    let text = process.read(FILE)?;
    if text.trim_ascii().is_empty() {
        return Ok(None);
    }
    let filter = criu_proc::hex(FILE, &text).map_err(criu_proc::Error::from)?;
    Ok(Some(filter))
}
