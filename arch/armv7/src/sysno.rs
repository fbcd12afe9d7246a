//! Calls whose first form is too narrow: `arch/arm/tools/syscall.tbl`.

use criu_arch::{Calls, Wide};

/// 16-bit ids, 32-bit offsets and times each have a wider form beside them. Callers use the layouts of that:
/// times of two 64-bit halves, `struct flock64`.
pub(crate) const CALLS: Calls = Calls {
    wide: Wide::AlignedPair,
    // mmap2 counts in 4096 bytes, whatever a page is.
    mmap: (192, 4096),
    set_lock: 13, // F_SETLK64
    ipc_64: 0x100,
    shmlba: Some(0x4000),
    first_user_page: 2,
    rewound: true,
    llseek: Some(140),
    wider: &[
        (16, 198),  // lchown
        (24, 199),  // getuid
        (47, 200),  // getgid
        (49, 201),  // geteuid
        (50, 202),  // getegid
        (70, 203),  // setreuid
        (71, 204),  // setregid
        (80, 205),  // getgroups
        (81, 206),  // setgroups
        (92, 193),  // truncate
        (93, 194),  // ftruncate
        (95, 207),  // fchown
        (138, 215), // setfsuid
        (139, 216), // setfsgid
        (164, 208), // setresuid
        (165, 209), // getresuid
        (170, 210), // setresgid
        (171, 211), // getresgid
        (23, 213),  // setuid
        (46, 214),  // setgid
        (182, 212), // chown
        (55, 221),  // fcntl
        (187, 239), // sendfile
        (177, 421), // rt_sigtimedwait
        (240, 422), // futex
        (258, 409), // timer_settime
        (259, 408), // timer_gettime
        (262, 404), // clock_settime
        (263, 403), // clock_gettime
        (264, 406), // clock_getres
        (265, 407), // clock_nanosleep
        (312, 420), // semtimedop
        (335, 413), // pselect6
        (336, 414), // ppoll
        (348, 412), // utimensat
        (353, 411), // timerfd_settime
        (354, 410), // timerfd_gettime
        (365, 417), // recvmmsg
    ],
};
