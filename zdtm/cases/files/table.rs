//! The descriptor table: numbers, flags, sharing, signal owners.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::c_int;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use zdtm::{Case, Child, Result, Team, check, check_eq, ret};

pub(crate) const CASES: &[Case] = &[
    Case::new("fds-1000", thousand),
    Case::new("fd-numbers", || numbers(1 << 14)),
    Case::new("fd-numbers-limit", || numbers(1 << 30)),
    Case::new("fds-full", full),
    Case::new("fd-cloexec", cloexec),
    Case::new("fd-owner", owner),
    Case::new("fd-own-by-thread", owner_thread),
    Case::new("fds-of-threads", of_threads),
    Case::new("fds-closed", closed),
    Case::new("fd-passed", passed),
];

fn dup_to(file: &impl AsRawFd, number: RawFd) -> Result<OwnedFd> {
    // SAFETY: the number is free; the result owns it.
    unsafe {
        ret(libc::dup2(file.as_raw_fd(), number))?;
        Ok(OwnedFd::from_raw_fd(number))
    }
}

fn raw_fcntl(fd: &impl AsRawFd, command: c_int, argument: usize) -> Result<c_int> {
    // SAFETY: the commands used here take a number, or an address the caller keeps alive.
    Ok(ret(unsafe {
        libc::fcntl(fd.as_raw_fd(), command, argument)
    })?)
}

/// A thousand files at different positions.
fn thousand() -> Result<()> {
    let path = zdtm::dir().join("file");
    std::fs::write(&path, vec![1; 5000])?;
    let mut files = Vec::new();
    for position in 0..1000 {
        let mut file = File::open(&path)?;
        file.seek(SeekFrom::Start(position * 3))?;
        files.push(file);
    }
    zdtm::checkpoint()?;
    for (position, file) in (0..).zip(&mut files) {
        check_eq!(file.stream_position()?, position * 3);
    }
    Ok(())
}

/// A table of which hardly a number is free, most of them files of their own: as many as a driver with the same limit can
/// open.
fn full() -> Result<()> {
    const FREE: c_int = 8;
    let limit = zdtm::descriptors()?;
    let mut files = Vec::new();
    let path = zdtm::dir().join("file");
    std::fs::write(&path, [1])?;
    for position in 0..limit * 4 / 5 {
        let mut file = File::open(&path)?;
        file.seek(SeekFrom::Start(position.into()))?;
        files.push(file);
    }
    let last = File::open("/dev/null")?;
    let mut copies = Vec::new();
    for number in last.as_raw_fd() + 1..c_int::try_from(limit)? - FREE {
        copies.push(dup_to(&last, number)?);
    }
    zdtm::checkpoint()?;
    for (position, file) in (0..).zip(&mut files) {
        check_eq!(file.stream_position()?, position);
    }
    check_eq!(
        raw_fcntl(&copies[copies.len() - 1], libc::F_GETFL, 0)? & libc::O_ACCMODE,
        libc::O_RDONLY
    );
    Ok(())
}

/// Numbers far apart, up to the limit of this process if that is lower.
fn numbers(most: libc::rlim_t) -> Result<()> {
    let (limit, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    let limit = c_int::try_from(limit.min(most))?;
    let wanted: Vec<c_int> = (4..29)
        .map(|bit| 1 << bit)
        .filter(|number| *number < limit)
        .chain([limit - 1])
        .collect();
    let file = File::open("/dev/null")?;
    let fds = wanted
        .iter()
        .map(|number| dup_to(&file, *number))
        .collect::<Result<Vec<_>>>()?;
    drop(file);
    let open = || -> Result<Vec<c_int>> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir("/proc/self/fd")? {
            let entry = entry?;
            // Leaves out the descriptor that lists them.
            if std::fs::read_link(entry.path()).is_ok_and(|target| !target.starts_with("/proc")) {
                numbers.push(entry.file_name().to_string_lossy().parse()?);
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    };
    let before = open()?;
    check_eq!(before.len(), 3 + fds.len());
    zdtm::checkpoint()?;
    check_eq!(open()?, before);
    // The lowest free one is given out next.
    check_eq!(File::open("/dev/null")?.as_raw_fd(), 3);
    Ok(())
}

/// FD_CLOEXEC belongs to the descriptor, not to the open file.
fn cloexec() -> Result<()> {
    let first = File::open("/dev/null")?;
    let second = first.try_clone()?;
    fcntl(second.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
    zdtm::checkpoint()?;
    check_eq!(fcntl(first.as_fd(), FcntlArg::F_GETFD)?, libc::FD_CLOEXEC);
    check_eq!(fcntl(second.as_fd(), FcntlArg::F_GETFD)?, 0);
    Ok(())
}

const F_SETSIG: c_int = 10;
const F_GETSIG: c_int = 11;

static GOT: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(0);

extern "C" fn got(_: c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let word = size_of::<usize>();
    // Band and descriptor follow three ints; the band is a word, and aligned like one.
    let at = 12_usize.next_multiple_of(word) + word;
    // SAFETY: with F_SETSIG the kernel tells the descriptor right after the band.
    let fd = unsafe { info.byte_add(at).cast::<i32>().read() };
    GOT.store(fd, std::sync::atomic::Ordering::SeqCst);
}

/// The owner of a pipe gets the signal it chose when there is something to read.
fn owner() -> Result<()> {
    let signal = libc::SIGRTMIN() + 3;
    // SAFETY: the handler reads the info it is given and stores an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = got as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        ret(libc::sigaction(
            signal,
            &raw const action,
            std::ptr::null_mut(),
        ))?;
    }
    let (reader, writer) = nix::unistd::pipe()?;
    let pid = usize::try_from(std::process::id())?;
    raw_fcntl(&reader, libc::F_SETOWN, pid)?;
    raw_fcntl(&reader, F_SETSIG, usize::try_from(signal)?)?;
    raw_fcntl(
        &reader,
        libc::F_SETFL,
        usize::try_from(libc::O_ASYNC | libc::O_NONBLOCK)?,
    )?;
    // Another one, owned by our process group.
    let (other, _other_end) = nix::unistd::pipe()?;
    raw_fcntl(&other, libc::F_SETOWN, pid.wrapping_neg())?;
    zdtm::checkpoint()?;
    check_eq!(
        usize::try_from(raw_fcntl(&reader, libc::F_GETOWN, 0)?)?,
        pid
    );
    check_eq!(raw_fcntl(&reader, F_GETSIG, 0)?, signal);
    check_eq!(
        raw_fcntl(&other, libc::F_GETOWN, 0)?,
        -c_int::try_from(pid)?
    );
    nix::unistd::write(&writer, b"x")?;
    check_eq!(
        GOT.load(std::sync::atomic::Ordering::SeqCst),
        reader.as_raw_fd()
    );
    Ok(())
}

/// An owner that is one thread.
fn owner_thread() -> Result<()> {
    const F_SETOWN_EX: c_int = 15;
    const F_GETOWN_EX: c_int = 16;
    let (reader, _writer) = nix::unistd::pipe()?;
    let wanted = [0, nix::unistd::gettid().as_raw()]; // F_OWNER_TID
    raw_fcntl(&reader, F_SETOWN_EX, wanted.as_ptr().addr())?;
    zdtm::checkpoint()?;
    let mut found = [-1i32; 2];
    raw_fcntl(&reader, F_GETOWN_EX, found.as_mut_ptr().addr())?;
    check_eq!(found, wanted);
    Ok(())
}

/// Threads share one table: what one opens after the restore, the others have.
fn of_threads() -> Result<()> {
    let team = Team::start(3, |index, set_up| {
        set_up();
        zdtm::wait();
        if index == 1 {
            let file = File::open("/dev/null")?;
            dup_to(&file, 500).map(std::mem::forget)?;
        }
        Ok(())
    })?;
    zdtm::checkpoint()?;
    team.join()?;
    // SAFETY: takes no address.
    check!(unsafe { libc::fcntl(500, libc::F_GETFD) } >= 0);
    Ok(())
}

/// Not even the standard three are there.
fn closed() -> Result<()> {
    let child = Child::spawn("child", || {
        for fd in 0..3 {
            nix::unistd::close(fd)?;
        }
        Child::checkpoint();
        check!(
            std::fs::read_dir("/proc/self/fd")?.count() == 1,
            "something is open"
        );
        check_eq!(File::open("/dev/null")?.as_raw_fd(), 0);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()
}

/// A file of a child, fetched by pidfd_getfd(2), is the same open file.
fn passed() -> Result<()> {
    let path = zdtm::dir().join("file");
    std::fs::write(&path, "0123456789")?;
    let child = Child::spawn("child", move || {
        let file = File::open(path)?;
        let mut file = File::from(dup_to(&file, 77)?);
        Child::checkpoint();
        file.seek(SeekFrom::Start(6))?;
        Ok(())
    })?;
    let pid = usize::try_from(child.pid().as_raw())?;
    // SAFETY: the calls take numbers and give new descriptors.
    let mut file = unsafe {
        let pidfd = zdtm::syscall(libc::SYS_pidfd_open, [pid, 0, 0, 0, 0, 0])?;
        let pidfd = OwnedFd::from_raw_fd(c_int::try_from(pidfd)?);
        let number = usize::try_from(pidfd.as_raw_fd())?;
        let fd = zdtm::syscall(libc::SYS_pidfd_getfd, [number, 77, 0, 0, 0, 0])?;
        File::from_raw_fd(c_int::try_from(fd)?)
    };
    zdtm::checkpoint()?;
    child.finish()?;
    check_eq!(file.stream_position()?, 6);
    Ok(())
}
