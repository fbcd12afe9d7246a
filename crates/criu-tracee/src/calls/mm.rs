//! Memory of the site's own address space: never for [`crate::Local`].

super::calls! {
    /// `mmap(2)`; offset in bytes.
    mmap(addr, length, prot, flags, fd, offset);
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
