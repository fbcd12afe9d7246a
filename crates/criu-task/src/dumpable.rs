//! Whether the process may leave a core file, and be traced by its user: `PR_SET_DUMPABLE`.
//!
//! The value 2 (a core file for root only) comes of `/proc/sys/fs/suid_dumpable` alone and cannot be set:
//! the process gets 0 instead, which allows less.

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::Program;

const PR_GET_DUMPABLE: i32 = 3;
const PR_SET_DUMPABLE: i32 = 4;

#[derive(Debug)]
pub(crate) struct Dumpable;

impl Aspect for Dumpable {
    fn name(&self) -> &'static str {
        "dumpable"
    }

    fn ask(&self, view: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        if !view.leader {
            return Ok(Box::new(|_, _, _| Ok(())));
        }
        let dumpable = program.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
        Ok(Box::new(move |_, outcome, draft| {
            draft.dumpable = i32::try_from(outcome.value(dumpable)).ok();
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        if saved.leader
            && let Some(dumpable) = saved.mm.dumpable
        {
            program.prctl(PR_SET_DUMPABLE, u32::from(dumpable == 1), 0, 0, 0);
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
    fn two_becomes_none() {
        let mut thread = Thread::new();
        thread.mm.dumpable = Some(2);
        check_dress(
            &Dumpable,
            &thread,
            expect![[r#"
            $0 = prctl(4, 0, 0, 0, 0)
        "#]],
        );
    }

    #[test]
    fn it_is_the_leaders_to_set() {
        let mut thread = Thread::follower();
        thread.mm.dumpable = Some(1);
        check_dress(&Dumpable, &thread, expect![[""]]);
    }
}
