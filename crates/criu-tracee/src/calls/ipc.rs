//! System V and POSIX IPC.

super::calls! {
    /// `shmget(2)`.
    shmget(key, size, flags);
    /// `semget(2)`.
    semget(key, count, flags);
    /// `msgget(2)`.
    msgget(key, flags);
}
