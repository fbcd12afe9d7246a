//! Sockets whose other end is outside of the tree: `--ext-unix-sk`, `--external unix[..]`, `--inherit-fd`.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::stat::fstat;
use zdtm::{Case, Result, check, check_eq};

use super::outsider::Outsider;

const DUMP: &[&str] = &["--config=../work/dump.conf"];
const RESTORE: &[&str] = &["--config=../work/restore.conf"];

pub(crate) const CASES: &[Case] = &[
    Case::new("unix-outside", dgram)
        .options(&["--ext-unix-sk"])
        .stays(OUTSIDE),
    Case::new("unix-outside-refused", stream).refused("half of a connection"),
    Case::new("unix-outside-connection", connection)
        .dump_options(DUMP)
        .restore_options(&["--ext-unix-sk"])
        .changes(&["fd/"])
        .stays(OUTSIDE),
    Case::new("unix-inherited", inherited)
        .dump_options(DUMP)
        .restore_options(RESTORE)
        .changes(&["fd/", "maps"]),
];

/// Why some stay where they are.
const OUTSIDE: &str = "whom it talks to is not dumped with it";

fn server() -> PathBuf {
    zdtm::dir().join("outside")
}

/// A log that takes datagrams, and counts them for whoever asks.
fn dgram() -> Result<()> {
    let _outsider = Outsider::start(|ready| {
        let log = UnixDatagram::bind(server()).expect("free");
        ready();
        let mut room = [0; 64];
        while let Ok(length) = log.recv(&mut room) {
            let file = zdtm::dir().join("heard");
            let mut text = std::fs::read(&file).unwrap_or_default();
            text.extend(&room[..length]);
            std::fs::write(zdtm::dir().join("heard.new"), text).ok();
            std::fs::rename(zdtm::dir().join("heard.new"), file).ok();
        }
    })?;
    let client = UnixDatagram::unbound()?;
    client.connect(server())?;
    client.send(b"before ")?;
    let heard = |text: &[u8]| {
        let file = zdtm::dir().join("heard");
        (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(2));
            std::fs::read(&file).is_ok_and(|found| found == text)
        })
    };
    check!(heard(b"before "));
    zdtm::checkpoint()?;
    client.send(b"after")?;
    check!(heard(b"before after"));
    Ok(())
}

/// A server that answers every byte with the next one.
fn answering() -> Result<Outsider> {
    Outsider::start(|ready| {
        let listener = UnixListener::bind(server()).expect("free");
        ready();
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut byte, mut client) = ([0; 1], client);
                while std::io::Read::read_exact(&mut client, &mut byte).is_ok() {
                    byte[0] = byte[0].wrapping_add(1);
                    std::io::Write::write_all(&mut client, &byte).ok();
                }
            });
        }
    })
}

fn asks(client: &UnixStream) -> Result<()> {
    let mut byte = [7];
    std::io::Write::write_all(&mut &*client, &byte)?;
    std::io::Read::read_exact(&mut &*client, &mut byte)?;
    check_eq!(byte, [8]);
    Ok(())
}

fn stream() -> Result<()> {
    let _outsider = answering()?;
    let client = UnixStream::connect(server())?;
    asks(&client)?;
    zdtm::checkpoint()?;
    asks(&client)
}

fn inode(socket: &impl AsRawFd) -> Result<u64> {
    // SAFETY: it is open.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    #[allow(clippy::useless_conversion, reason = "widths differ between machines")]
    Ok(fstat(fd)?.st_ino.into())
}

/// Connects again to who listens there.
fn connection() -> Result<()> {
    let _outsider = answering()?;
    let client = UnixStream::connect(server())?;
    asks(&client)?;
    let text = format!("external unix[{}]\n", inode(&client)?);
    std::fs::write(zdtm::dir().join("dump.conf"), text)?;
    zdtm::checkpoint()?;
    asks(&client)
}

/// Another descriptor takes its place: criu's standard input, which is no socket.
fn inherited() -> Result<()> {
    let (here, there) = UnixStream::pair()?;
    let there: OwnedFd = there.into();
    let inode = inode(&here)?;
    let mut there = Some(there);
    let outsider = Outsider::start(|ready| {
        let _kept = there.take();
        ready();
        loop {
            nix::unistd::pause();
        }
    })?;
    drop(there);
    std::fs::write(
        zdtm::dir().join("dump.conf"),
        format!("external unix[{inode}]\n"),
    )?;
    std::fs::write(
        zdtm::dir().join("restore.conf"),
        format!("inherit-fd fd[0]:socket:[{inode}]\n"),
    )?;
    here.set_nonblocking(true)?;
    zdtm::checkpoint()?;
    // What it was if nobody has restored it, or what it was given.
    let link = std::fs::read_link(format!("/proc/self/fd/{}", here.as_raw_fd()))?;
    let was = format!("socket:[{inode}]");
    check!(link.as_os_str() == "/dev/null" || link.as_os_str() == was.as_str());
    drop(outsider);
    Ok(())
}
