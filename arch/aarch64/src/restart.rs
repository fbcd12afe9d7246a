//! Calls that wait: `include/uapi/asm-generic/unistd.h`.

use criu_arch::TimeoutForm::{Millis, Timespec};
use criu_arch::WaitTable;

/// By their numbers on this machine. `ppoll` and `pselect6` write back what is left of their time.
pub(crate) const TABLE: WaitTable = WaitTable {
    timed: &[
        (4, 4, Timespec(8)),   // io_getevents
        (22, 3, Millis),       // epoll_pwait
        (98, 3, Timespec(8)),  // futex
        (101, 0, Timespec(8)), // nanosleep
        (115, 2, Timespec(8)), // clock_nanosleep
        (137, 2, Timespec(8)), // rt_sigtimedwait
        (192, 3, Timespec(8)), // semtimedop
        (441, 3, Timespec(8)), // epoll_pwait2
    ],
    repeated: &[
        4, 22, 441, // io_getevents, epoll_pwait, epoll_pwait2
        63, 64, 65, 66, // read, write, readv, writev (a socket with a timeout)
        137, 192, 193, // rt_sigtimedwait, semtimedop, semop
        202, 203, 206, 207, 211, 212, // accept, connect, sendto, recvfrom, sendmsg, recvmsg
        242, 243, 426, // accept4, recvmmsg, io_uring_enter
    ],
    no_handler: &[
        72, 73, 133, // pselect6, ppoll, rt_sigsuspend
        188, 189, // msgrcv, msgsnd
    ],
    block: &[98, 101, 115, 128], // futex, nanosleep, clock_nanosleep, restart_syscall
    clock_nanosleep: &[115],
    futex: &[98],
};
