//! The word that is cleared, and woken as a futex, when the thread ends: set_tid_address(2).

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::arch::CoreImage;
use criu_tracee::{Native, Program};

use crate::words::{WORD, word};

const PR_GET_TID_ADDRESS: i32 = 40;

#[derive(Debug)]
pub(crate) struct ClearTid;

impl Aspect for ClearTid {
    fn name(&self) -> &'static str {
        "clear_tid"
    }

    fn ask(&self, _: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        let address = program.room(WORD);
        program.prctl(PR_GET_TID_ADDRESS, address, 0, 0, 0);
        Ok(Box::new(move |_, outcome, draft| {
            Native::set_clear_tid(&mut draft.core, word(outcome.bytes(address), 0));
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        program.set_tid_address(Native::clear_tid(saved.core).unwrap_or(0));
        Ok(())
    }
}
