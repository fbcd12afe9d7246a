//! Named pipes.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use zdtm::{Case, Child, Result, check, check_eq};

pub(crate) const CASES: &[Case] = &[
    Case::new("fifo", both_ends),
    Case::new("fifo-read-write", read_write),
    Case::new("fifo-reader-only", reader_only),
    Case::new("fifo-writer-only", writer_only),
    Case::new("fifo-unlinked", unlinked),
    Case::new("fifo-two-processes", two_processes),
];

fn fifo() -> Result<PathBuf> {
    let path = zdtm::dir().join("fifo");
    mkfifo(&path, Mode::from_bits_truncate(0o640))?;
    Ok(path)
}

/// Opens for reading without waiting for a writer.
fn reader(path: &PathBuf) -> Result<File> {
    Ok(OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?)
}

fn writer(path: &PathBuf) -> Result<File> {
    Ok(OpenOptions::new().write(true).open(path)?)
}

fn take(file: &mut File) -> Result<String> {
    let mut buffer = [0; 64];
    let length = file.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn both_ends() -> Result<()> {
    let path = fifo()?;
    let mut reader = reader(&path)?;
    let mut writer = writer(&path)?;
    writer.write_all(b"inside")?;
    zdtm::checkpoint()?;
    check_eq!(take(&mut reader)?, "inside");
    writer.write_all(b"later")?;
    check_eq!(take(&mut reader)?, "later");
    check!(take(&mut reader).is_err(), "empty, with a writer");
    drop(writer);
    check_eq!(take(&mut reader)?, "");
    Ok(())
}

fn read_write() -> Result<()> {
    let path = fifo()?;
    let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
    file.write_all(b"inside")?;
    zdtm::checkpoint()?;
    check_eq!(take(&mut file)?, "inside");
    // It is the one of that name.
    writer(&path)?.write_all(b"by name")?;
    check_eq!(take(&mut file)?, "by name");
    Ok(())
}

/// The writer has left data and gone.
fn reader_only() -> Result<()> {
    let path = fifo()?;
    let mut reader = reader(&path)?;
    writer(&path)?.write_all(b"left over")?;
    zdtm::checkpoint()?;
    check_eq!(take(&mut reader)?, "left over");
    check_eq!(take(&mut reader)?, "");
    Ok(())
}

fn writer_only() -> Result<()> {
    let path = fifo()?;
    let gone = reader(&path)?;
    let mut writer = writer(&path)?;
    drop(gone);
    // SAFETY: ignoring a signal is no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    zdtm::checkpoint()?;
    check_eq!(
        writer.write(b"x").map_err(|error| error.raw_os_error()),
        Err(Some(libc::EPIPE))
    );
    let mut reader = reader(&path)?;
    writer.write_all(b"now")?;
    check_eq!(take(&mut reader)?, "now");
    Ok(())
}

fn unlinked() -> Result<()> {
    let path = fifo()?;
    let mut reader = reader(&path)?;
    let mut writer = writer(&path)?;
    writer.write_all(b"inside")?;
    fs::remove_file(&path)?;
    zdtm::checkpoint()?;
    check_eq!(take(&mut reader)?, "inside");
    writer.write_all(b"later")?;
    check_eq!(take(&mut reader)?, "later");
    let meta = reader.metadata()?;
    check_eq!((meta.mode(), meta.nlink()), (libc::S_IFIFO | 0o640, 0));
    check_eq!(meta.ino(), writer.metadata()?.ino());
    check!(!path.exists());
    Ok(())
}

/// Parent writes, child reads.
fn two_processes() -> Result<()> {
    let path = fifo()?;
    let mut end = reader(&path)?;
    let mut writer = writer(&path)?;
    let child = Child::spawn("reader", {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&writer);
        move || {
            nix::unistd::close(fd)?;
            Child::checkpoint();
            check_eq!(take(&mut end)?, "before and after");
            Ok(())
        }
    })?;
    writer.write_all(b"before ")?;
    zdtm::checkpoint()?;
    writer.write_all(b"and after")?;
    child.finish()
}
