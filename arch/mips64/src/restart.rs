//! Calls that wait: which may be issued again after a bare `EINTR`, and where they keep the time.
//!
//! The kernel gives some waiting calls no restart at all: after any interruption, the tracer's too, they
//! return `EINTR`. They have done nothing by then, so they can be issued again. `signal(7)` lists them;
//! in the kernel they are those whose wait ends in `-EINTR` and not `-ERESTART*`: `fs/eventpoll.c`,
//! `ipc/sem.c`, `kernel/signal.c` (`do_sigtimedwait`), `sock_intr_errno` in `include/net/sock.h`.
//!
//! `arch/mips/kernel/syscalls/syscall_n64.tbl`; numbers begin at 5000.

use criu_arch::{Timeout, TimeoutForm};

use TimeoutForm::{Millis, Timespec};

const FUTEX: u64 = 5194;
const CLOCK_NANOSLEEP: u64 = 5224;

/// Numbers of calls that take a time to wait: which argument, and in which form.
const TIMED: &[(u64, usize, TimeoutForm)] = &[
    (5007, 2, Millis),                 // poll
    (5034, 0, Timespec(8)),            // nanosleep
    (5126, 2, Timespec(8)),            // rt_sigtimedwait
    (FUTEX, 3, Timespec(8)),           // futex
    (5202, 4, Timespec(8)),            // io_getevents
    (5209, 3, Millis),                 // epoll_wait
    (5214, 3, Timespec(8)),            // semtimedop
    (CLOCK_NANOSLEEP, 2, Timespec(8)), // clock_nanosleep
    (5272, 3, Millis),                 // epoll_pwait
    (5441, 3, Timespec(8)),            // epoll_pwait2
];

/// Numbers of calls that return a bare `EINTR` and have done nothing.
const REPEATED: &[u64] = &[
    5000, 5001, 5018, 5019, // read, write, readv, writev (a socket with a timeout)
    5041, 5042, 5043, 5044, 5045, 5046, // connect, accept, sendto, recvfrom, sendmsg, recvmsg
    5063, 5126, 5202, 5214, // semop, rt_sigtimedwait, io_getevents, semtimedop
    5209, 5272, 5441, // epoll_wait, epoll_pwait, epoll_pwait2
    5293, 5294, 5426, // accept4, recvmmsg, io_uring_enter
];

/// Whether the call may be issued again after a bare `EINTR`.
pub(crate) fn may_be_repeated(nr: u64) -> bool {
    REPEATED.contains(&nr)
}

/// The time that a call counts from when it is made, if it does.
pub(crate) fn timeout(nr: u64, args: &[u64; 6]) -> Option<Timeout> {
    const TIMER_ABSTIME: u64 = 1;
    const FUTEX_CMD: u64 = 0x7f;
    let (_, argument, form) = *TIMED.iter().find(|(number, ..)| *number == nr)?;
    let value = args[argument];
    let relative = match nr {
        CLOCK_NANOSLEEP => args[1] & TIMER_ABSTIME == 0,
        // FUTEX_WAIT is the only one that counts from now.
        FUTEX => args[1] & FUTEX_CMD == 0,
        _ => true,
    };
    let waits = match form {
        // Negative: for ever.
        Millis => value << 32 >> 63 == 0,
        Timespec(_) => value != 0,
    };
    (relative && waits).then_some(Timeout {
        argument,
        value: if form == Millis {
            value & 0xffff_ffff
        } else {
            value
        },
        form,
        remembered: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_times_from_now_are_timeouts() {
        let at = |nr, args| timeout(nr, &args).map(|timeout| timeout.argument);
        assert_eq!(at(5224, [1, 0, 0x100, 0, 0, 0]), Some(2));
        assert_eq!(at(5224, [1, 1, 0x100, 0, 0, 0]), None);
        assert_eq!(at(5194, [0x100, 128, 0, 0x200, 0, 0]), Some(3));
        assert_eq!(at(5194, [0x100, 128 | 9, 0, 0x200, 0, 0]), None);
        assert_eq!(at(5194, [0x100, 128, 0, 0, 0, 0]), None);
        assert_eq!(at(5007, [0, 0, 0xffff_ffff, 0, 0, 0]), None);
        assert_eq!(at(5007, [0, 0, u64::MAX, 0, 0, 0]), None);
        assert_eq!(at(5007, [0, 0, 5, 0, 0, 0]), Some(2));
        // Numbers of other machines mean nothing here.
        assert_eq!(at(7, [0, 0, 5, 0, 0, 0]), None);
    }
}
