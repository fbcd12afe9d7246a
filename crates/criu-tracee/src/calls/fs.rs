//! Files and descriptors.

use criu_arch::Arch;
use syscalls::Sysno;

use crate::native::Native;
use crate::program::numbered;
use crate::{Arg, Program, Ret};

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
    /// `preadv(2)`: the offset is split in two words on 32-bit machines.
    preadv(fd, iov, iovcnt, pos_low, pos_high);
    /// `pwritev(2)`.
    pwritev(fd, iov, iovcnt, pos_low, pos_high);
    /// `dup3(2)`.
    dup3(old, new, flags);
    /// `dup(2)`.
    dup(fd);
    /// `fcntl(2)`.
    fcntl(fd, command, arg);
    /// `ioctl(2)`.
    ioctl(fd, request, arg);
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

/// Calls with arguments of 64 bits.
impl Program {
    /// `pread64(2)`.
    pub fn pread64(
        &mut self,
        fd: impl Into<Arg>,
        buf: impl Into<Arg>,
        count: impl Into<Arg>,
        offset: u64,
    ) -> Ret {
        let args = [fd.into(), buf.into(), count.into()];
        self.call_wide(Sysno::pread64, &args, &[offset])
    }

    /// `pwrite64(2)`.
    pub fn pwrite64(
        &mut self,
        fd: impl Into<Arg>,
        buf: impl Into<Arg>,
        count: impl Into<Arg>,
        offset: u64,
    ) -> Ret {
        let args = [fd.into(), buf.into(), count.into()];
        self.call_wide(Sysno::pwrite64, &args, &[offset])
    }

    /// `ftruncate(2)`.
    pub fn ftruncate(&mut self, fd: impl Into<Arg>, length: u64) -> Ret {
        self.call_wide(Sysno::ftruncate, &[fd.into()], &[length])
    }

    /// `lseek(2)`, whose result is the new offset only on 64-bit machines.
    pub fn lseek(&mut self, fd: impl Into<Arg>, offset: u64, whence: impl Into<Arg>) -> Ret {
        let Some(llseek) = Native::CALLS.llseek else {
            return self.call(Sysno::lseek, [fd.into(), offset.into(), whence.into()]);
        };
        let result = self.bytes([0; 8]);
        let (high, low) = (offset >> 32, offset & 0xffff_ffff);
        let args = [
            fd.into(),
            high.into(),
            low.into(),
            result.into(),
            whence.into(),
        ];
        self.call(numbered(llseek), args)
    }

    /// `fcntl(F_SETLK)` with a `struct flock` of 64-bit offsets.
    pub fn set_lock(&mut self, fd: impl Into<Arg>, lock: impl Into<Arg>) -> Ret {
        self.fcntl(fd, Native::CALLS.set_lock, lock)
    }
}
