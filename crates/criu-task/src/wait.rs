//! The call that a thread waits in: how it goes on where it was interrupted.
//!
//! A call is issued again, without a word to the program: also those that the kernel ends with `EINTR`
//! after any stop, and those whose rest only the old task's restart block knew (`reborn` of the
//! architecture's registers). CRIU gives `EINTR` for all of them.
//!
//! A time to wait that counts from when the call was made is shortened by what is over. In a register
//! it is in the image so; a time in memory belongs to the program and stays as it is, so what is left of
//! it is kept in the extension, lies in the tail of the new task's vdso, and the argument points there.
//!
//! Where the handler of a pending signal runs first, the call ends as the kernel would end it.
//!
//! Not preserved: time slept before the thread was woken in vain or stopped before; it waits longer. A
//! call with a restart block that had been restarted already is not known any more: it gives `EINTR`.

use criu_image::pb;
use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::arch::{Arch, CoreImage, Next, Regs, Timeout, TimeoutForm};
use criu_tracee::{Memory, Native, Program, Tracee};
use std::time::Duration;

use crate::words::number;

const SA_RESTART: u64 = 0x1000_0000;

#[derive(Debug)]
pub(crate) struct Wait;

impl Aspect for Wait {
    fn name(&self) -> &'static str {
        "wait"
    }

    fn ask(&self, view: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        let natural = view.thread.natural();
        if !natural.is_interrupted() {
            return Ok(Box::new(|_, _, _| Ok(())));
        }
        if let Some(signal) = handled(view) {
            let layout = Native::SIGACTION;
            let action = program.room(layout.size);
            program.rt_sigaction(signal, 0, action, Native::SIGSET);
            return Ok(Box::new(move |view, outcome, draft| {
                let flags = number(outcome.bytes(action), layout.flags.0, layout.flags.1);
                let restart = flags & SA_RESTART != 0;
                let regs = view.thread.natural().reborn(Next::Handler { restart });
                Native::set_regs(&mut draft.core, &regs);
                Ok(())
            }));
        }
        if natural.timeout().is_none() {
            return Ok(Box::new(|_, _, _| Ok(())));
        }
        Ok(Box::new(|view, _, draft| {
            let memory = Memory::open(view.thread.tid())?;
            let Some((timeout, rest)) = view.thread.rest(&memory) else {
                return Ok(());
            };
            match timeout.form {
                TimeoutForm::Millis => {
                    let mut regs = view.thread.natural().reborn(Next::Resume);
                    let millis = rest.as_micros().div_ceil(1000);
                    regs.set_argument(timeout.argument, u64::try_from(millis).unwrap_or(0));
                    Native::set_regs(&mut draft.core, &regs);
                }
                TimeoutForm::Timespec(half) => {
                    draft.ext.wait = Some(pb::WaitEntry {
                        argument: u32::try_from(timeout.argument).unwrap_or(0),
                        half: u32::try_from(half).unwrap_or(0),
                        rest_ns: u64::try_from(rest.as_nanos()).unwrap_or(u64::MAX),
                    });
                }
            }
            Ok(())
        }))
    }

    /// The registers are not set by calls: see [`rest`].
    fn dress(&self, _: &Saved<'_>, _: &mut Program) -> Result<()> {
        Ok(())
    }
}

/// The signal whose handler runs before anything else.
fn handled(view: &ThreadView<'_>) -> Option<usize> {
    let blocked = number(view.thread.mask(), 0, view.thread.mask().len().min(8));
    let pending = view.status.sig_pending.0 | view.status.shared_pending.0;
    let next = pending & view.status.sig_caught.0 & !u128::from(blocked);
    (next != 0).then(|| next.trailing_zeros() as usize + 1)
}

/// Lets the call that a new thread issues again wait for what is left of its time.
pub(crate) fn rest(saved: &Saved<'_>, regs: &mut impl Regs, held: &mut Tracee) {
    let Some(wait) = saved.ext.and_then(|ext| ext.wait.as_ref()) else {
        return;
    };
    let timeout = Timeout {
        argument: wait.argument as usize,
        value: 0,
        form: TimeoutForm::Timespec(wait.half as usize),
        remembered: false,
    };
    // Without room for it the whole time is waited for again.
    if let Some(at) = held.keep_time(&timeout, Duration::from_nanos(wait.rest_ns)) {
        regs.set_argument(timeout.argument, at);
    }
}
