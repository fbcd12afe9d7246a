//! The futexes to release when the thread dies: set_robust_list(2).
//!
//! Not preserved: the second list that a 32-bit thread of a 64-bit kernel has.

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::{Local, Program, Site, Sysno};

use crate::entries;
use crate::words::{WORD, word};

#[derive(Debug)]
pub(crate) struct RobustList;

impl Aspect for RobustList {
    fn name(&self) -> &'static str {
        "robust_list"
    }

    fn ask(&self, _: &ThreadView<'_>, _: &mut Program) -> Result<Answer> {
        Ok(Box::new(|view, _, draft| {
            let mut program = Program::new();
            let (head, length) = (program.room(WORD), program.room(WORD));
            let tid = view.thread.tid().as_raw();
            program.call(
                Sysno::get_robust_list,
                [tid.into(), head.into(), length.into()],
            );
            let outcome = Local.run(&program)?;
            let thread = entries::thread_of(draft);
            thread.futex_rla = word(outcome.bytes(head), 0);
            // The length is that of our words: CRIU would offer it to the kernel for a 32-bit thread.
            thread.futex_rla_len = match thread.futex_rla {
                0 => 0,
                _ => u32::try_from(word(outcome.bytes(length), 0)).unwrap_or(0),
            };
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        let thread = entries::thread(saved)?;
        if thread.futex_rla != 0 {
            program.set_robust_list(thread.futex_rla, thread.futex_rla_len);
        }
        Ok(())
    }
}
