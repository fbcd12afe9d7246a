//! The three interval timers of a process: setitimer(2).

use criu_image::pb;
use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::Program;

use crate::entries;
use crate::words::{WORD, word, words};

/// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`.
const KINDS: [i32; 3] = [0, 1, 2];

/// Its interval without anything left is a timer whose signal is pending: the kernel starts it again
/// when the signal is taken (`dequeue_signal` in `kernel/signal.c`), but not one that is set like this.
const ITIMER_REAL: i32 = KINDS[0];

#[derive(Debug)]
pub(crate) struct Itimers;

impl Aspect for Itimers {
    fn name(&self) -> &'static str {
        "itimer"
    }

    fn ask(&self, view: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        if !view.leader {
            return Ok(Box::new(|_, _, _| Ok(())));
        }
        let timers = KINDS.map(|kind| {
            let value = program.room(4 * WORD);
            program.getitimer(kind, value);
            value
        });
        Ok(Box::new(move |_, outcome, draft| {
            let [real, virt, prof] = timers.map(|timer| decode(outcome.bytes(timer)));
            let timers = entries::task_of(draft).timers.get_or_insert_default();
            (timers.real, timers.virt, timers.prof) = (real, virt, prof);
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        let Some(timers) = entries::task(saved)?
            .timers
            .as_ref()
            .filter(|_| saved.leader)
        else {
            return Ok(());
        };
        for (kind, timer) in KINDS
            .into_iter()
            .zip([timers.real, timers.virt, timers.prof])
        {
            if timer != pb::ItimerEntry::default() {
                let left = match (kind, timer.vsec, timer.vusec) {
                    (ITIMER_REAL, 0, 0) => [timer.isec, timer.iusec],
                    (_, secs, micros) => [secs, micros],
                };
                let value = [timer.isec, timer.iusec, left[0], left[1]];
                let value = program.bytes(words(&value));
                program.setitimer(kind, value, 0);
            }
        }
        Ok(())
    }
}

/// `struct itimerval`: interval, then what is left.
fn decode(bytes: &[u8]) -> pb::ItimerEntry {
    pb::ItimerEntry {
        isec: word(bytes, 0),
        iusec: word(bytes, WORD),
        vsec: word(bytes, 2 * WORD),
        vusec: word(bytes, 3 * WORD),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Thread, check_dress};
    use expect_test::expect;

    #[test]
    fn one_whose_signal_is_pending_goes_on_after_an_interval() {
        let mut thread = Thread::new();
        let timers = thread.task().timers.get_or_insert_default();
        timers.real.iusec = 0x2710;
        timers.virt.iusec = 0x2710;
        check_dress(
            &Itimers,
            &thread,
            expect![[r#"
                $0 = setitimer(0, <0000000000000000102700000000000000000000000000001027000000000000>, 0)
                $1 = setitimer(1, <0000000000000000102700000000000000000000000000000000000000000000>, 0)
            "#]],
        );
    }

    #[test]
    fn one_that_does_not_run_is_not_set() {
        let mut thread = Thread::new();
        let timers = thread.task().timers.get_or_insert_default();
        timers.prof = pb::ItimerEntry {
            isec: 0,
            iusec: 0x2710,
            vsec: 0,
            vusec: 0x11,
        };
        check_dress(
            &Itimers,
            &thread,
            expect![[r#"
            $0 = setitimer(2, <0000000000000000102700000000000000000000000000001100000000000000>, 0)
        "#]],
        );
    }
}
