//! System V and POSIX IPC, and BPF objects.

super::calls! {
    /// `shmget(2)`.
    shmget(key, size, flags);
    /// `shmdt(2)`.
    shmdt(addr);
    /// `shmctl(2)`.
    shmctl(id, command, buf);
    /// `semget(2)`.
    semget(key, count, flags);
    /// `semctl(2)`.
    semctl(id, num, command, arg);
    /// `semop(2)`.
    semop(id, ops, count);
    /// `msgget(2)`.
    msgget(key, flags);
    /// `msgctl(2)`.
    msgctl(id, command, buf);
    /// `msgsnd(2)`; the size without the type.
    msgsnd(id, message, size, flags);
    /// `msgrcv(2)`.
    msgrcv(id, message, size, kind, flags);
    /// `mq_open(2)`; the name without its slash.
    mq_open(name, flags, mode, attributes);
    /// `mq_unlink(2)`.
    mq_unlink(name);
    /// `mq_timedsend(2)`.
    mq_timedsend(queue, message, size, priority, timeout);
    /// `mq_timedreceive(2)`.
    mq_timedreceive(queue, message, size, priority, timeout);
    /// `mq_notify(2)`.
    mq_notify(queue, event);
    /// `mq_getsetattr(2)`.
    mq_getsetattr(queue, new, old);
    /// `bpf(2)`.
    bpf(command, attributes, size);
}
