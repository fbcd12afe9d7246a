//! The last column of maps: what a mapping is of.

use std::borrow::Cow;

/// What the kernel calls a mapping: `show_map_vma` in `fs/proc/task_mmu.c`, proc_pid_maps(5).
///
/// The text alone decides. A file may really be called `x (deleted)`, and any name may hold `\012`
/// ([`Vma::newline`](crate::Vma::newline) tells): where it matters, ask `map_files`, whose links are not escaped,
/// and fstat(2).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MapName<'a> {
    /// Nothing: private anonymous memory.
    Empty,
    /// `[heap]`: overlaps the brk area.
    Heap,
    /// `[stack]`: holds the first thread's stack.
    Stack,
    /// `[vdso]`.
    Vdso,
    /// `[vvar]`: the vdso's data.
    Vvar,
    /// `[vvar_vclock]`: the hypervisor clocks beside it; apart since Linux 6.13.
    VvarVclock,
    /// `[vsyscall]`: the gate area of x86_64, in no process's page tables.
    Vsyscall,
    /// `[vectors]`: the gate area of 32-bit ARM.
    Vectors,
    /// `[sigpage]`: the signal return trampolines of 32-bit ARM.
    Sigpage,
    /// `[uprobes]`: the page where probed instructions run out of line.
    Uprobes,
    /// `[anon:NAME]`: `PR_SET_VMA_ANON_NAME` on private memory; prctl(2), Linux 5.17.
    Anon(Cow<'a, [u8]>),
    /// `[anon_shmem:NAME]`: the same on shared memory; Linux 6.2.
    AnonShmem(Cow<'a, [u8]>),
    /// Another name in brackets, without them.
    Special(Cow<'a, [u8]>),
    /// `/dev/zero (deleted)`: shared anonymous memory (`shmem_zero_setup`), or a mapping of `/dev/zero` itself.
    DevZero,
    /// `/SYSV%08x (deleted)`: a System V shared memory segment and its key; shmget(2).
    SysV(u32),
    /// `/memfd:NAME (deleted)`: memfd_create(2).
    Memfd(Cow<'a, [u8]>),
    /// `/anon_hugepage (deleted)`: `MAP_ANONYMOUS` with `MAP_HUGETLB`.
    AnonHugepage,
    /// `/[aio] (deleted)`: the ring of io_setup(2).
    Aio,
    /// `anon_inode:NAME`, usually with the name in brackets: `[io_uring]`, `[perf_event]`.
    AnonInode(Cow<'a, [u8]>),
    /// A path from the reader's root.
    Path {
        /// Without ` (deleted)`.
        path: Cow<'a, [u8]>,
        /// The kernel appended ` (deleted)`.
        deleted: bool,
    },
    /// A name that neither is in brackets nor starts with a slash, like `socket:[42]`.
    Pseudo(Cow<'a, [u8]>),
}

impl<'a> MapName<'a> {
    pub(crate) fn parse(text: Cow<'a, [u8]>) -> Self {
        match text.first() {
            None => Self::Empty,
            Some(b'[') => Self::bracketed(text),
            Some(b'/') => Self::path(text),
            Some(_) => match text.strip_prefix(b"anon_inode:") {
                Some(_) => Self::AnonInode(slice(text, b"anon_inode:".len(), 0)),
                None => Self::Pseudo(text),
            },
        }
    }

    fn bracketed(text: Cow<'a, [u8]>) -> Self {
        match &*text {
            b"[heap]" => Self::Heap,
            b"[stack]" => Self::Stack,
            b"[vdso]" => Self::Vdso,
            b"[vvar]" => Self::Vvar,
            b"[vvar_vclock]" => Self::VvarVclock,
            b"[vsyscall]" => Self::Vsyscall,
            b"[vectors]" => Self::Vectors,
            b"[sigpage]" => Self::Sigpage,
            b"[uprobes]" => Self::Uprobes,
            other if !other.ends_with(b"]") => Self::Pseudo(text),
            other if other.starts_with(b"[anon:") => Self::Anon(slice(text, b"[anon:".len(), 1)),
            other if other.starts_with(b"[anon_shmem:") => {
                Self::AnonShmem(slice(text, b"[anon_shmem:".len(), 1))
            }
            _ => Self::Special(slice(text, 1, 1)),
        }
    }

    fn path(text: Cow<'a, [u8]>) -> Self {
        const DELETED: &[u8] = b" (deleted)";
        let Some(path) = text.strip_suffix(DELETED) else {
            return Self::Path {
                path: text,
                deleted: false,
            };
        };
        match path {
            b"/dev/zero" => return Self::DevZero,
            b"/[aio]" => return Self::Aio,
            b"/anon_hugepage" => return Self::AnonHugepage,
            _ => {}
        }
        if let Some(key) = path.strip_prefix(b"/SYSV").and_then(sysv_key) {
            return Self::SysV(key);
        }
        if path.starts_with(b"/memfd:") {
            return Self::Memfd(slice(text, b"/memfd:".len(), DELETED.len()));
        }
        Self::Path {
            path: slice(text, 0, DELETED.len()),
            deleted: true,
        }
    }

    /// A copy that does not borrow the file's text.
    pub fn into_owned(self) -> MapName<'static> {
        let own = |text: Cow<'a, [u8]>| Cow::Owned(text.into_owned());
        match self {
            Self::Empty => MapName::Empty,
            Self::Heap => MapName::Heap,
            Self::Stack => MapName::Stack,
            Self::Vdso => MapName::Vdso,
            Self::Vvar => MapName::Vvar,
            Self::VvarVclock => MapName::VvarVclock,
            Self::Vsyscall => MapName::Vsyscall,
            Self::Vectors => MapName::Vectors,
            Self::Sigpage => MapName::Sigpage,
            Self::Uprobes => MapName::Uprobes,
            Self::DevZero => MapName::DevZero,
            Self::SysV(key) => MapName::SysV(key),
            Self::AnonHugepage => MapName::AnonHugepage,
            Self::Aio => MapName::Aio,
            Self::Anon(name) => MapName::Anon(own(name)),
            Self::AnonShmem(name) => MapName::AnonShmem(own(name)),
            Self::Special(name) => MapName::Special(own(name)),
            Self::Memfd(name) => MapName::Memfd(own(name)),
            Self::AnonInode(name) => MapName::AnonInode(own(name)),
            Self::Pseudo(name) => MapName::Pseudo(own(name)),
            Self::Path { path, deleted } => MapName::Path {
                path: own(path),
                deleted,
            },
        }
    }
}

/// `text` without `front` bytes at its start and `back` at its end.
fn slice(text: Cow<'_, [u8]>, front: usize, back: usize) -> Cow<'_, [u8]> {
    let end = text.len().saturating_sub(back).max(front);
    match text {
        Cow::Borrowed(bytes) => Cow::Borrowed(bytes.get(front..end).unwrap_or_default()),
        Cow::Owned(bytes) => Cow::Owned(bytes.get(front..end).unwrap_or_default().to_vec()),
    }
}

/// The kernel prints the key with `%08x`.
fn sysv_key(digits: &[u8]) -> Option<u32> {
    (digits.len() == 8)
        .then(|| crate::text::unsigned(digits, 16))
        .flatten()
        .and_then(|key| u32::try_from(key).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> MapName<'_> {
        MapName::parse(Cow::Borrowed(text.as_bytes()))
    }

    #[test]
    fn names() {
        assert_eq!(name(""), MapName::Empty);
        assert_eq!(name("[stack]"), MapName::Stack);
        assert_eq!(name("[stack:12]"), MapName::Special(b"stack:12".into()));
        assert_eq!(name("[anon:a b]"), MapName::Anon(b"a b".into()));
        assert_eq!(name("[anon:]"), MapName::Anon(b"".into()));
        assert_eq!(name("[anon_shmem:x]"), MapName::AnonShmem(b"x".into()));
        assert_eq!(name("["), MapName::Pseudo(b"[".into()));
        assert_eq!(name("[]"), MapName::Special(b"".into()));
        assert_eq!(name("/dev/zero (deleted)"), MapName::DevZero);
        assert_eq!(
            name("/dev/zero"),
            MapName::Path {
                path: b"/dev/zero".into(),
                deleted: false
            }
        );
        assert_eq!(name("/SYSV00012345 (deleted)"), MapName::SysV(0x12345));
        assert_eq!(
            name("/SYSVx (deleted)"),
            MapName::Path {
                path: b"/SYSVx".into(),
                deleted: true
            }
        );
        assert_eq!(name("/memfd:x (deleted)"), MapName::Memfd(b"x".into()));
        assert_eq!(name("/[aio] (deleted)"), MapName::Aio);
        assert_eq!(name("/anon_hugepage (deleted)"), MapName::AnonHugepage);
        assert_eq!(
            name("anon_inode:[io_uring]"),
            MapName::AnonInode(b"[io_uring]".into())
        );
        assert_eq!(
            name("socket:[42]").into_owned(),
            MapName::Pseudo(b"socket:[42]".into())
        );
    }
}
