//! Descriptors that report events.

use criu_arch::Arch;
use syscalls::Sysno;

use crate::native::Native;
use crate::{Arg, Program, Ret};

super::calls! {
    /// `eventfd2(2)`.
    eventfd2(initial, flags);
    /// `epoll_create1(2)`.
    epoll_create1(flags);
    /// `epoll_ctl(2)`.
    epoll_ctl(epfd, op, fd, event);
    /// `signalfd4(2)`.
    signalfd4(fd, mask, size, flags);
    /// `timerfd_create(2)`.
    timerfd_create(clock, flags);
    /// `timerfd_settime(2)`.
    timerfd_settime(fd, flags, new, old);
    /// `timerfd_gettime(2)`.
    timerfd_gettime(fd, value);
    /// `inotify_init1(2)`.
    inotify_init1(flags);
    /// `inotify_add_watch(2)`.
    inotify_add_watch(fd, path, mask);
}

impl Program {
    /// `fanotify_mark(2)`.
    pub fn fanotify_mark(
        &mut self,
        fd: impl Into<Arg>,
        flags: impl Into<Arg>,
        mask: u64,
        dirfd: impl Into<Arg>,
        path: impl Into<Arg>,
    ) -> Ret {
        let mut args = vec![fd.into(), flags.into()];
        let mask = Native::CALLS.wide.split(args.len(), mask);
        args.extend(mask.into_iter().map(Arg::Word));
        args.extend([dirfd.into(), path.into()]);
        self.push(Sysno::fanotify_mark, args)
    }
}
