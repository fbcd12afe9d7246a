//! Whether orphans below the process become its children: `PR_SET_CHILD_SUBREAPER`.

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::Program;

use crate::entries;
use crate::words::int;

const PR_SET_CHILD_SUBREAPER: i32 = 36;
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

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        if saved.leader {
            let flag = entries::task(saved)?.child_subreaper.unwrap_or(false);
            program.prctl(PR_SET_CHILD_SUBREAPER, u32::from(flag), 0, 0, 0);
        }
        Ok(())
    }
}
