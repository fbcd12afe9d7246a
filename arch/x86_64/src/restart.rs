//! Calls that wait: which may be issued again after a bare `EINTR`, and where they keep the time.
//!
//! The kernel gives some waiting calls no restart at all: after any interruption, the tracer's too, they
//! return `EINTR`. They have done nothing by then, so they can be issued again. `signal(7)` lists them;
//! in the kernel they are those whose wait ends in `-EINTR` and not `-ERESTART*`: `fs/eventpoll.c`,
//! `ipc/sem.c`, `kernel/signal.c` (`do_sigtimedwait`), `sock_intr_errno` in `include/net/sock.h`.
//!
//! `arch/x86/entry/syscalls/syscall_64.tbl`, `syscall_32.tbl`.

use criu_arch::{Timeout, TimeoutForm};

use TimeoutForm::{Millis, Timespec};

/// Numbers of calls that take a time to wait: which argument, and in which form.
const TIMED: &[(u64, usize, TimeoutForm)] = &[
    (7, 2, Millis),        // poll
    (35, 0, Timespec(8)),  // nanosleep
    (128, 2, Timespec(8)), // rt_sigtimedwait
    (202, 3, Timespec(8)), // futex
    (208, 4, Timespec(8)), // io_getevents
    (220, 3, Timespec(8)), // semtimedop
    (230, 2, Timespec(8)), // clock_nanosleep
    (232, 3, Millis),      // epoll_wait
    (281, 3, Millis),      // epoll_pwait
    (441, 3, Timespec(8)), // epoll_pwait2
];

/// The same of 32-bit programs.
const TIMED_COMPAT: &[(u64, usize, TimeoutForm)] = &[
    (162, 0, Timespec(4)), // nanosleep
    (168, 2, Millis),      // poll
    (177, 2, Timespec(4)), // rt_sigtimedwait
    (240, 3, Timespec(4)), // futex
    (247, 4, Timespec(4)), // io_getevents
    (256, 3, Millis),      // epoll_wait
    (267, 2, Timespec(4)), // clock_nanosleep
    (319, 3, Millis),      // epoll_pwait
    (407, 2, Timespec(8)), // clock_nanosleep_time64
    (420, 3, Timespec(8)), // semtimedop_time64
    (421, 2, Timespec(8)), // rt_sigtimedwait_time64
    (422, 3, Timespec(8)), // futex_time64
    (441, 3, Timespec(8)), // epoll_pwait2
];

/// Numbers of calls that return a bare `EINTR` and have done nothing.
const REPEATED: &[u64] = &[
    0, 1, 19, 20, // read, write, readv, writev (a socket with a timeout)
    42, 43, 44, 45, 46, 47, // connect, accept, sendto, recvfrom, sendmsg, recvmsg
    65, 128, 208, 220, // semop, rt_sigtimedwait, io_getevents, semtimedop
    232, 281, 441, // epoll_wait, epoll_pwait, epoll_pwait2
    288, 299, 426, // accept4, recvmmsg, io_uring_enter
];

/// The same of 32-bit programs.
const REPEATED_COMPAT: &[u64] = &[
    3, 4, 145, 146, // read, write, readv, writev
    177, 247, 256, 319, // rt_sigtimedwait, io_getevents, epoll_wait, epoll_pwait
    337, 362, 364, 369, 370, 371, 372, // recvmmsg, connect, accept4, sendto, sendmsg, recv*
    417, 420, 421, 426,
    441, // recvmmsg, semtimedop, rt_sigtimedwait, io_uring_enter, epoll_pwait2
];

/// Calls of many kinds: the first argument tells which.
const SOCKETCALL: u64 = 102;
const IPC: u64 = 117;

/// Whether the call may be issued again after a bare `EINTR`.
pub(crate) fn may_be_repeated(nr: u64, compat: bool, first: u64) -> bool {
    match (compat, nr) {
        // connect, accept, send, recv, sendto, recvfrom, sendmsg, recvmsg, accept4, recvmmsg.
        (true, SOCKETCALL) => matches!(first, 3 | 5 | 9..=12 | 16..=19),
        // semop, semtimedop.
        (true, IPC) => matches!(first & 0xffff, 1 | 4),
        (true, _) => REPEATED_COMPAT.contains(&nr),
        (false, _) => REPEATED.contains(&nr),
    }
}

/// The time that a call counts from when it is made, if it does.
pub(crate) fn timeout(nr: u64, compat: bool, args: &[u64; 6]) -> Option<Timeout> {
    const TIMER_ABSTIME: u64 = 1;
    const FUTEX_CMD: u64 = 0x7f;
    let table = if compat { TIMED_COMPAT } else { TIMED };
    let (_, argument, form) = *table.iter().find(|(number, ..)| *number == nr)?;
    let value = args[argument];
    let relative = match (compat, nr) {
        (false, 230) | (true, 267 | 407) => args[1] & TIMER_ABSTIME == 0,
        // FUTEX_WAIT is the only one that counts from now.
        (false, 202) | (true, 240 | 422) => args[1] & FUTEX_CMD == 0,
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
        let at = |nr, args| timeout(nr, false, &args).map(|timeout| timeout.argument);
        assert_eq!(at(230, [1, 0, 0x100, 0, 0, 0]), Some(2));
        assert_eq!(at(230, [1, 1, 0x100, 0, 0, 0]), None);
        assert_eq!(at(202, [0x100, 128, 0, 0x200, 0, 0]), Some(3));
        assert_eq!(at(202, [0x100, 128 | 9, 0, 0x200, 0, 0]), None);
        assert_eq!(at(202, [0x100, 128, 0, 0, 0, 0]), None);
        assert_eq!(at(7, [0, 0, 0xffff_ffff, 0, 0, 0]), None);
        assert_eq!(at(7, [0, 0, u64::MAX, 0, 0, 0]), None);
        assert_eq!(at(7, [0, 0, 5, 0, 0, 0]), Some(2));
    }

    #[test]
    fn calls_of_many_kinds_are_told_apart() {
        assert!(may_be_repeated(IPC, true, 0x1_0004));
        assert!(!may_be_repeated(IPC, true, 11));
        assert!(may_be_repeated(SOCKETCALL, true, 10));
        assert!(!may_be_repeated(SOCKETCALL, true, 13));
        assert!(!may_be_repeated(SOCKETCALL, false, 10));
    }
}
