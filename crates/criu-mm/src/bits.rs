//! Numbers of the image and of mmap(2) that have no better home.

/// What a mapping is, in `vma_entry.status`.
pub(crate) mod status {
    pub(crate) const REGULAR: u32 = 1 << 0;
    pub(crate) const STACK: u32 = 1 << 1;
    pub(crate) const VSYSCALL: u32 = 1 << 2;
    pub(crate) const VDSO: u32 = 1 << 3;
    pub(crate) const HEAP: u32 = 1 << 5;
    pub(crate) const FILE_PRIVATE: u32 = 1 << 6;
    pub(crate) const FILE_SHARED: u32 = 1 << 7;
    pub(crate) const ANON_SHARED: u32 = 1 << 8;
    pub(crate) const ANON_PRIVATE: u32 = 1 << 9;
    pub(crate) const SYSVIPC: u32 = 1 << 10;
    pub(crate) const SOCKET: u32 = 1 << 11;
    pub(crate) const VVAR: u32 = 1 << 12;
    pub(crate) const AIORING: u32 = 1 << 13;
    pub(crate) const MEMFD: u32 = 1 << 14;
    pub(crate) const SHSTK: u32 = 1 << 15;
    pub(crate) const GUARD: u32 = 1 << 16;
    pub(crate) const UPROBES: u32 = 1 << 17;
    /// A queue of io_uring(7). Not of CRIU.
    pub(crate) const RING: u32 = 1 << 26;
    pub(crate) const EXT_PLUGIN: u32 = 1 << 27;

    /// All that an image may have.
    pub(crate) const KNOWN: u32 = REGULAR
        | STACK
        | VSYSCALL
        | VDSO
        | HEAP
        | FILE_PRIVATE
        | FILE_SHARED
        | ANON_SHARED
        | ANON_PRIVATE
        | SYSVIPC
        | SOCKET
        | VVAR
        | AIORING
        | MEMFD
        | SHSTK
        | GUARD
        | UPROBES
        | RING
        | EXT_PLUGIN;
}

/// Flags of mmap(2) as `vma_entry.flags` has them.
pub(crate) mod map {
    pub(crate) const SHARED: u32 = libc::MAP_SHARED.cast_unsigned();
    pub(crate) const PRIVATE: u32 = libc::MAP_PRIVATE.cast_unsigned();
    /// Linux 6.11; the number is the same everywhere.
    pub(crate) const DROPPABLE: u32 = 0x08;
    pub(crate) const ANONYMOUS: u32 = libc::MAP_ANONYMOUS.cast_unsigned();
    pub(crate) const GROWSDOWN: u32 = libc::MAP_GROWSDOWN.cast_unsigned();
    pub(crate) const LOCKED: u32 = libc::MAP_LOCKED.cast_unsigned();
    pub(crate) const NORESERVE: u32 = libc::MAP_NORESERVE.cast_unsigned();
    pub(crate) const HUGETLB: u32 = libc::MAP_HUGETLB.cast_unsigned();
    /// The base-2 logarithm of the size of huge pages, `MAP_HUGE_SHIFT`.
    pub(crate) const HUGE_SHIFT: u32 = 26;
    pub(crate) const HUGE_MASK: u32 = 0x3f << HUGE_SHIFT;
    pub(crate) const FIXED_NOREPLACE: u32 = libc::MAP_FIXED_NOREPLACE.cast_unsigned();

    /// All that an image may have.
    pub(crate) const KNOWN: u32 = SHARED
        | PRIVATE
        | DROPPABLE
        | ANONYMOUS
        | GROWSDOWN
        | LOCKED
        | NORESERVE
        | HUGETLB
        | HUGE_MASK;
}

/// Protection bits that an image may have.
pub(crate) mod prot {
    pub(crate) const READ: u32 = libc::PROT_READ.cast_unsigned();
    pub(crate) const WRITE: u32 = libc::PROT_WRITE.cast_unsigned();
    pub(crate) const EXEC: u32 = libc::PROT_EXEC.cast_unsigned();
    /// `PROT_BTI` of 64-bit ARM: branches must land where they may.
    pub(crate) const BTI: u32 = 0x10;
    pub(crate) const KNOWN: u32 = READ | WRITE | EXEC | BTI;
}

/// Advice of madvise(2).
pub(crate) mod madv {
    use criu_proc::VmFlags;

    pub(crate) const DONTNEED: u32 = 4;
    pub(crate) const NOHUGEPAGE: u32 = 15;
    pub(crate) const POPULATE_WRITE: u32 = 23;
    /// Linux 6.13.
    pub(crate) const GUARD_INSTALL: u32 = 102;

    /// Those on whose effect a program relies: `MADV_DONTFORK`, `MADV_WIPEONFORK`.
    pub(crate) const BINDING: &[u32] = &[10, 18];

    /// What a mapping keeps, in `vma_entry.madv` as bit `1 << advice`.
    pub(crate) const KEPT: &[(u32, u64)] = &[
        (1, VmFlags::RAND_READ),
        (2, VmFlags::SEQ_READ),
        (10, VmFlags::DONTCOPY),
        (12, VmFlags::MERGEABLE),
        (14, VmFlags::HUGEPAGE),
        (15, VmFlags::NOHUGEPAGE),
        (16, VmFlags::DONTDUMP),
        (18, VmFlags::WIPEONFORK),
    ];
}
