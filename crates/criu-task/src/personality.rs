//! The execution domain: personality(2).
//!
//! It belongs to the thread, but images have one for the process: that of the leader.

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::Program;

use crate::entries;

#[derive(Debug)]
pub(crate) struct Personality;

impl Aspect for Personality {
    fn name(&self) -> &'static str {
        "personality"
    }

    fn ask(&self, _: &ThreadView<'_>, _: &mut Program) -> Result<Answer> {
        Ok(Box::new(|view, _, draft| {
            if view.leader {
                let text = view.process.read("personality")?;
                let persona =
                    criu_proc::hex("personality", &text).map_err(criu_proc::Error::from)?;
                entries::task_of(draft).personality = persona;
            }
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        program.personality(entries::task(saved)?.personality);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Thread, check_dress};
    use expect_test::expect;

    #[test]
    fn threads_take_their_leaders() {
        let mut thread = Thread::follower();
        thread.task().personality = 0x0040_0000;
        check_dress(
            &Personality,
            &thread,
            expect![[r#"
            $0 = personality(0x400000)
        "#]],
        );
    }
}
