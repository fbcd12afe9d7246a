//! That no memory which could be written becomes executable: `PR_SET_MDWE`, since Linux 6.3. Kept in the
//! extension. It cannot be taken back: after everything that changes mappings.

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::Program;

const PR_SET_MDWE: i32 = 65;
const PR_GET_MDWE: i32 = 66;

#[derive(Debug)]
pub(crate) struct Mdwe;

impl Aspect for Mdwe {
    fn name(&self) -> &'static str {
        "mdwe"
    }

    fn ask(&self, view: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        if !view.leader {
            return Ok(Box::new(|_, _, _| Ok(())));
        }
        let state = program.prctl(PR_GET_MDWE, 0, 0, 0, 0);
        // Kernels before it do not know it.
        program.tolerate();
        Ok(Box::new(move |_, outcome, draft| {
            draft.ext.mdwe = u32::try_from(outcome.value(state)).ok();
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        if let Some(state) = saved
            .ext
            .and_then(|ext| ext.mdwe)
            .filter(|_| saved.leader)
            .filter(|state| *state != 0)
        {
            program.prctl(PR_SET_MDWE, state, 0, 0, 0);
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
        thread.ext.mdwe = Some(3);
        check_dress(
            &Mdwe,
            &thread,
            expect![[r#"
            $0 = prctl(65, 3, 0, 0, 0)
        "#]],
        );
    }
}
