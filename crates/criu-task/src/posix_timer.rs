//! POSIX timers: timer_create(2).
//!
//! A new process numbers its timers from 0, so small numbers are reached by making timers and deleting
//! those that fill a gap. Large ones need `PR_TIMER_CREATE_RESTORE_IDS`, Linux 6.16.
//!
//! Not preserved: the owner of a thread's CPU clock where that is not the leader, and the overrun count.
//! That of the last signal is stored, as CRIU does, but no call sets it. That of a signal still pending
//! is told only to who takes it, which would start the timer anew in the task that is dumped
//! (`posixtimer_deliver_signal` in `kernel/time/posix-timers.c`).

use criu_image::pb;
use criu_kind::{Answer, Aspect, Error, Result, Saved, ThreadView};
use criu_proc::{Notify, PosixTimer, Status, Target, timers};
use criu_tracee::{Arg, Program};
use nix::unistd::Pid;

use crate::entries;
use crate::words::{TIME, WORD, ints, number, put, times};

const SIGEV_SIGNAL: u32 = 0;
const SIGEV_NONE: u32 = 1;
const SIGEV_THREAD: u32 = 2;
const SIGEV_THREAD_ID: u32 = 4;

const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;

/// Numbers below it are reached by counting.
const COUNTED: u32 = 1024;

/// `struct sigevent`.
const SIGEVENT: usize = 64;

#[derive(Debug)]
pub(crate) struct PosixTimers;

impl Aspect for PosixTimers {
    fn name(&self) -> &'static str {
        "posix_timer"
    }

    fn ask(&self, view: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        if !view.leader {
            return Ok(Box::new(|_, _, _| Ok(())));
        }
        let mut all = timers(&view.process.read("timers")?).map_err(criu_proc::Error::from)?;
        // CRIU writes them as they come; by number they are easier to compare.
        all.sort_by_key(|timer| timer.id);
        let mut asked = Vec::new();
        for timer in all {
            let value = program.room(4 * TIME);
            program.timer_gettime(timer.id, value);
            let overrun = program.timer_getoverrun(timer.id);
            asked.push((timer, notified(view, &timer)?, value, overrun));
        }
        Ok(Box::new(move |_, outcome, draft| {
            let posix = asked.into_iter().map(|(timer, thread, value, overrun)| {
                let bytes = outcome.bytes(value);
                pb::PosixTimerEntry {
                    it_id: timer.id.cast_unsigned(),
                    clock_id: timer.clock.cast_unsigned(),
                    si_signo: timer.signal.cast_unsigned(),
                    it_sigev_notify: notify(&timer),
                    sival_ptr: timer.value,
                    overrun: u32::try_from(outcome.value(overrun)).unwrap_or(0),
                    isec: number(bytes, 0, TIME),
                    insec: number(bytes, TIME, TIME),
                    vsec: number(bytes, 2 * TIME, TIME),
                    vnsec: number(bytes, 3 * TIME, TIME),
                    notify_thread_id: thread,
                }
            });
            entries::task_of(draft).timers.get_or_insert_default().posix = posix.collect();
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
        let mut all: Vec<&pb::PosixTimerEntry> = timers.posix.iter().collect();
        all.sort_by_key(|timer| timer.it_id);
        if all.windows(2).any(|pair| pair[0].it_id == pair[1].it_id) {
            return Err(Error::corrupt("core", "two timers of one number"));
        }
        let Some(last) = all.last() else {
            return Ok(());
        };
        let by_name = last.it_id >= COUNTED;
        if by_name {
            program.prctl(PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0);
        }
        let mut next = 0;
        for timer in &all {
            for gap in next..if by_name { next } else { timer.it_id } {
                create(program, &filler(gap));
                program.timer_delete(gap);
            }
            next = timer.it_id + 1;
            create(program, timer);
        }
        if by_name {
            program.prctl(PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0);
        }
        for timer in all
            .iter()
            .filter(|timer| (timer.vsec, timer.vnsec) != (0, 0))
        {
            let value = times(&[timer.isec, timer.insec, timer.vsec, timer.vnsec]);
            let value = program.bytes(value);
            program.timer_settime(timer.it_id, 0, value, 0);
        }
        Ok(())
    }
}

fn create(program: &mut Program, timer: &pb::PosixTimerEntry) {
    let mut event = vec![0; SIGEVENT];
    put(&mut event, 0, WORD, timer.sival_ptr);
    put(&mut event, WORD, 4, timer.si_signo.into());
    put(&mut event, WORD + 4, 4, timer.it_sigev_notify.into());
    let thread = timer.notify_thread_id.unwrap_or(0).cast_unsigned();
    put(&mut event, WORD + 8, 4, thread.into());
    let event = program.bytes(event);
    let id = program.in_out(ints(&[timer.it_id]));
    // A clock that belongs to something has a negative number.
    let clock: Arg = timer.clock_id.cast_signed().into();
    program.timer_create(clock, event, id);
}

fn filler(id: u32) -> pb::PosixTimerEntry {
    let clock_id = 1;
    let it_sigev_notify = SIGEV_NONE;
    pb::PosixTimerEntry {
        it_id: id,
        clock_id,
        it_sigev_notify,
        ..pb::PosixTimerEntry::default()
    }
}

fn notify(timer: &PosixTimer) -> u32 {
    let to = match timer.target {
        Target::Thread(_) => SIGEV_THREAD_ID,
        Target::Process(_) => 0,
    };
    to | match timer.notify {
        Notify::Signal => SIGEV_SIGNAL,
        Notify::None => SIGEV_NONE,
        Notify::Thread => SIGEV_THREAD,
    }
}

/// The thread that a timer notifies, as the process itself numbers it.
fn notified(view: &ThreadView<'_>, timer: &PosixTimer) -> Result<Option<i32>> {
    let Target::Thread(tid) = timer.target else {
        return Ok(None);
    };
    let status = view.process.thread(tid)?.read("status")?;
    let status = Status::parse(&status).map_err(criu_proc::Error::from)?;
    let own = status.ns_pid.as_ref().and_then(|ids| ids.last().copied());
    Ok(Some(own.map_or(tid.as_raw(), Pid::as_raw)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Thread, check_dress};
    use expect_test::expect;

    fn timer(it_id: u32, vsec: u64) -> pb::PosixTimerEntry {
        let mut timer = filler(it_id);
        (timer.si_signo, timer.it_sigev_notify, timer.sival_ptr) = (34, SIGEV_THREAD_ID, 0x11);
        (timer.notify_thread_id, timer.vsec) = (Some(8), vsec);
        timer
    }

    #[test]
    fn a_gap_is_filled_and_emptied() {
        let mut thread = Thread::new();
        thread.task().timers.get_or_insert_default().posix = vec![timer(2, 5), timer(0, 0)];
        check_dress(
            &PosixTimers,
            &thread,
            expect![[r#"
            $0 = timer_create(1, <11000000000000002200000004000000080000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000>, [4])
            $1 = timer_create(1, <00000000000000000000000001000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000>, <01000000>)
            $2 = timer_delete(1)
            $3 = timer_create(1, <11000000000000002200000004000000080000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000>, <02000000>)
            $4 = timer_settime(2, 0, <0000000000000000000000000000000005000000000000000000000000000000>, 0)
        "#]],
        );
    }

    #[test]
    fn a_large_number_is_asked_for() {
        let mut thread = Thread::new();
        thread.task().timers.get_or_insert_default().posix = vec![timer(70_000, 5)];
        check_dress(
            &PosixTimers,
            &thread,
            expect![[r#"
            $0 = prctl(77, 1, 0, 0, 0)
            $1 = timer_create(1, <11000000000000002200000004000000080000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000>, <70110100>)
            $2 = prctl(77, 0, 0, 0, 0)
            $3 = timer_settime(0x11170, 0, <0000000000000000000000000000000005000000000000000000000000000000>, 0)
        "#]],
        );
    }

    #[test]
    fn a_number_is_one_timers() {
        let mut thread = Thread::new();
        thread.task().timers.get_or_insert_default().posix = vec![timer(3, 5), timer(3, 6)];
        assert!(
            PosixTimers
                .dress(&thread.saved(), &mut Program::new())
                .is_err()
        );
    }
}
