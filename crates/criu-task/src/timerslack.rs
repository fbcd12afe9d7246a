//! How late a thread's timers may be: `PR_SET_TIMERSLACK`. Kept in the extension.
//!
//! Not preserved: the value that setting 0 brings back. It is what the thread that cloned this one had,
//! and no call reads it.

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::Program;

const PR_SET_TIMERSLACK: i32 = 29;
const PR_GET_TIMERSLACK: i32 = 30;

#[derive(Debug)]
pub(crate) struct Timerslack;

impl Aspect for Timerslack {
    fn name(&self) -> &'static str {
        "timerslack"
    }

    fn ask(&self, _: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        let slack = program.prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
        Ok(Box::new(move |_, outcome, draft| {
            draft.ext.timerslack_ns = Some(outcome.value(slack).cast_unsigned());
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        // Real-time threads have none, which setting cannot say.
        let slack = saved
            .ext
            .and_then(|ext| ext.timerslack_ns)
            .filter(|slack| *slack != 0);
        if let Some(slack) = slack {
            program.prctl(PR_SET_TIMERSLACK, slack, 0, 0, 0);
        }
        Ok(())
    }
}
