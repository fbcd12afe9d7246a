//! Whether a thread is part of the path to a disk, so that its memory must not wait for one:
//! `PR_SET_IO_FLUSHER`. Kept in the extension. Only who has `CAP_SYS_RESOURCE` can be asked.

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::Program;

const PR_SET_IO_FLUSHER: i32 = 57;
const PR_GET_IO_FLUSHER: i32 = 58;

#[derive(Debug)]
pub(crate) struct IoFlusher;

impl Aspect for IoFlusher {
    fn name(&self) -> &'static str {
        "io_flusher"
    }

    fn ask(&self, _: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        let state = program.prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0);
        // Kernels before it do not know it.
        program.tolerate();
        Ok(Box::new(move |_, outcome, draft| {
            draft.ext.io_flusher = Some(outcome.value(state))
                .filter(|state| *state >= 0)
                .map(|state| state != 0);
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        if let Some(state) = saved
            .ext
            .and_then(|ext| ext.io_flusher)
            .filter(|state| *state)
        {
            program.prctl(PR_SET_IO_FLUSHER, u32::from(state), 0, 0, 0);
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
        thread.ext.io_flusher = Some(true);
        check_dress(
            &IoFlusher,
            &thread,
            expect![[r#"
            $0 = prctl(57, 1, 0, 0, 0)
        "#]],
        );
    }
}
