//! Calls that wait: `arch/arm/tools/syscall.tbl`.

use criu_arch::TimeoutForm::{Millis, Timespec};
use criu_arch::WaitTable;

/// By their numbers on this machine. `ppoll`, `pselect6` and `select` write back what is left of their
/// time.
pub(crate) const TABLE: WaitTable = WaitTable {
    timed: &[
        (162, 0, Timespec(4)), // nanosleep
        (168, 2, Millis),      // poll
        (177, 2, Timespec(4)), // rt_sigtimedwait
        (240, 3, Timespec(4)), // futex
        (247, 4, Timespec(4)), // io_getevents
        (252, 3, Millis),      // epoll_wait
        (265, 2, Timespec(4)), // clock_nanosleep
        (312, 3, Timespec(4)), // semtimedop
        (346, 3, Millis),      // epoll_pwait
        (407, 2, Timespec(8)), // clock_nanosleep_time64
        (420, 3, Timespec(8)), // semtimedop_time64
        (421, 2, Timespec(8)), // rt_sigtimedwait_time64
        (422, 3, Timespec(8)), // futex_time64
        (441, 3, Timespec(8)), // epoll_pwait2
    ],
    repeated: &[
        3, 4, 145, 146, // read, write, readv, writev (a socket with a timeout)
        177, 421, // rt_sigtimedwait
        247, 252, 346, 441, // io_getevents, epoll_wait, epoll_pwait, epoll_pwait2
        283, 285, 289, 290, 291, 292, // connect, accept, send, sendto, recv, recvfrom
        296, 297, 365, 366, 417, // sendmsg, recvmsg, recvmmsg, accept4
        298, 312, 420, 426, // semop, semtimedop, io_uring_enter
    ],
    no_handler: &[
        29, 72, 179, // pause, sigsuspend, rt_sigsuspend
        142, 335, 336, 413, 414, // select, pselect6, ppoll
        301, 302, // msgsnd, msgrcv
    ],
    // restart_syscall, nanosleep, poll, futex, clock_nanosleep
    block: &[0, 162, 168, 240, 265, 407, 422],
    clock_nanosleep: &[265, 407],
    futex: &[240, 422],
};
