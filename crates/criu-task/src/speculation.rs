//! What the processor may guess while a thread runs: `PR_SET_SPECULATION_CTRL`. Kept in the extension.

use criu_image::pb;
use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::Program;

const PR_GET_SPECULATION_CTRL: i32 = 52;
const PR_SET_SPECULATION_CTRL: i32 = 53;

/// The thread may choose; without it the state is that of the machine.
const PR_SPEC_PRCTL: u32 = 1;
const PR_SPEC_ENABLE: u32 = 2;
const PR_SPEC_DISABLE: u32 = 4;

/// Store bypass, indirect branches, flushing the first cache: each with what a thread has that never
/// chose. Setting that again may need a right, and fails where it cannot be taken back.
const KINDS: &[(u32, u32)] = &[
    (0, PR_SPEC_ENABLE),
    (1, PR_SPEC_ENABLE),
    (2, PR_SPEC_DISABLE),
];

#[derive(Debug)]
pub(crate) struct Speculation;

impl Aspect for Speculation {
    fn name(&self) -> &'static str {
        "speculation"
    }

    fn ask(&self, _: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        let mut asked = Vec::new();
        for (which, _) in KINDS {
            asked.push((
                *which,
                program.prctl(PR_GET_SPECULATION_CTRL, *which, 0, 0, 0),
            ));
            // Not on every machine.
            program.tolerate();
        }
        Ok(Box::new(move |_, outcome, draft| {
            draft.ext.speculation = asked
                .into_iter()
                .filter_map(|(which, state)| {
                    let state = u32::try_from(outcome.value(state)).ok()?;
                    let control = state & !PR_SPEC_PRCTL;
                    (control != state).then_some(pb::SpeculationEntry { which, control })
                })
                .collect();
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        for kind in saved.ext.map_or(&[][..], |ext| &ext.speculation) {
            program.prctl(PR_SET_SPECULATION_CTRL, kind.which, kind.control, 0, 0);
            if KINDS.contains(&(kind.which, kind.control)) {
                program.tolerate();
            }
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
        thread.ext.speculation = vec![
            pb::SpeculationEntry {
                which: 0,
                control: 4,
            },
            pb::SpeculationEntry {
                which: 1,
                control: 2,
            },
        ];
        check_dress(
            &Speculation,
            &thread,
            expect![[r#"
            $0 = prctl(53, 0, 4, 0, 0)
            $1 = prctl(53, 1, 2, 0, 0) ?
        "#]],
        );
    }
}
