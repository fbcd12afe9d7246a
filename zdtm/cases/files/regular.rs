//! Regular files: position, flags, sharing.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use zdtm::{Case, Child, Result, check, check_eq};

pub(crate) const CASES: &[Case] = &[
    Case::new("regular", regular),
    Case::new("regular-append", append),
    Case::new("regular-flags", flags),
    Case::new("shared-file", shared),
];

/// Half of it read and half of it written before, the other halves after.
fn regular() -> Result<()> {
    std::fs::write(zdtm::dir().join("input"), "0123456789")?;
    let mut input = File::open(zdtm::dir().join("input"))?;
    let mut output = File::create(zdtm::dir().join("output"))?;
    let mut half = [0; 5];
    input.read_exact(&mut half)?;
    output.write_all(&half)?;
    zdtm::checkpoint()?;
    check_eq!(input.stream_position()?, 5);
    input.read_exact(&mut half)?;
    output.write_all(&half)?;
    check_eq!(
        std::fs::read_to_string(zdtm::dir().join("output"))?,
        "0123456789"
    );
    check!(output.read(&mut half).is_err(), "opened for writing only");
    check!(input.write(b"x").is_err(), "opened for reading only");
    Ok(())
}

/// With O_APPEND writes go to the end, wherever the position is and whatever happened to the file meanwhile.
fn append() -> Result<()> {
    let path = zdtm::dir().join("log");
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .open(&path)?;
    file.write_all(b"before")?;
    file.seek(SeekFrom::Start(2))?;
    zdtm::checkpoint()?;
    check_eq!(file.stream_position()?, 2);
    file.write_all(b" after")?;
    check_eq!(std::fs::read_to_string(&path)?, "before after");
    Ok(())
}

/// Status flags of the open file and the flag of the descriptor.
fn flags() -> Result<()> {
    let wanted = [
        OFlag::O_RDWR | OFlag::O_NONBLOCK,
        OFlag::O_WRONLY | OFlag::O_SYNC,
        OFlag::O_RDWR | OFlag::O_DSYNC | OFlag::O_CLOEXEC,
        OFlag::O_RDONLY | OFlag::O_NOATIME,
        OFlag::O_RDWR | OFlag::O_DIRECT,
        OFlag::O_RDWR | OFlag::O_APPEND,
    ];
    let mut files = Vec::new();
    for (index, flags) in wanted.iter().enumerate() {
        let path = zdtm::dir().join(format!("file{index}"));
        std::fs::write(&path, "x")?;
        let access = *flags & OFlag::O_ACCMODE;
        let file = OpenOptions::new()
            .read(access != OFlag::O_WRONLY)
            .write(access != OFlag::O_RDONLY)
            .custom_flags(flags.bits())
            .open(path)?;
        // The standard library adds O_CLOEXEC to all.
        let cloexec = i32::from(flags.contains(OFlag::O_CLOEXEC));
        fcntl(
            file.as_fd(),
            FcntlArg::F_SETFD(nix::fcntl::FdFlag::from_bits_truncate(cloexec)),
        )?;
        files.push((fcntl(file.as_fd(), FcntlArg::F_GETFL)?, cloexec, file));
    }
    zdtm::checkpoint()?;
    for (status, cloexec, file) in &files {
        check_eq!(fcntl(file.as_fd(), FcntlArg::F_GETFL)?, *status);
        check_eq!(fcntl(file.as_fd(), FcntlArg::F_GETFD)?, *cloexec);
    }
    Ok(())
}

/// One open file in two descriptors and two processes has one position; the same path opened again has its own.
fn shared() -> Result<()> {
    let path = zdtm::dir().join("file");
    std::fs::write(&path, "0123456789")?;
    let mut first = File::open(&path)?;
    let mut twin = first.try_clone()?;
    let mut other = File::open(&path)?;
    let mut in_child = first.try_clone()?;
    let child = Child::spawn("child", move || {
        Child::checkpoint();
        in_child.seek(SeekFrom::Current(3))?;
        Ok(())
    })?;
    first.seek(SeekFrom::Start(1))?;
    zdtm::checkpoint()?;
    child.finish()?;
    check_eq!(first.stream_position()?, 4);
    twin.seek(SeekFrom::Start(8))?;
    check_eq!(first.stream_position()?, 8);
    check_eq!(other.stream_position()?, 0);
    Ok(())
}
