//! Whether orphans below the process become its children: `PR_SET_CHILD_SUBREAPER`.
//!
//! It is not set where tasks are dressed, all at once: the flag lies in one word with "some ancestor is a subreaper",
//! which the kernel sets in all below, and neither is written atomically (`propagate_has_child_subreaper` in
//! `kernel/sys.c`). One of the two gets lost now and then. [`crate::birth::adopt_orphans`] sets it, one task at a time.

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::Program;

use crate::entries;
use crate::words::int;

const PR_GET_CHILD_SUBREAPER: i32 = 37;

#[derive(Debug)]
pub(crate) struct ChildSubreaper;

impl Aspect for ChildSubreaper {
    fn name(&self) -> &'static str {
        "child_subreaper"
    }

    fn ask(&self, view: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        if !view.leader {
            return Ok(Box::new(|_, _, _| Ok(())));
        }
        let flag = program.room(4);
        program.prctl(PR_GET_CHILD_SUBREAPER, flag, 0, 0, 0);
        Ok(Box::new(move |_, outcome, draft| {
            entries::task_of(draft).child_subreaper = Some(int(outcome.bytes(flag), 0) != 0);
            Ok(())
        }))
    }

    fn dress(&self, _: &Saved<'_>, _: &mut Program) -> Result<()> {
        Ok(())
    }
}
