//! How a thread is scheduled: policy, real-time priority, nice value: sched_setattr(2).
//!
//! The three times of `SCHED_DEADLINE` are kept in the extension. Not preserved: utilization clamps and
//! core scheduling cookies.

use criu_image::pb;
use criu_kind::{Answer, Aspect, Error, Result, Saved, ThreadView};
use criu_tracee::{Local, Program, Site};

use crate::entries;
use crate::words::{int, number, put};

/// `struct sched_attr` of its first version: size, policy, flags, nice, priority, three times.
const ATTR: usize = 48;
const PRIO_PROCESS: i32 = 0;
const SCHED_DEADLINE: u32 = 6;
/// In an image the flag is part of the policy, as sched_getscheduler(2) tells it.
const SCHED_RESET_ON_FORK: u32 = 0x4000_0000;
const SCHED_FLAG_RESET_ON_FORK: u64 = 1;

#[derive(Debug)]
pub(crate) struct Sched;

impl Aspect for Sched {
    fn name(&self) -> &'static str {
        "sched"
    }

    fn ask(&self, _: &ThreadView<'_>, _: &mut Program) -> Result<Answer> {
        Ok(Box::new(|view, _, draft| {
            let mut program = Program::new();
            let attr = program.room(ATTR);
            program.sched_getattr(view.thread.tid().as_raw(), attr, ATTR, 0);
            let priority = program.getpriority(PRIO_PROCESS, view.thread.tid().as_raw());
            let outcome = Local.run(&program)?;
            let attr = outcome.bytes(attr);
            let (policy, flags) = (int(attr, 4), number(attr, 8, 8));
            if policy == SCHED_DEADLINE {
                draft.ext.deadline = Some(pb::SchedDeadlineEntry {
                    runtime: number(attr, 24, 8),
                    deadline: number(attr, 32, 8),
                    period: number(attr, 40, 8),
                    flags: Some(flags & !SCHED_FLAG_RESET_ON_FORK),
                });
            }
            let reset = flags & SCHED_FLAG_RESET_ON_FORK != 0;
            let thread = entries::thread_of(draft);
            thread.sched_policy = Some(policy | if reset { SCHED_RESET_ON_FORK } else { 0 });
            // Real-time threads have a nice value too, for when they are so no more. The call gives
            // 40 to 1 for -20 to 19.
            let priority = i32::try_from(outcome.value(priority)).unwrap_or(20);
            thread.sched_nice = Some(20 - priority);
            thread.sched_prio = Some(int(attr, 20)).filter(|priority| *priority != 0);
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        let thread = entries::thread(saved)?;
        let Some(policy) = thread.sched_policy else {
            return Ok(());
        };
        let nice = thread.sched_nice.unwrap_or(0);
        program.setpriority(0, 0, nice);
        let reset = policy & SCHED_RESET_ON_FORK != 0;
        let mut attr = vec![0; ATTR];
        put(&mut attr, 0, 4, ATTR as u64);
        put(&mut attr, 4, 4, (policy & !SCHED_RESET_ON_FORK).into());
        let reset = u64::from(reset) * SCHED_FLAG_RESET_ON_FORK;
        put(&mut attr, 8, 8, reset);
        put(&mut attr, 16, 4, i64::from(nice).cast_unsigned());
        put(&mut attr, 20, 4, thread.sched_prio.unwrap_or(0).into());
        if policy & !SCHED_RESET_ON_FORK == SCHED_DEADLINE {
            let times = saved.ext.and_then(|ext| ext.deadline.as_ref());
            let times = times.ok_or_else(|| {
                let fact = "a thread is scheduled by deadlines that the image does not tell";
                Error::unsupported(fact, "dump it with criu-rs")
            })?;
            put(&mut attr, 8, 8, times.flags.unwrap_or(0) | reset);
            put(&mut attr, 24, 8, times.runtime);
            put(&mut attr, 32, 8, times.deadline);
            put(&mut attr, 40, 8, times.period);
        }
        let attr = program.bytes(attr);
        program.sched_setattr(0, attr, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Thread, check_dress};
    use expect_test::expect;

    #[test]
    fn deadlines_are_in_the_extension_or_refused() {
        let mut thread = Thread::new();
        thread.core_thread().sched_policy = Some(SCHED_DEADLINE);
        assert!(Sched.dress(&thread.saved(), &mut Program::new()).is_err());
        thread.ext.deadline = Some(pb::SchedDeadlineEntry {
            runtime: 1,
            deadline: 2,
            period: 3,
            flags: Some(4),
        });
        check_dress(
            &Sched,
            &thread,
            expect![[r#"
            $0 = setpriority(0, 0, 0)
            $1 = sched_setattr(0, <300000000600000004000000000000000000000000000000010000000000000002000000000000000300000000000000>, 0)
        "#]],
        );
    }

    #[test]
    fn a_round_robin_thread_that_resets_on_fork() {
        let mut thread = Thread::new();
        let core = thread.core_thread();
        core.sched_policy = Some(2 | SCHED_RESET_ON_FORK);
        (core.sched_nice, core.sched_prio) = (Some(-5), Some(10));
        check_dress(
            &Sched,
            &thread,
            expect![[r#"
            $0 = setpriority(0, 0, -5)
            $1 = sched_setattr(0, <30000000020000000100000000000000fbffffff0a000000000000000000000000000000000000000000000000000000>, 0)
        "#]],
        );
    }
}
