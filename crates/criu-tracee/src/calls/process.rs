//! Tasks: life, identity, limits, signals, time.

super::calls! {
    /// `clone3(2)`, Linux 5.3.
    clone3(args, size);
    /// `exit(2)`: the thread alone.
    exit(status);
    /// `exit_group(2)`.
    exit_group(status);
    /// `wait4(2)`.
    wait4(pid, status, options, usage);
    /// `kill(2)`.
    kill(pid, signal);
    /// `tgkill(2)`.
    tgkill(tgid, tid, signal);
    /// `rt_sigqueueinfo(2)`.
    rt_sigqueueinfo(tgid, signal, info);
    /// `rt_tgsigqueueinfo(2)`.
    rt_tgsigqueueinfo(tgid, tid, signal, info);
    /// `rt_sigtimedwait(2)`.
    rt_sigtimedwait(set, info, timeout, size);
    /// `rt_sigaction(2)`.
    rt_sigaction(signal, new, old, size);
    /// `rt_sigprocmask(2)`.
    rt_sigprocmask(how, new, old, size);
    /// `sigaltstack(2)`.
    sigaltstack(new, old);
    /// `setsid(2)`.
    setsid();
    /// `setpgid(2)`.
    setpgid(pid, pgid);
    /// `getpid(2)`.
    getpid();
    /// `gettid(2)`.
    gettid();
    /// `prctl(2)`.
    prctl(option, a, b, c, d);
    /// `personality(2)`.
    personality(persona);
    /// `prlimit64(2)`.
    prlimit64(pid, resource, new, old);
    /// `setpriority(2)`.
    setpriority(which, who, priority);
    /// `ioprio_set(2)`.
    ioprio_set(which, who, priority);
    /// `ioprio_get(2)`.
    ioprio_get(which, who);
    /// `sched_setattr(2)`.
    sched_setattr(pid, attributes, flags);
    /// `getpriority(2)`.
    getpriority(which, who);
    /// `sched_getattr(2)`.
    sched_getattr(pid, attributes, size, flags);
    /// `sched_setaffinity(2)`.
    sched_setaffinity(pid, length, mask);
    /// `sched_getaffinity(2)`.
    sched_getaffinity(pid, length, mask);
    /// `getgroups(2)`.
    getgroups(count, list);
    /// `getresuid(2)`.
    getresuid(real, effective, saved);
    /// `getresgid(2)`.
    getresgid(real, effective, saved);
    /// `setgroups(2)`.
    setgroups(count, list);
    /// `setresuid(2)`.
    setresuid(real, effective, saved);
    /// `setresgid(2)`.
    setresgid(real, effective, saved);
    /// `setfsuid(2)`.
    setfsuid(uid);
    /// `setfsgid(2)`.
    setfsgid(gid);
    /// `capset(2)`.
    capset(header, data);
    /// `seccomp(2)`.
    seccomp(operation, flags, args);
    /// `setns(2)`.
    setns(fd, kind);
    /// `unshare(2)`.
    unshare(flags);
    /// `pidfd_open(2)`, Linux 5.3.
    pidfd_open(pid, flags);
    /// `pidfd_getfd(2)`, Linux 5.6.
    pidfd_getfd(pidfd, fd, flags);
    /// `getitimer(2)`.
    getitimer(which, value);
    /// `setitimer(2)`.
    setitimer(which, new, old);
    /// `timer_create(2)`.
    timer_create(clock, event, id);
    /// `timer_settime(2)`.
    timer_settime(id, flags, new, old);
    /// `timer_gettime(2)`.
    timer_gettime(id, value);
    /// `timer_getoverrun(2)`.
    timer_getoverrun(id);
    /// `timer_delete(2)`.
    timer_delete(id);
}
