//! The execution domain: personality(2).
//!
//! It belongs to the thread, but images have one for the process: that of the leader.
//!
//! CRIU reads the hexadecimal digits of `/proc/PID/personality` as decimal ones, so an image of its own
//! holds 40000 for 0x40000 (`ADDR_NO_RANDOMIZE`). What is meant is put into force; our images, known by
//! their extension, hold the number itself, which CRIU restores rightly.

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
        let stored = entries::task(saved)?.personality;
        program.personality(match saved.ext {
            Some(_) => stored,
            None => meant_by_criu(stored),
        });
        Ok(())
    }
}

/// The number whose hexadecimal digits these decimal ones are.
fn meant_by_criu(stored: u32) -> u32 {
    u32::from_str_radix(&stored.to_string(), 16).unwrap_or(stored)
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

    #[test]
    fn criu_takes_the_digits_for_decimal() {
        assert_eq!((meant_by_criu(40_000), meant_by_criu(8)), (0x4_0000, 8));
    }
}
