//! What a process has registered for: membarrier(2).
//!
//! Linux 6.3 tells. Before it, a private barrier that works says that it was registered;
//! `MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED` cannot be found out there and is lost.

use criu_kind::{Answer, Aspect, Error, Result, Saved, ThreadView};
use criu_tracee::Program;

use crate::entries;

const GET_REGISTRATIONS: u32 = 1 << 9;

/// Private expedited barriers: plain, of cores, of rseq. Each is registered by the next bit.
const PRIVATE: [u32; 3] = [1 << 3, 1 << 5, 1 << 7];

#[derive(Debug)]
pub(crate) struct Membarrier;

impl Aspect for Membarrier {
    fn name(&self) -> &'static str {
        "membarrier"
    }

    fn ask(&self, view: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        if !view.leader {
            return Ok(Box::new(|_, _, _| Ok(())));
        }
        let mut attempt = |command| {
            let ret = program.membarrier(command, 0, 0);
            program.tolerate();
            ret
        };
        let registrations = attempt(GET_REGISTRATIONS);
        let barriers = PRIVATE.map(|command| (command, attempt(command)));
        Ok(Box::new(move |_, outcome, draft| {
            let works = |(command, ret)| u32::from(outcome.value(ret) == 0) * (command << 1);
            let mask = match outcome.get(registrations) {
                Ok(mask) => u32::try_from(mask).unwrap_or(0),
                Err(_) => barriers.into_iter().map(works).sum(),
            };
            entries::task_of(draft).membarrier_registration_mask =
                Some(mask).filter(|mask| *mask != 0);
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        let mask = entries::task(saved)?
            .membarrier_registration_mask
            .unwrap_or(0);
        if mask >> 31 != 0 {
            return Err(Error::corrupt("core", "no such membarrier registration"));
        }
        for bit in (0..31).filter(|bit| saved.leader && mask >> bit & 1 == 1) {
            program.membarrier(1u32 << bit, 0, 0);
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
    fn each_bit_is_a_call() {
        let mut thread = Thread::new();
        thread.task().membarrier_registration_mask = Some(1 << 4 | 1 << 8);
        check_dress(
            &Membarrier,
            &thread,
            expect![[r#"
            $0 = membarrier(16, 0, 0)
            $1 = membarrier(256, 0, 0)
        "#]],
        );
    }
}
