//! Calls that wait, where the kernel rewinds an interrupted call before the tracer sees the registers.
//!
//! `do_signal` in `arch/arm64/kernel/signal.c` and `arch/arm/kernel/signal.c` does that: what the call
//! returned is known to a local variable of the kernel alone, and forgotten when the thread goes on
//! anywhere else. So it is found from which call it was.

use crate::{Timeout, TimeoutForm};

/// The call that a thread slept in when a stop woke it ([`crate::Regs::woken_in`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Woken {
    /// Its number.
    pub nr: u64,
    /// Its arguments.
    pub args: [u64; 6],
    /// The instruction behind it.
    pub ip: u64,
}

/// How a call says that it was only interrupted (`include/linux/errno.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// `ERESTARTSYS`: it is issued again, and after a handler only if that wants it so.
    Restart,
    /// `ERESTARTNOHAND`: it is issued again unless a handler runs.
    NoHandler,
    /// `ERESTART_RESTARTBLOCK`: it goes on by `restart_syscall`, unless a handler runs.
    Block,
    /// A plain `EINTR`, although it has done nothing and can be issued again.
    Eintr,
}

/// The calls of a machine that wait.
#[derive(Clone, Copy, Debug)]
pub struct WaitTable {
    /// Those that take a time to wait, counted from when they are made: which argument, and in which form.
    pub timed: &'static [(u64, usize, TimeoutForm)],
    /// Those that return a bare `EINTR` and have done nothing (`signal(7)` lists them).
    pub repeated: &'static [u64],
    /// Those that are issued again unless a handler runs.
    pub no_handler: &'static [u64],
    /// Those that go on by `restart_syscall`; the times of `futex` and `clock_nanosleep` decide there.
    pub block: &'static [u64],
    /// `clock_nanosleep`: its time may be one of day.
    pub clock_nanosleep: &'static [u64],
    /// `futex`: most of its commands take an absolute time.
    pub futex: &'static [u64],
}

impl WaitTable {
    /// The time that a call counts from when it is made, if it does.
    pub fn timeout(&self, nr: u64, args: &[u64; 6]) -> Option<Timeout> {
        const FUTEX_CMD: u64 = 0x7f;
        let (_, argument, form) = *self.timed.iter().find(|(number, ..)| *number == nr)?;
        let value = match form {
            TimeoutForm::Millis => args[argument] & 0xffff_ffff,
            TimeoutForm::Timespec(_) => args[argument],
        };
        let relative = match nr {
            _ if self.clock_nanosleep.contains(&nr) => !is_absolute(args),
            // FUTEX_WAIT is the only one that counts from now.
            _ if self.futex.contains(&nr) => args[1] & FUTEX_CMD == 0,
            _ => true,
        };
        let waits = match form {
            // Negative: for ever.
            TimeoutForm::Millis => value >> 31 == 0,
            TimeoutForm::Timespec(_) => value != 0,
        };
        (relative && waits).then_some(Timeout {
            argument,
            value,
            form,
            remembered: false,
        })
    }

    /// What a call that slept and was woken by a stop returned, if the kernel has rewound it.
    pub fn rewound(&self, nr: u64, args: &[u64; 6]) -> Interrupted {
        match nr {
            _ if self.clock_nanosleep.contains(&nr) && is_absolute(args) => Interrupted::NoHandler,
            _ if self.futex.contains(&nr) && args[3] == 0 => Interrupted::Restart,
            _ if self.block.contains(&nr) => Interrupted::Block,
            _ if self.no_handler.contains(&nr) => Interrupted::NoHandler,
            _ => Interrupted::Restart,
        }
    }

    /// Whether the call may be issued again after a bare `EINTR`.
    pub fn may_be_repeated(&self, nr: u64) -> bool {
        self.repeated.contains(&nr)
    }
}

fn is_absolute(args: &[u64; 6]) -> bool {
    const TIMER_ABSTIME: u64 = 1;
    args[1] & TIMER_ABSTIME != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use TimeoutForm::{Millis, Timespec};

    const TABLE: WaitTable = WaitTable {
        timed: &[(1, 3, Timespec(8)), (2, 2, Timespec(8)), (3, 2, Millis)],
        repeated: &[3],
        no_handler: &[4],
        block: &[1, 2],
        clock_nanosleep: &[2],
        futex: &[1],
    };

    #[test]
    fn only_times_from_now_are_timeouts() {
        let at = |nr, args| TABLE.timeout(nr, &args).map(|timeout| timeout.argument);
        assert_eq!(at(2, [1, 0, 0x100, 0, 0, 0]), Some(2));
        assert_eq!(at(2, [1, 1, 0x100, 0, 0, 0]), None);
        assert_eq!(at(1, [0x100, 128, 0, 0x200, 0, 0]), Some(3));
        assert_eq!(at(1, [0x100, 128 | 9, 0, 0x200, 0, 0]), None);
        assert_eq!(at(1, [0x100, 128, 0, 0, 0, 0]), None);
        assert_eq!(at(3, [0, 0, 0xffff_ffff, 0, 0, 0]), None);
        assert_eq!(at(3, [0, 0, u64::MAX, 0, 0, 0]), None);
        assert_eq!(at(3, [0, 0, 5, 0, 0, 0]), Some(2));
    }

    #[test]
    fn a_call_and_its_arguments_tell_what_it_returned() {
        use Interrupted::{Block, NoHandler, Restart};
        assert_eq!(TABLE.rewound(2, &[1, 1, 0, 0, 0, 0]), NoHandler);
        assert_eq!(TABLE.rewound(2, &[1, 0, 0, 0, 0, 0]), Block);
        assert_eq!(TABLE.rewound(1, &[1, 0, 0, 0, 0, 0]), Restart);
        assert_eq!(TABLE.rewound(1, &[1, 9, 0, 8, 0, 0]), Block);
        assert_eq!(TABLE.rewound(4, &[0; 6]), NoHandler);
        assert_eq!(TABLE.rewound(5, &[0; 6]), Restart);
    }
}
