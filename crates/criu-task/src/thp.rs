//! Whether the process may have transparent huge pages: `PR_SET_THP_DISABLE`.
//!
//! Not preserved: the mode of Linux 6.18 that spares advised memory; it becomes a plain "none".

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::Program;

const PR_SET_THP_DISABLE: i32 = 41;
const PR_GET_THP_DISABLE: i32 = 42;

#[derive(Debug)]
pub(crate) struct Thp;

impl Aspect for Thp {
    fn name(&self) -> &'static str {
        "thp"
    }

    fn ask(&self, view: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        if !view.leader {
            return Ok(Box::new(|_, _, _| Ok(())));
        }
        let disabled = program.prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
        // Kernels without huge pages do not know it.
        program.tolerate();
        Ok(Box::new(move |_, outcome, draft| {
            draft.thp_disabled = Some(outcome.value(disabled) > 0);
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        // The memory of a new process starts with what its builder has.
        if saved.leader
            && let Some(disabled) = saved.mm.thp_disabled
        {
            program.prctl(PR_SET_THP_DISABLE, u32::from(disabled), 0, 0, 0);
            if !disabled {
                program.tolerate();
            }
        }
        Ok(())
    }
}
