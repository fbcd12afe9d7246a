//! What is under way in a connection: unread, not confirmed, never sent.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use zdtm::{Case, Result, check, check_eq};

use super::outsider::Outsider;
use super::tcp::KEEP;

pub(crate) const CASES: &[Case] = &[
    Case::new("tcp-unread", unread).options(KEEP),
    Case::new("tcp-unsent", unsent).options(KEEP),
    Case::new("tcp-both-full", both_full).options(KEEP),
    Case::new("tcp-ourselves-full", ourselves_full).options(KEEP),
    Case::new("tcp-bulk", bulk).options(KEEP),
    Case::new("tcp-corked", corked).options(KEEP),
];

const SEED: u64 = 0x7a3d;

/// A stream of bytes, each by its place.
fn byte(place: u64) -> u8 {
    let mixed = (place ^ SEED).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[0]
}

fn bytes(from: u64, count: usize) -> Vec<u8> {
    (from..).take(count).map(byte).collect()
}

/// Reads until the end, or so many; all must be right.
fn read_all(mut stream: &TcpStream, most: u64) -> Result<u64> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut place = 0;
    let mut room = [0; 16384];
    while place < most {
        let length = stream.read(&mut room)?;
        if length == 0 {
            break;
        }
        check_eq!(&room[..length], &bytes(place, length)[..], "at {place}");
        place += length as u64;
    }
    Ok(place)
}

/// Writes until nothing fits.
fn fill(mut stream: &TcpStream) -> Result<u64> {
    stream.set_nonblocking(true)?;
    let mut place = 0u64;
    loop {
        match stream.write(&bytes(place, 10_000)) {
            Ok(length) => place += length as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(place),
            Err(error) => return Err(error.into()),
        }
    }
}

/// What says that the other end may begin.
pub(super) fn go() -> std::path::PathBuf {
    zdtm::dir().join("go")
}

pub(super) fn wait_for_go() {
    while !go().exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Somebody who does this with a connection.
pub(super) fn with(work: impl FnOnce(TcpStream)) -> Result<(Outsider, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let outsider = Outsider::start(|ready| {
        ready();
        let (stream, _) = listener.accept().expect("a client");
        work(stream);
    })?;
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok((outsider, stream))
}

/// What the other end has found, in words of ours.
fn verdict(mut stream: &TcpStream, count: u64) -> Result<()> {
    let mut word = [0; 8];
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.read_exact(&mut word)?;
    check_eq!(u64::from_be_bytes(word), count);
    Ok(())
}

fn unread() -> Result<()> {
    const COUNT: usize = 50_000;
    let (_outsider, mut stream) = with(|mut stream| {
        stream.write_all(&bytes(0, COUNT)).ok();
        wait_for_go();
        stream.write_all(&bytes(COUNT as u64, COUNT)).ok();
    })?;
    // All of it is here.
    let mut room = vec![0; COUNT];
    while stream.peek(&mut room)? < COUNT {}
    let mut first = [0; 100];
    stream.read_exact(&mut first)?;
    check_eq!(&first[..], &bytes(0, 100)[..]);
    zdtm::checkpoint()?;
    let mut rest = vec![0; COUNT - 100];
    stream.read_exact(&mut rest)?;
    check_eq!(rest, bytes(100, COUNT - 100));
    std::fs::write(go(), "")?;
    let mut rest = vec![0; COUNT];
    stream.read_exact(&mut rest)?;
    check_eq!(rest, bytes(COUNT as u64, COUNT));
    Ok(())
}

fn unsent() -> Result<()> {
    let (_outsider, mut stream) = with(|mut stream| {
        wait_for_go();
        let count = read_all(&stream, u64::MAX).unwrap_or(0);
        stream.write_all(&count.to_be_bytes()).ok();
    })?;
    let count = fill(&stream)?;
    zdtm::checkpoint()?;
    std::fs::write(go(), "")?;
    stream.set_nonblocking(false)?;
    stream.write_all(&bytes(count, 100_000))?;
    stream.shutdown(std::net::Shutdown::Write)?;
    verdict(&stream, count + 100_000)
}

/// Neither reads; each has more to say than the other takes.
fn both_full() -> Result<()> {
    let (_outsider, stream) = with(|mut stream| {
        let said = fill(&stream).unwrap_or(0);
        std::fs::write(zdtm::dir().join("said"), said.to_string()).ok();
        wait_for_go();
        let count = read_all(&stream, u64::MAX).unwrap_or(0);
        stream.write_all(&count.to_be_bytes()).ok();
    })?;
    let count = fill(&stream)?;
    let said = loop {
        let said = std::fs::read_to_string(zdtm::dir().join("said")).unwrap_or_default();
        match said.parse() {
            Ok(said) => break said,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    zdtm::checkpoint()?;
    check_eq!(read_all(&stream, said)?, said);
    std::fs::write(go(), "")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    verdict(&stream, count)
}

fn ourselves_full() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    let (there, back) = (fill(&one)?, fill(&other)?);
    check!(there > 100_000 && back > 100_000);
    zdtm::checkpoint()?;
    check_eq!(read_all(&other, there)?, there);
    check_eq!(read_all(&one, back)?, back);
    Ok(())
}

/// It goes on sending all the time.
fn bulk() -> Result<()> {
    const COUNT: u64 = 20_000_000;
    let (_outsider, stream) = with(|mut stream| {
        let mut place = 0;
        while place < COUNT {
            let some = bytes(place, 50_000);
            if stream.write_all(&some).is_err() {
                break;
            }
            place += some.len() as u64;
        }
    })?;
    std::thread::sleep(Duration::from_millis(20));
    zdtm::checkpoint()?;
    check_eq!(read_all(&stream, COUNT)?, COUNT);
    Ok(())
}

/// Gathered, until it is told to go.
fn corked() -> Result<()> {
    use std::os::fd::AsRawFd;
    let (_outsider, mut stream) = with(|mut stream| {
        let mut room = [0; 300];
        if stream.read_exact(&mut room).is_ok() && room[..] == bytes(0, 300)[..] {
            stream.write_all(&300u64.to_be_bytes()).ok();
        }
    })?;
    let cork = |on: i32| {
        // SAFETY: the value is as long as said.
        let set = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::SOL_TCP,
                libc::TCP_CORK,
                (&raw const on).cast(),
                4,
            )
        };
        nix::errno::Errno::result(set)
    };
    cork(1)?;
    (&stream).write_all(&bytes(0, 100))?;
    zdtm::checkpoint()?;
    (&stream).write_all(&bytes(100, 200))?;
    cork(0)?;
    stream.flush()?;
    verdict(&stream, 300)
}
