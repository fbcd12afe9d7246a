//! Files and descriptors.

super::calls! {
    /// `openat(2)`.
    openat(dirfd, path, flags, mode);
    /// `close(2)`.
    close(fd);
    /// `close_range(2)`, Linux 5.9.
    close_range(first, last, flags);
    /// `read(2)`.
    read(fd, buf, count);
    /// `write(2)`.
    write(fd, buf, count);
    /// `pread64(2)`.
    pread64(fd, buf, count, offset);
    /// `pwrite64(2)`.
    pwrite64(fd, buf, count, offset);
    /// `preadv(2)`: the offset is split in two words on 32-bit machines.
    preadv(fd, iov, iovcnt, pos_low, pos_high);
    /// `pwritev(2)`.
    pwritev(fd, iov, iovcnt, pos_low, pos_high);
    /// `lseek(2)`.
    lseek(fd, offset, whence);
    /// `dup3(2)`.
    dup3(old, new, flags);
    /// `dup(2)`.
    dup(fd);
    /// `fcntl(2)`.
    fcntl(fd, command, arg);
    /// `ioctl(2)`.
    ioctl(fd, request, arg);
    /// `ftruncate(2)`.
    ftruncate(fd, length);
    /// `fchmod(2)`.
    fchmod(fd, mode);
    /// `fchown(2)`.
    fchown(fd, owner, group);
    /// `fchmodat(2)`: it has no flags.
    fchmodat(dirfd, path, mode);
    /// `fchownat(2)`.
    fchownat(dirfd, path, owner, group, flags);
    /// `fchdir(2)`.
    fchdir(fd);
    /// `chroot(2)`.
    chroot(path);
    /// `umask(2)`.
    umask(mask);
    /// `mkdirat(2)`.
    mkdirat(dirfd, path, mode);
    /// `mknodat(2)`.
    mknodat(dirfd, path, mode, dev);
    /// `linkat(2)`.
    linkat(olddirfd, oldpath, newdirfd, newpath, flags);
    /// `symlinkat(2)`.
    symlinkat(target, newdirfd, linkpath);
    /// `unlinkat(2)`.
    unlinkat(dirfd, path, flags);
    /// `fsetxattr(2)`.
    fsetxattr(fd, name, value, size, flags);
    /// `utimensat(2)`.
    utimensat(dirfd, path, times, flags);
    /// `pipe2(2)`.
    pipe2(fds, flags);
    /// `vmsplice(2)`.
    vmsplice(fd, iov, segments, flags);
    /// `memfd_create(2)`.
    memfd_create(name, flags);
    /// `mount(2)`.
    mount(source, target, fstype, flags, data);
    /// `umount2(2)`.
    umount2(target, flags);
}
