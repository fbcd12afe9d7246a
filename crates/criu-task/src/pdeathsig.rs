//! The signal a thread gets when its parent dies: `PR_SET_PDEATHSIG`.
//!
//! Always set: a task that is being built has one of its own, to die with its builder.

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::Program;

use crate::entries;
use crate::words::int;

const PR_SET_PDEATHSIG: i32 = 1;
const PR_GET_PDEATHSIG: i32 = 2;

#[derive(Debug)]
pub(crate) struct Pdeathsig;

impl Aspect for Pdeathsig {
    fn name(&self) -> &'static str {
        "pdeathsig"
    }

    fn ask(&self, _: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        let signal = program.room(4);
        program.prctl(PR_GET_PDEATHSIG, signal, 0, 0, 0);
        Ok(Box::new(move |_, outcome, draft| {
            let signal = int(outcome.bytes(signal), 0);
            entries::thread_of(draft).pdeath_sig = Some(signal).filter(|signal| *signal != 0);
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        let signal = entries::thread(saved)?.pdeath_sig.unwrap_or(0);
        program.prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0);
        Ok(())
    }
}
