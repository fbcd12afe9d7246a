//! The name of a thread: `PR_SET_NAME`.

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::Program;

use crate::entries;

/// Bytes of a name with its NUL: `TASK_COMM_LEN`.
const LENGTH: usize = 16;
const PR_SET_NAME: i32 = 15;

#[derive(Debug)]
pub(crate) struct Comm;

impl Aspect for Comm {
    fn name(&self) -> &'static str {
        "comm"
    }

    fn ask(&self, _: &ThreadView<'_>, _: &mut Program) -> Result<Answer> {
        Ok(Box::new(|view, _, draft| {
            entries::thread_of(draft).comm = Some(view.status.comm.clone());
            if view.leader {
                entries::task_of(draft).comm = view.status.comm.clone();
            }
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        // Images before CRIU 3.11 have the leader's name only.
        let comm = entries::thread(saved)?
            .comm
            .as_ref()
            .unwrap_or(&entries::task(saved)?.comm);
        let name = program.cstr(&comm[..comm.len().min(LENGTH - 1)]);
        program.prctl(PR_SET_NAME, name, 0, 0, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Thread, check_dress};
    use expect_test::expect;

    #[test]
    fn a_long_name_is_cut_as_the_kernel_cuts_it() {
        let mut thread = Thread::new();
        thread.core_thread().comm = Some(b"a name of its own, and long".to_vec());
        check_dress(
            &Comm,
            &thread,
            expect![[r#"
            $0 = prctl(15, "a name of its o", 0, 0, 0)
        "#]],
        );
    }
}
