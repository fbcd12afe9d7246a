//! Sockets.

super::calls! {
    /// `socket(2)`.
    socket(domain, kind, protocol);
    /// `socketpair(2)`.
    socketpair(domain, kind, protocol, fds);
    /// `bind(2)`.
    bind(fd, addr, length);
    /// `accept4(2)`.
    accept4(fd, addr, length, flags);
    /// `connect(2)`.
    connect(fd, addr, length);
    /// `listen(2)`.
    listen(fd, backlog);
    /// `setsockopt(2)`.
    setsockopt(fd, level, name, value, length);
    /// `getsockopt(2)`.
    getsockopt(fd, level, name, value, length);
    /// `getsockname(2)`.
    getsockname(fd, addr, length);
    /// `sendto(2)`.
    sendto(fd, data, length, flags, addr, addr_length);
    /// `sendmsg(2)`.
    sendmsg(fd, message, flags);
    /// `recvmsg(2)`.
    recvmsg(fd, message, flags);
    /// `shutdown(2)`.
    shutdown(fd, how);
}
