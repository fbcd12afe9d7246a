//! Signals that are queued: for the process, and for each of its threads.
//!
//! The kernel lets a task queue to itself a signal with any origin, so each thread queues its own again
//! and the leader those of the process.

use criu_image::pb;
use criu_kind::{Answer, Aspect, Error, Result, Saved, ThreadView};
use criu_tracee::{Program, SigInfo};

use crate::entries;

#[derive(Debug)]
pub(crate) struct Pending;

impl Aspect for Pending {
    fn name(&self) -> &'static str {
        "pending"
    }

    /// Read after the thread has answered everything else: timers first, then what they have sent.
    fn ask(&self, _: &ThreadView<'_>, _: &mut Program) -> Result<Answer> {
        Ok(Box::new(|view, _, draft| {
            let stopped = view.thread.stopped()?;
            let own = queue(&stopped.queued(false)?);
            entries::thread_of(draft).signals_p = Some(own);
            if view.leader {
                let shared = queue(&stopped.queued(true)?);
                entries::task_of(draft).signals_s = Some(shared);
            }
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        for info in infos(entries::thread(saved)?.signals_p.as_ref())? {
            let bytes = program.bytes(*info.as_bytes());
            program.rt_tgsigqueueinfo(saved.vpid, saved.vtid, info.signal(), bytes);
        }
        if saved.leader {
            for info in infos(entries::task(saved)?.signals_s.as_ref())? {
                let bytes = program.bytes(*info.as_bytes());
                program.rt_sigqueueinfo(saved.vpid, info.signal(), bytes);
            }
        }
        Ok(())
    }
}

fn queue(infos: &[SigInfo]) -> pb::SignalQueueEntry {
    let entry = |info: &SigInfo| pb::SiginfoEntry {
        siginfo: info.as_bytes().to_vec(),
    };
    pb::SignalQueueEntry {
        signals: infos.iter().map(entry).collect(),
    }
}

fn infos(queue: Option<&pb::SignalQueueEntry>) -> Result<Vec<SigInfo>> {
    let signals = queue.map_or(&[][..], |queue| &queue.signals);
    let info = |entry: &pb::SiginfoEntry| {
        SigInfo::from_bytes(&entry.siginfo).ok_or_else(|| {
            Error::corrupt(
                "core",
                format!("a siginfo of {} bytes", entry.siginfo.len()),
            )
        })
    };
    signals.iter().map(info).collect()
}

/// A signal that no thread of a process will have queued, for [`criu_tracee::Tracee::close_with`] while
/// it is being built. `cores` are those of all its threads.
pub fn closing_signal<'a>(cores: impl IntoIterator<Item = &'a pb::CoreEntry>) -> Result<i32> {
    let mut busy = Vec::new();
    for core in cores {
        let own = core
            .thread_core
            .as_ref()
            .and_then(|thread| thread.signals_p.as_ref());
        let shared = core.tc.as_ref().and_then(|task| task.signals_s.as_ref());
        for queue in [own, shared] {
            busy.extend(infos(queue)?.iter().map(SigInfo::signal));
        }
    }
    // None that job control acts on as soon as it is sent.
    [
        libc_signals::SIGURG,
        libc_signals::SIGWINCH,
        libc_signals::SIGUSR1,
        libc_signals::SIGUSR2,
    ]
    .into_iter()
    .chain(40..64)
    .find(|signal| !busy.contains(signal))
    .ok_or_else(|| {
        let fact = "every signal is pending";
        Error::unsupported(fact, "deliver some before the dump")
    })
}

/// Their numbers here, from nix.
mod libc_signals {
    use nix::sys::signal::Signal;

    pub(super) const SIGURG: i32 = Signal::SIGURG as i32;
    pub(super) const SIGWINCH: i32 = Signal::SIGWINCH as i32;
    pub(super) const SIGUSR1: i32 = Signal::SIGUSR1 as i32;
    pub(super) const SIGUSR2: i32 = Signal::SIGUSR2 as i32;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Thread, check_dress};
    use expect_test::expect;

    fn info(signal: u8) -> pb::SiginfoEntry {
        let mut siginfo = vec![0; 128];
        siginfo[0] = signal;
        pb::SiginfoEntry { siginfo }
    }

    #[test]
    fn own_signals_before_those_of_the_process() {
        let mut thread = Thread::new();
        thread.core_thread().signals_p = Some(pb::SignalQueueEntry {
            signals: vec![info(34)],
        });
        thread.task().signals_s = Some(pb::SignalQueueEntry {
            signals: vec![info(10)],
        });
        check_dress(
            &Pending,
            &thread,
            expect![[r#"
            $0 = rt_tgsigqueueinfo(7, 7, 34, <22000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000…>)
            $1 = rt_sigqueueinfo(7, 10, <0a000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000…>)
        "#]],
        );
    }

    #[test]
    fn a_batch_closes_with_a_signal_that_is_not_queued() {
        let mut thread = Thread::new();
        assert_eq!(closing_signal([&thread.core]).expect("one"), 23);
        thread.core_thread().signals_p = Some(pb::SignalQueueEntry {
            signals: vec![info(23)],
        });
        thread.task().signals_s = Some(pb::SignalQueueEntry {
            signals: vec![info(28)],
        });
        assert_eq!(closing_signal([&thread.core]).expect("one"), 10);
    }

    #[test]
    fn a_siginfo_of_another_size_is_no_siginfo() {
        let mut thread = Thread::new();
        let short = pb::SiginfoEntry {
            siginfo: vec![1; 127],
        };
        thread.task().signals_s = Some(pb::SignalQueueEntry {
            signals: vec![short],
        });
        assert!(Pending.dress(&thread.saved(), &mut Program::new()).is_err());
    }
}
