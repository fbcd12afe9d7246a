//! Calls that wait: which may be issued again after a bare `EINTR`, and where they keep the time.
//!
//! What an interrupted call returned is in the registers, so it need not be known of each.
//!
//! `arch/mips/kernel/syscalls/syscall_n64.tbl`; numbers begin at 5000.

use criu_arch::TimeoutForm::{Millis, Timespec};
use criu_arch::WaitTable;

pub(crate) const TABLE: WaitTable = WaitTable {
    timed: &[
        (5007, 2, Millis),      // poll
        (5034, 0, Timespec(8)), // nanosleep
        (5126, 2, Timespec(8)), // rt_sigtimedwait
        (5194, 3, Timespec(8)), // futex
        (5202, 4, Timespec(8)), // io_getevents
        (5209, 3, Millis),      // epoll_wait
        (5214, 3, Timespec(8)), // semtimedop
        (5224, 2, Timespec(8)), // clock_nanosleep
        (5272, 3, Millis),      // epoll_pwait
        (5441, 3, Timespec(8)), // epoll_pwait2
    ],
    repeated: &[
        5000, 5001, 5018, 5019, // read, write, readv, writev (a socket with a timeout)
        5041, 5042, 5043, 5044, 5045,
        5046, // connect, accept, sendto, recvfrom, sendmsg, recvmsg
        5063, 5126, 5202, 5214, // semop, rt_sigtimedwait, io_getevents, semtimedop
        5209, 5272, 5441, // epoll_wait, epoll_pwait, epoll_pwait2
        5293, 5294, 5426, // accept4, recvmmsg, io_uring_enter
    ],
    no_handler: &[],
    block: &[],
    clock_nanosleep: &[5224],
    futex: &[5194],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_n64() {
        let at = |nr, args| TABLE.timeout(nr, &args).map(|timeout| timeout.argument);
        assert_eq!(at(5224, [1, 0, 0x100, 0, 0, 0]), Some(2));
        assert_eq!(at(5224, [1, 1, 0x100, 0, 0, 0]), None);
        assert_eq!(at(5194, [0x100, 128 | 9, 0, 0x200, 0, 0]), None);
        // poll of other machines, and of o32.
        assert_eq!(at(7, [0, 0, 5, 0, 0, 0]), None);
        assert_eq!(at(4188, [0, 0, 5, 0, 0, 0]), None);
    }
}
