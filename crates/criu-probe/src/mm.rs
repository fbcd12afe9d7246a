//! Memory: what is mapped, what changed, what can be moved.

use std::fs;

use criu_tracee::{Program, Sysno};
use nix::errno::Errno;
use nix::sys::ioctl::ioctl_num_type;

use crate::feature::{Answer, Lack, judge, require, unreadable};
use crate::scratch::{Scratch, try_once};
use crate::task::words;

const PAGE: u64 = 64 << 10; // A multiple of every page size.
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// The links lead to the files; following them takes privilege, which is another question.
pub(crate) fn map_files() -> Answer {
    fs::read_dir("/proc/self/map_files")
        .map(drop)
        .map_err(|error| unreadable("/proc/self/map_files", &error))
}

pub(crate) fn prctl_mm_map() -> Answer {
    const MAP_SIZE: i32 = 15;
    try_once("prctl(PR_SET_MM_MAP_SIZE)", &[], |program| {
        let size = program.room(4);
        program.prctl(libc::PR_SET_MM, MAP_SIZE, size, 0, 0)
    })
}

/// Gives memory to a pipe from the middle of a page.
pub(crate) fn vmsplice() -> Answer {
    let mut task = Scratch::new()?;
    let memory = map(&mut task, 0)?;
    let mut program = Program::new();
    let fds = program.room(8);
    program.pipe2(fds, 0);
    let outcome = task.run(&program)?;
    let writer = outcome.bytes(fds)[4..]
        .try_into()
        .map_or(-1, i32::from_ne_bytes);
    let moved = task.ask(|program| {
        let iov = program.bytes([longs(memory + 1), longs(16)].concat());
        program.call(
            Sysno::vmsplice,
            [writer.into(), iov.into(), 1.into(), 0.into()],
        )
    })?;
    judge("vmsplice", moved, &[])
}

/// A number as wide as an address.
fn longs(number: u64) -> Vec<u8> {
    usize::try_from(number)
        .unwrap_or(usize::MAX)
        .to_ne_bytes()
        .to_vec()
}

/// A page written to is soft-dirty.
pub(crate) fn soft_dirty() -> Answer {
    let mut task = Scratch::new()?;
    let memory = map(&mut task, 0)?;
    let entry = pagemap_entry(&mut task, memory)?;
    require(
        entry >> 55 & 1 == 1,
        "a page written to has no soft-dirty bit (CONFIG_MEM_SOFT_DIRTY)",
    )
}

fn pagemap_entry(task: &mut Scratch, address: u64) -> Result<u64, Lack> {
    let page = u64::try_from(
        nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
            .ok()
            .flatten()
            .unwrap_or(4096),
    )
    .unwrap_or(4096);
    let mut program = Program::new();
    let path = program.cstr("/proc/self/pagemap");
    let entry = program.room(8);
    let fd = program.openat(libc::AT_FDCWD, path, libc::O_RDONLY, 0);
    program.lseek(fd, address / page * 8, libc::SEEK_SET);
    program.read(fd, entry, 8);
    let outcome = task.run(&program)?;
    Ok(outcome
        .bytes(entry)
        .try_into()
        .map_or(0, u64::from_ne_bytes))
}

/// Moves an aio ring and uses it there.
pub(crate) fn aio_remap() -> Answer {
    let mut task = Scratch::new()?;
    let mut program = Program::new();
    let context = program.in_out([0; size_of::<usize>()]);
    program.io_setup(16, context);
    let outcome = task.run(&program)?;
    let ring = word(outcome.bytes(context));
    let maps = task.read("maps")?;
    let start = format!("{ring:08x}-");
    let end = maps.lines().find_map(|line| {
        u64::from_str_radix(line.strip_prefix(&start)?.split(' ').next()?, 16).ok()
    });
    let size = end.ok_or_else(|| Lack::unknown("the ring is not where io_setup says"))? - ring;
    let hole = map(&mut task, size)?;
    task.fd(|program| {
        program.mremap(
            ring,
            size,
            size,
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
            hole,
        )
    })?;
    let events = task.ask(|program| {
        let events = program.room(32);
        let now = program.bytes([0; 16]);
        program.call(
            Sysno::io_getevents,
            [hole.into(), 0.into(), 1.into(), events.into(), now.into()],
        )
    })?;
    judge("io_getevents on a moved ring", events, &[])
}

/// Moves the vdso: nothing in the task needs it meanwhile.
pub(crate) fn move_vdso() -> Answer {
    let mut task = Scratch::new()?;
    let Some((start, end)) = task.mapping("[vdso]")? else {
        return Ok(());
    };
    let size = end - start;
    let hole = map(&mut task, size)?;
    task.fd(|program| {
        program.mremap(
            start,
            size,
            size,
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
            hole,
        )
    })?;
    let moved = task.mapping("[vdso]")?;
    require(
        moved == Some((hole, hole + size)),
        "a moved vdso is no vdso any more",
    )
}

/// A task that has a vdso is refused a second one, if the kernel can map one at all.
pub(crate) fn map_vdso() -> Answer {
    map_vdso_of(0x2003)
}

/// A kernel that runs 32-bit tasks can map their vdso.
pub(crate) fn compat() -> Answer {
    map_vdso_of(0x2002)
}

fn map_vdso_of(code: i32) -> Answer {
    const ARCH_PRCTL: usize = 158;
    let sysno = Sysno::new(ARCH_PRCTL).filter(|_| std::env::consts::ARCH == "x86_64");
    let sysno = sysno.ok_or_else(|| Lack::missing("only x86_64 has arch_prctl(ARCH_MAP_VDSO)"))?;
    try_once("arch_prctl(ARCH_MAP_VDSO)", &[Errno::EEXIST], |program| {
        program.call(sysno, [code.into(), 0.into()])
    })
}

pub(crate) fn uffd() -> Answer {
    uffd_features().map(drop)
}

/// Fork, remap, remove and unmap are reported.
pub(crate) fn uffd_events() -> Answer {
    const EVENTS: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;
    require(
        uffd_features()? & EVENTS == EVENTS,
        "userfaultfd does not report fork, remap, remove and unmap",
    )
}

fn uffd_features() -> Result<u64, Lack> {
    const API: u64 = 0xaa;
    const UFFDIO_API: ioctl_num_type = nix::request_code_readwrite!(0xaa, 0x3f, 24);
    const NEW: ioctl_num_type = nix::request_code_none!(0xaa, 0);
    let mut task = Scratch::new()?;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let by_call = task.fd(|program| program.userfaultfd(flags));
    let fd = by_call.or_else(|lack| {
        // The device is for those who may not make the call.
        let by_device = task.fd(|program| {
            let path = program.cstr("/dev/userfaultfd");
            let device = program.openat(libc::AT_FDCWD, path, libc::O_RDWR, 0);
            program.ioctl(device, NEW, flags)
        });
        by_device.map_err(|_| lack)
    })?;
    let mut program = Program::new();
    let api = program.in_out(words(&[API, 0, 0]));
    program.ioctl(fd, UFFDIO_API, api);
    let outcome = task.run(&program)?;
    Ok(outcome.bytes(api)[8..16]
        .try_into()
        .map_or(0, u64::from_ne_bytes))
}

pub(crate) fn memfd_hugetlb() -> Answer {
    try_once("memfd_create(MFD_HUGETLB)", &[], |program| {
        let name = program.cstr("huge");
        program.call(Sysno::memfd_create, [name.into(), libc::MFD_HUGETLB.into()])
    })
}

pub(crate) fn pagemap_scan() -> Answer {
    scan(0)
}

/// `PAGE_IS_GUARD`, Linux 6.15.
pub(crate) fn pagemap_scan_guard() -> Answer {
    scan(1 << 8)
}

fn scan(category: u64) -> Answer {
    const PAGEMAP_SCAN: ioctl_num_type = nix::request_code_readwrite!(b'f', 16, 96);
    try_once("ioctl(PAGEMAP_SCAN)", &[], |program| {
        let path = program.cstr("/proc/self/pagemap");
        let fd = program.openat(libc::AT_FDCWD, path, libc::O_RDONLY, 0);
        // Size and category_mask; an empty range, nothing to return.
        let arg = program.in_out(words(&[96, 0, 0, 0, 0, 0, 0, 0, 0, category, 0, category]));
        program.ioctl(fd, PAGEMAP_SCAN, arg)
    })
}

/// A file mapped from overlayfs shows the device and inode that stat(2) gives.
pub(crate) fn overlayfs_maps() -> Answer {
    let mut task = Scratch::new()?;
    crate::ns::private_mounts(&mut task)?;
    let mut program = Program::new();
    mount(&mut program, "tmpfs", "tmpfs", "/tmp", "");
    for dir in ["/tmp/l", "/tmp/u", "/tmp/w", "/tmp/m"] {
        let path = program.cstr(dir);
        program.mkdirat(libc::AT_FDCWD, path, 0o755);
    }
    mount(
        &mut program,
        "overlay",
        "overlay",
        "/tmp/m",
        "lowerdir=/tmp/l,upperdir=/tmp/u,workdir=/tmp/w",
    );
    let path = program.cstr("/tmp/m/test");
    let fd = program.openat(libc::AT_FDCWD, path, libc::O_RDWR | libc::O_CREAT, 0o644);
    let at = program.mmap(0, PAGE, READ_WRITE, libc::MAP_SHARED, fd, 0);
    let stat = program.room(256);
    let empty = program.cstr("");
    program.call(
        Sysno::statx,
        [
            fd.into(),
            empty.into(),
            libc::AT_EMPTY_PATH.into(),
            libc::STATX_BASIC_STATS.into(),
            stat.into(),
        ],
    );
    let outcome = task.run(&program)?;
    let stat = outcome.bytes(stat);
    let number = |at: usize, length: usize| {
        stat[at..at + length]
            .iter()
            .rev()
            .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    // struct statx: stx_ino, stx_dev_major, stx_dev_minor.
    let expected = format!(
        "{:02x}:{:02x} {}",
        number(136, 4),
        number(140, 4),
        number(32, 8)
    );
    let start = format!("{:08x}-", outcome.word(at));
    let maps = task.read("maps")?;
    let line = maps
        .lines()
        .find(|line| line.starts_with(&start))
        .unwrap_or_default();
    let shown = line
        .split_ascii_whitespace()
        .skip(3)
        .take(2)
        .collect::<Vec<_>>()
        .join(" ");
    require(
        shown == expected,
        &format!("/proc/PID/maps shows {shown}, the file is {expected}"),
    )
}

/// Adds a mount to a program.
pub(crate) fn mount(program: &mut Program, source: &str, kind: &str, target: &str, data: &str) {
    let [source, target, kind, data] = [source, target, kind, data].map(|text| program.cstr(text));
    program.call(
        Sysno::mount,
        [
            source.into(),
            target.into(),
            kind.into(),
            0.into(),
            data.into(),
        ],
    );
}

/// Maps and touches fresh memory in a task.
fn map(task: &mut Scratch, size: u64) -> Result<u64, Lack> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    task.fd(|program| program.mmap(0, size.max(PAGE), READ_WRITE, flags, -1, 0))
        .map(i64::cast_unsigned)
}

fn word(bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(wide)
}
