//! File locks of every sort: process, open-file, flock, and leases.

use std::fs::{self, File};
use std::os::fd::AsRawFd;

use libc::{c_int, c_short, flock};
use zdtm::{Case, Child, Result, check, check_eq, ret};

pub(crate) const CASES: &[Case] = &[
    Case::new("lock-posix", posix).options(&["--file-locks"]),
    Case::new("lock-ofd", ofd).options(&["--file-locks"]),
    Case::new("lock-flock", flocks).options(&["--file-locks"]),
    Case::new("lock-flock-inherited", flock_inherited).options(&["--file-locks"]),
    Case::new("lease", leases).options(&["--file-locks"]),
    Case::new("lease-breaking", breaking).options(&["--file-locks"]),
    Case::new("lock-not-asked", posix).refused("needs --file-locks"),
];

fn open(name: &str) -> Result<File> {
    let path = zdtm::dir().join(name);
    Ok(File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)?)
}

fn range(kind: c_int, start: i64, length: i64) -> Result<flock> {
    Ok(flock {
        l_type: c_short::try_from(kind)?,
        l_whence: c_short::try_from(libc::SEEK_SET)?,
        l_start: start.try_into()?,
        l_len: length.try_into()?,
        l_pid: 0,
    })
}

fn set(file: &File, command: c_int, lock: flock) -> Result<()> {
    // SAFETY: the lock lives through the call.
    ret(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const lock) })?;
    Ok(())
}

/// What stands in the way of a write lock there: kind, start, length, holder.
fn conflict(
    file: &File,
    command: c_int,
    start: i64,
    length: i64,
) -> Result<Option<(c_int, i64, i64, i32)>> {
    let mut lock = range(libc::F_WRLCK, start, length)?;
    // SAFETY: the lock lives through the call.
    ret(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) })?;
    let kind = c_int::from(lock.l_type);
    #[allow(clippy::useless_conversion, reason = "widths differ between machines")]
    let (start, length) = (i64::from(lock.l_start), i64::from(lock.l_len));
    Ok((kind != libc::F_UNLCK).then_some((kind, start, length, lock.l_pid)))
}

/// Locks of a child, seen by the parent; several ranges and both kinds.
fn posix() -> Result<()> {
    let file = open("file")?;
    let child = Child::spawn("holder", || {
        let file = open("file")?;
        set(&file, libc::F_SETLK, range(libc::F_WRLCK, 0, 10)?)?;
        set(&file, libc::F_SETLK, range(libc::F_RDLCK, 100, 50)?)?;
        set(&file, libc::F_SETLK, range(libc::F_WRLCK, 1000, 0)?)?;
        Child::checkpoint();
        Ok(())
    })?;
    let pid = child.pid().as_raw();
    let locks = || -> Result<Vec<_>> {
        [0, 20, 120, 5000]
            .into_iter()
            .map(|start| conflict(&file, libc::F_GETLK, start, 1))
            .collect()
    };
    let wanted = [
        Some((libc::F_WRLCK, 0, 10, pid)),
        None,
        Some((libc::F_RDLCK, 100, 50, pid)),
        Some((libc::F_WRLCK, 1000, 0, pid)),
    ];
    check_eq!(locks()?, wanted);
    zdtm::checkpoint()?;
    check_eq!(locks()?, wanted);
    child.finish()?;
    check_eq!(locks()?, [None; 4], "gone with their holder");
    Ok(())
}

/// Locks of an open file, which outlive the process that took them.
fn ofd() -> Result<()> {
    let (holder, other) = (open("file")?, open("file")?);
    set(&holder, libc::F_OFD_SETLK, range(libc::F_WRLCK, 5, 5)?)?;
    set(&holder, libc::F_OFD_SETLK, range(libc::F_RDLCK, 50, 5)?)?;
    zdtm::checkpoint()?;
    let found = conflict(&other, libc::F_OFD_GETLK, 0, 20)?;
    check_eq!(found, Some((libc::F_WRLCK, 5, 5, -1)));
    check_eq!(
        conflict(&other, libc::F_OFD_GETLK, 52, 1)?,
        Some((libc::F_RDLCK, 50, 5, -1))
    );
    // Its own locks are not in its way.
    set(&holder, libc::F_OFD_SETLK, range(libc::F_WRLCK, 0, 20)?)?;
    drop(holder);
    check_eq!(conflict(&other, libc::F_OFD_GETLK, 0, 100)?, None);
    Ok(())
}

fn try_flock(file: &File, operation: c_int) -> bool {
    // SAFETY: takes no address.
    unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) == 0 }
}

fn flocks() -> Result<()> {
    let (exclusive, shared, free) = (open("exclusive")?, open("shared")?, open("free")?);
    check!(try_flock(&exclusive, libc::LOCK_EX) && try_flock(&shared, libc::LOCK_SH));
    zdtm::checkpoint()?;
    let again = (open("exclusive")?, open("shared")?, open("free")?);
    check!(!try_flock(&again.0, libc::LOCK_SH));
    check!(!try_flock(&again.1, libc::LOCK_EX));
    check!(try_flock(&again.1, libc::LOCK_SH));
    check!(try_flock(&again.2, libc::LOCK_EX));
    drop((exclusive, free));
    check!(try_flock(&again.0, libc::LOCK_EX));
    Ok(())
}

/// The lock belongs to the open file: either process can give it up for both.
fn flock_inherited() -> Result<()> {
    let file = open("file")?;
    check!(try_flock(&file, libc::LOCK_EX));
    let copy = file.try_clone()?;
    let child = Child::spawn("child", move || {
        Child::checkpoint();
        check!(try_flock(&copy, libc::LOCK_UN));
        Ok(())
    })?;
    zdtm::checkpoint()?;
    let other = open("file")?;
    check!(!try_flock(&other, libc::LOCK_EX));
    child.finish()?;
    check!(try_flock(&other, libc::LOCK_EX));
    Ok(())
}

/// Who holds a lease is told when somebody else opens the file.
fn leases() -> Result<()> {
    fs::write(zdtm::dir().join("read"), "")?;
    let read = File::open(zdtm::dir().join("read"))?;
    let write = open("write")?;
    let fcntl = |file: &File, command, argument: c_int| {
        // SAFETY: takes no address.
        ret(unsafe { libc::fcntl(file.as_raw_fd(), command, argument) })
    };
    fcntl(&read, libc::F_SETLEASE, libc::F_RDLCK)?;
    fcntl(&write, libc::F_SETLEASE, libc::F_WRLCK)?;
    zdtm::checkpoint()?;
    check_eq!(fcntl(&read, libc::F_GETLEASE, 0)?, libc::F_RDLCK);
    check_eq!(fcntl(&write, libc::F_GETLEASE, 0)?, libc::F_WRLCK);
    fcntl(&write, libc::F_SETLEASE, libc::F_UNLCK)?;
    Ok(())
}

/// A lease that its holder is to give up: for a reader, for a writer, and one for reading.
fn breaking() -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut pending = nix::sys::signal::SigSet::empty();
    pending.add(nix::sys::signal::Signal::SIGIO);
    pending.thread_block()?;
    let lease = |file: &File, command, argument: c_int| {
        // SAFETY: takes no address.
        ret(unsafe { libc::fcntl(file.as_raw_fd(), command, argument) })
    };
    let breaks = |name: &str, write: bool| {
        let mut options = File::options();
        options
            .read(!write)
            .write(write)
            .custom_flags(libc::O_NONBLOCK);
        let opened = options.open(zdtm::dir().join(name));
        opened.err().and_then(|error| error.raw_os_error()) == Some(libc::EWOULDBLOCK)
    };
    let cases = [
        ("one", true, false),
        ("two", true, true),
        ("three", false, true),
    ];
    let mut files = Vec::new();
    for (name, written, by_writer) in cases {
        fs::write(zdtm::dir().join(name), "")?;
        let file = File::options()
            .read(true)
            .write(written)
            .open(zdtm::dir().join(name))?;
        lease(
            &file,
            libc::F_SETLEASE,
            if written {
                libc::F_WRLCK
            } else {
                libc::F_RDLCK
            },
        )?;
        check!(breaks(name, by_writer));
        pending.wait()?;
        files.push((
            file,
            name,
            if by_writer {
                libc::F_UNLCK
            } else {
                libc::F_RDLCK
            },
            by_writer,
        ));
    }
    zdtm::checkpoint()?;
    let waiting = zdtm::status_field("self", "SigPnd")?;
    check_eq!(u64::from_str_radix(&waiting, 16)?, 0, "he was told before");
    let waiting = zdtm::status_field("self", "ShdPnd")?;
    check_eq!(u64::from_str_radix(&waiting, 16)?, 0, "he was told before");
    for (file, name, left, by_writer) in &files {
        check_eq!(lease(file, libc::F_GETLEASE, 0)?, *left, "{name}");
        check!(breaks(name, *by_writer), "{name}");
        lease(file, libc::F_SETLEASE, libc::F_UNLCK)?;
        check!(!breaks(name, *by_writer), "{name}");
    }
    Ok(())
}
