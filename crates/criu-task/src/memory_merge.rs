//! Whether equal pages of the process are merged, also of mappings yet to come: `PR_SET_MEMORY_MERGE`,
//! since Linux 6.4. Kept in the extension.

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::Program;

const PR_SET_MEMORY_MERGE: i32 = 67;
const PR_GET_MEMORY_MERGE: i32 = 68;

#[derive(Debug)]
pub(crate) struct MemoryMerge;

impl Aspect for MemoryMerge {
    fn name(&self) -> &'static str {
        "memory_merge"
    }

    fn ask(&self, view: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        if !view.leader {
            return Ok(Box::new(|_, _, _| Ok(())));
        }
        let state = program.prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0);
        // Kernels before it do not know it.
        program.tolerate();
        Ok(Box::new(move |_, outcome, draft| {
            draft.ext.memory_merge = Some(outcome.value(state))
                .filter(|state| *state >= 0)
                .map(|state| state != 0);
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        if let Some(state) = saved
            .ext
            .and_then(|ext| ext.memory_merge)
            .filter(|_| saved.leader)
            .filter(|state| *state)
        {
            program.prctl(PR_SET_MEMORY_MERGE, u32::from(state), 0, 0, 0);
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
        thread.ext.memory_merge = Some(true);
        check_dress(
            &MemoryMerge,
            &thread,
            expect![[r#"
            $0 = prctl(67, 1, 0, 0, 0)
        "#]],
        );
    }
}
