//! When a thread is told of memory that has gone bad: `PR_MCE_KILL`. Kept in the extension.

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::Program;

const PR_MCE_KILL: i32 = 33;
const PR_MCE_KILL_GET: i32 = 34;
const PR_MCE_KILL_SET: i32 = 1;

#[derive(Debug)]
pub(crate) struct MceKill;

impl Aspect for MceKill {
    fn name(&self) -> &'static str {
        "mce_kill"
    }

    fn ask(&self, _: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        let state = program.prctl(PR_MCE_KILL_GET, 0, 0, 0, 0);
        // Kernels before it do not know it.
        program.tolerate();
        Ok(Box::new(move |_, outcome, draft| {
            draft.ext.mce_kill = u32::try_from(outcome.value(state)).ok();
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        if let Some(state) = saved.ext.and_then(|ext| ext.mce_kill) {
            program.prctl(PR_MCE_KILL, PR_MCE_KILL_SET, state, 0, 0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Thread, check_dress};
    use expect_test::expect;

    #[test]
    fn what_was_set_is_set_again() {
        let mut thread = Thread::new();
        thread.ext.mce_kill = Some(0);
        check_dress(
            &MceKill,
            &thread,
            expect![[r#"
            $0 = prctl(33, 1, 0, 0, 0)
        "#]],
        );
    }
}
