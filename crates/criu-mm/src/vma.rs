//! What a mapping is: from a mapping of smaps to an entry of the image.
//!
//! Pure, so that every kind of mapping is a line of text in a test. Who files are is asked later.

use criu_image::pb;
use criu_kind::{Error, Result};
use criu_proc::{Dev, MapName, Smap, VmFlags};

use crate::bits::{madv, map, prot, status};

/// Where an id of shared memory has the size of its pages, if they are huge.
const HUGE_ID_SHIFT: u32 = 40;

/// What must be known to classify mappings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings {
    /// The device of anonymous shared memory and of memfds.
    pub(crate) shmem: Dev,
    /// Leave out the mapping of uprobes instead of refusing it.
    pub(crate) allow_uprobes: bool,
}

/// A mapping understood.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Class {
    /// As the image will have it; `shmid` of a file mapping is still 0.
    pub(crate) entry: pb::VmaEntry,
    /// Whether a file is to be looked up for it.
    pub(crate) file: bool,
}

/// Classifies a mapping. `link` is the mode of its link in `map_files`, if it has one. `None`: not a
/// mapping of the process's own making, and the kernel will make it again.
pub(crate) fn classify(
    smap: &Smap<'_>,
    link: Option<u32>,
    around: &Surroundings,
) -> Result<Option<Class>> {
    let (vma, has) = (&smap.vma, |flag| smap.flags.contains(flag));
    let shared = vma.perms.shared;
    let shmem = vma.dev == around.shmem;
    let private = status::REGULAR | status::ANON_PRIVATE;
    let mut shmid = 0;
    let mut extra = 0;
    let status = match &vma.name {
        MapName::Vsyscall | MapName::Vectors => status::VSYSCALL | status::ANON_PRIVATE,
        MapName::Vdso if vma.perms.exec => private | status::VDSO,
        MapName::Vvar | MapName::VvarVclock if vma.perms.read => private | status::VVAR,
        MapName::Vdso | MapName::Vvar | MapName::VvarVclock => private,
        MapName::Uprobes if around.allow_uprobes => return Ok(None),
        MapName::Uprobes => {
            return Err(Error::unsupported(
                "uprobes are active in this process",
                "remove the probes, or pass --allow-uprobes",
            ));
        }
        MapName::Heap => private | status::HEAP,
        // Handlers that are running return to it: its content is kept.
        MapName::Sigpage => private,
        MapName::Empty | MapName::Stack | MapName::Anon(_) if !shared => private,
        MapName::AnonShmem(_) | MapName::DevZero if shmem && shared => {
            shmid = vma.inode;
            status::REGULAR | status::ANON_SHARED
        }
        // The kernel gives the inode of a segment its id as number.
        MapName::SysV(_) if shared => {
            shmid = vma.inode;
            status::REGULAR | status::ANON_SHARED | status::SYSVIPC
        }
        MapName::AnonHugepage if !shared => private,
        MapName::AnonHugepage => {
            // Another file system numbers its inodes as it likes: the size of the pages tells them apart.
            shmid = vma.inode | u64::from(smap.kernel_page_size.trailing_zeros()) << HUGE_ID_SHIFT;
            status::REGULAR | status::ANON_SHARED
        }
        MapName::Aio => status::AIORING,
        MapName::AnonInode(name) if **name == *b"[io_uring]" && shared => {
            status::REGULAR | status::RING
        }
        MapName::Pseudo(name) if name.starts_with(b"socket:[") && shared => {
            status::REGULAR | status::SOCKET
        }
        // Anonymous shared memory with a name of its own is as good as a memfd: it has a link.
        MapName::Memfd(_) | MapName::Path { deleted: true, .. }
            if shmem || matches!(vma.name, MapName::Memfd(_)) =>
        {
            status::REGULAR | status::MEMFD | of_file(shared)
        }
        // A private window on it, by way of map_files.
        MapName::DevZero if shmem => status::REGULAR | status::MEMFD | of_file(shared),
        MapName::Path {
            path,
            deleted: true,
        } if **path == *b"/secretmem" => {
            return Err(Error::unsupported(
                "memory of memfd_secret(2), which nobody but the process may read",
                "close it before the dump",
            ));
        }
        MapName::Path { .. } | MapName::DevZero => status::REGULAR | of_file(shared),
        other => return Err(refused(other)),
    };
    if smap.flags.contains(VmFlags::HUGETLB) {
        extra |= map::HUGETLB | smap.kernel_page_size.trailing_zeros() << map::HUGE_SHIFT;
    }
    let kind = |bit| status & bit == bit;
    if (has(VmFlags::IO) || has(VmFlags::PFNMAP))
        && !kind(status::VVAR)
        && !kind(status::VSYSCALL)
        && !kind(status::FILE_SHARED)
        && !kind(status::RING)
    {
        return Err(Error::unsupported(
            "memory of a device",
            "end its use before the dump, or load a plugin for it",
        ));
    }
    if has(VmFlags::SHADOW_STACK) {
        return Err(Error::unsupported(
            "a shadow stack",
            "run the program without it: GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
        ));
    }
    if has(VmFlags::MTE) {
        return Err(Error::unsupported(
            "memory with tags (MTE)",
            "run the program without them: GLIBC_TUNABLES=glibc.mem.tagging=0",
        ));
    }
    if has(VmFlags::UFFD_MISSING) || has(VmFlags::UFFD_MINOR) {
        return Err(Error::unsupported(
            "memory that a userfaultfd(2) supplies",
            "wait until it is all there, or end that first",
        ));
    }
    let files = [
        status::FILE_PRIVATE,
        status::FILE_SHARED,
        status::RING,
        status::SOCKET,
    ];
    let file = files.into_iter().any(kind);
    if !file {
        extra |= map::ANONYMOUS;
    }
    if kind(status::AIORING) {
        extra &= !map::ANONYMOUS;
    }
    Ok(Some(Class {
        entry: pb::VmaEntry {
            start: vma.start,
            end: vma.end,
            pgoff: vma.offset,
            shmid,
            prot: protection(smap),
            flags: flags(smap) | extra,
            status,
            fd: -1,
            madv: advice(&smap.flags),
            fdflags: link.and_then(open_mode),
        },
        file,
    }))
}

fn of_file(shared: bool) -> u32 {
    if shared {
        status::FILE_SHARED
    } else {
        status::FILE_PRIVATE
    }
}

fn refused(name: &MapName<'_>) -> Error {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (fact, remedy) = match name {
        MapName::SysV(key) => (
            format!("a private mapping of System V shared memory with key {key:#x}"),
            "unmap it before the dump",
        ),
        MapName::AnonInode(name) => (
            format!("memory of {}", text(name)),
            "close it before the dump",
        ),
        MapName::Pseudo(name) => (
            format!("memory of {}", text(name)),
            "close it before the dump",
        ),
        other => (format!("a mapping of unknown kind: {other:?}"), "unmap it"),
    };
    Error::unsupported(fact, remedy)
}

fn protection(smap: &Smap<'_>) -> u32 {
    let perms = &smap.vma.perms;
    let bit = |set, bit| if set { bit } else { 0 };
    // A vdso may have to get jumps over its landing places.
    let guarded = smap.flags.contains(VmFlags::ARM64_BTI) && smap.vma.name != MapName::Vdso;
    bit(perms.read, prot::READ)
        | bit(perms.write, prot::WRITE)
        | bit(perms.exec, prot::EXEC)
        | bit(guarded, prot::BTI)
}

fn flags(smap: &Smap<'_>) -> u32 {
    let base = if smap.vma.perms.shared {
        map::SHARED
    } else if smap.flags.contains(VmFlags::DROPPABLE) {
        map::DROPPABLE
    } else {
        map::PRIVATE
    };
    [
        (VmFlags::GROWSDOWN, map::GROWSDOWN),
        (VmFlags::LOCKED, map::LOCKED),
        (VmFlags::NORESERVE, map::NORESERVE),
    ]
    .iter()
    .filter(|(flag, _)| smap.flags.contains(*flag))
    .fold(base, |flags, (_, bit)| flags | bit)
}

fn advice(flags: &VmFlags) -> Option<u64> {
    let bits = madv::KEPT
        .iter()
        .filter(|(_, flag)| flags.contains(*flag))
        .fold(0, |bits, (advice, _)| bits | 1 << advice);
    (bits != 0).then_some(bits)
}

/// How the file of a mapping is open, from the permissions of its link.
fn open_mode(mode: u32) -> Option<u32> {
    match mode & 0o600 {
        0o200 => Some(libc::O_WRONLY.cast_unsigned()),
        0o400 => Some(libc::O_RDONLY.cast_unsigned()),
        0o600 => Some(libc::O_RDWR.cast_unsigned()),
        _ => None,
    }
}

/// Joins the parts of the vvar area, which the image has as one mapping.
pub(crate) fn join_vvar(vmas: &mut Vec<pb::VmaEntry>) {
    vmas.dedup_by(|next, last| {
        let both = next.status & last.status & status::VVAR != 0;
        let joined = both && last.end == next.start;
        if joined {
            last.end = next.end;
        }
        joined
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use criu_proc::Smaps;

    const AROUND: Surroundings = Surroundings {
        shmem: Dev { major: 0, minor: 1 },
        allow_uprobes: false,
    };

    fn class(maps: &str, vm_flags: &str) -> Result<Option<Class>> {
        let text = format!("{maps}\nKernelPageSize: 4 kB\nVmFlags: {vm_flags}\n");
        let smap = Smaps::new(text.as_bytes())
            .next()
            .expect("one")
            .expect("well-formed");
        classify(&smap, Some(0o400), &AROUND)
    }

    fn entry(maps: &str, vm_flags: &str) -> pb::VmaEntry {
        class(maps, vm_flags)
            .expect("supported")
            .expect("kept")
            .entry
    }

    #[test]
    fn private_memory() {
        let heap = entry(
            "1000-3000 rw-p 00000000 00:00 0 [heap]",
            "rd wr mr mw me ac",
        );
        assert_eq!(
            (
                heap.start,
                heap.end,
                heap.prot,
                heap.flags,
                heap.status,
                heap.fd
            ),
            (0x1000, 0x3000, 3, map::PRIVATE | map::ANONYMOUS, 0x221, -1)
        );
        let stack = entry(
            "1000-3000 rw-p 00000000 00:00 0 [stack]",
            "rd wr gd lo dd hg",
        );
        assert_eq!(
            stack.flags,
            map::PRIVATE | map::ANONYMOUS | map::GROWSDOWN | map::LOCKED
        );
        assert_eq!(stack.madv, Some(1 << 16 | 1 << 14));
        let droppable = entry("1000-3000 rw-p 00000000 00:00 0", "rd wr dp wf");
        assert_eq!(droppable.flags, map::DROPPABLE | map::ANONYMOUS);
    }

    #[test]
    fn files_and_shared_memory() {
        let text = class("1000-3000 r-xp 00005000 fe:00 77 /bin/cat", "rd ex")
            .expect("supported")
            .expect("kept");
        assert!(text.file);
        assert_eq!(
            (text.entry.status, text.entry.pgoff, text.entry.fdflags),
            (0x41, 0x5000, Some(0))
        );
        let shm = entry(
            "1000-3000 rw-s 00000000 00:01 99 /dev/zero (deleted)",
            "rd wr sh",
        );
        assert_eq!((shm.status, shm.shmid), (0x101, 99));
        assert_eq!(shm.flags, map::SHARED | map::ANONYMOUS);
        let segment = entry(
            "1000-3000 r--s 00000000 00:01 99 /SYSV00000007 (deleted)",
            "rd sh",
        );
        assert_eq!((segment.status, segment.shmid), (0x501, 99));
        let ring = class("1000-3000 rw-s 0 00:09 7 socket:[7]", "rd wr sh mm")
            .expect("supported")
            .expect("kept");
        assert!(ring.file);
        assert_eq!((ring.entry.status, ring.entry.flags), (0x801, map::SHARED));
        let memfd = entry(
            "1000-3000 rw-p 00000000 00:01 99 /memfd:a (deleted)",
            "rd wr",
        );
        assert_eq!(memfd.status, 0x4041);
        let window = entry(
            "1000-3000 rw-p 00001000 00:01 99 /dev/zero (deleted)",
            "rd wr",
        );
        assert_eq!((window.status, window.shmid), (0x4041, 0));
    }

    #[test]
    fn the_kernels_own() {
        let vdso = entry(
            "1000-3000 r-xp 00000000 00:00 0 [vdso]",
            "rd ex mr mw me de",
        );
        assert_eq!(vdso.status, 0x209);
        let mut vvar = vec![
            entry(
                "1000-5000 r--p 00000000 00:00 0 [vvar]",
                "rd mr pf io de dd",
            ),
            entry(
                "5000-7000 r--p 00000000 00:00 0 [vvar_vclock]",
                "rd mr pf io",
            ),
            vdso,
        ];
        join_vvar(&mut vvar);
        assert_eq!(
            (vvar.len(), vvar[0].start, vvar[0].end),
            (2, 0x1000, 0x7000)
        );
        assert_eq!(vvar[0].status, 0x1201);
        let gate = entry(
            "ffffffffff600000-ffffffffff601000 --xp 0 00:00 0 [vsyscall]",
            "ex",
        );
        assert_eq!(gate.status, 0x204);
    }

    #[test]
    fn honest_refusals() {
        let refusal = |maps, flags| class(maps, flags).expect_err("refused").to_string();
        assert_eq!(
            refusal(
                "1000-3000 rw-s 0 00:10 7 anon_inode:[perf_event]",
                "rd wr sh"
            ),
            "memory of [perf_event]"
        );
        assert_eq!(
            refusal("1000-3000 rw-p 0 00:00 0", "rd wr pf io"),
            "memory of a device"
        );
        assert_eq!(
            refusal("1000-3000 rw-p 0 00:09 7 socket:[77]", "rd wr"),
            "memory of socket:[77]"
        );
        assert!(class("1000-3000 --xp 0 00:00 0 [uprobes]", "ex io").is_err());
    }
}
