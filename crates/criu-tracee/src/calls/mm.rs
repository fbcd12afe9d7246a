//! Memory of the site's own address space: never for [`crate::Local`].

use criu_arch::Arch;

use crate::native::Native;
use crate::program::numbered;
use crate::{Arg, Program, Ret};

super::calls! {
    /// `munmap(2)`.
    munmap(addr, length);
    /// `mremap(2)`.
    mremap(old, old_size, new_size, flags, new);
    /// `mprotect(2)`.
    mprotect(addr, length, prot);
    /// `madvise(2)`.
    madvise(addr, length, advice);
    /// `mlock(2)`.
    mlock(addr, length);
    /// `mlock2(2)`, Linux 4.4.
    mlock2(addr, length, flags);
    /// `mlockall(2)`.
    mlockall(flags);
    /// `brk(2)`.
    brk(addr);
    /// `msync(2)`.
    msync(addr, length, flags);
    /// `mincore(2)`.
    mincore(addr, length, vec);
    /// `io_setup(2)`.
    io_setup(events, context);
    /// `io_destroy(2)`.
    io_destroy(context);
    /// `userfaultfd(2)`.
    userfaultfd(flags);
    /// `membarrier(2)`.
    membarrier(command, flags, cpu);
    /// `set_robust_list(2)`.
    set_robust_list(head, length);
    /// `rseq(2)`, Linux 4.18.
    rseq(area, length, flags, signature);
    /// `set_tid_address(2)`.
    set_tid_address(address);
    /// `shmat(2)`.
    shmat(id, addr, flags);
}

impl Program {
    /// `mmap(2)`; offset in bytes.
    pub fn mmap(
        &mut self,
        addr: impl Into<Arg>,
        length: impl Into<Arg>,
        prot: impl Into<Arg>,
        flags: impl Into<Arg>,
        fd: impl Into<Arg>,
        offset: u64,
    ) -> Ret {
        let (number, unit) = Native::CALLS.mmap;
        let (length, fd) = (length.into(), fd.into());
        let args = [
            addr.into(),
            length,
            prot.into(),
            flags.into(),
            fd,
            (offset / unit).into(),
        ];
        self.call(numbered(number), args)
    }
}
