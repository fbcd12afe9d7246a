//! The I/O class and level of a thread: ioprio_set(2). Kept in the extension, where it is set at all.

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::{Local, Program, Site};

const IOPRIO_WHO_PROCESS: i32 = 1;
const CLASS_SHIFT: i32 = 13;

#[derive(Debug)]
pub(crate) struct Ioprio;

impl Aspect for Ioprio {
    fn name(&self) -> &'static str {
        "ioprio"
    }

    fn ask(&self, _: &ThreadView<'_>, _: &mut Program) -> Result<Answer> {
        Ok(Box::new(|view, _, draft| {
            let mut program = Program::new();
            let ret = program.ioprio_get(IOPRIO_WHO_PROCESS, view.thread.tid().as_raw());
            // Kernels without block devices do not know it.
            program.tolerate();
            let value = Local.run(&program)?.get(ret).unwrap_or(0);
            let value = i32::try_from(value).unwrap_or(0);
            draft.ext.ioprio = Some(value).filter(|value| value >> CLASS_SHIFT != 0);
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        if let Some(value) = saved.ext.and_then(|ext| ext.ioprio) {
            program.ioprio_set(IOPRIO_WHO_PROCESS, 0, value);
        }
        Ok(())
    }
}
