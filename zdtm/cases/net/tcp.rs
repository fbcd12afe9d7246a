//! TCP connections with somebody outside of the tree, or with ourselves.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::IntoRawFd;
use std::time::Duration;

use zdtm::{Case, Result, check, check_eq};

use super::outsider::Outsider;

/// What every case with a connection needs.
pub(crate) const KEEP: &[&str] = &["--tcp-established"];

pub(crate) const CASES: &[Case] = &[
    Case::new("tcp-client", client).options(KEEP),
    Case::new("tcp-server", server).options(KEEP),
    Case::new("tcp-ipv6", ipv6).options(KEEP),
    Case::new("tcp-mapped", mapped).options(KEEP),
    Case::new("tcp-ourselves", ourselves).options(KEEP),
    Case::new("tcp-many", many).options(KEEP),
    Case::new("tcp-refused", client).refused("connections without --tcp-established"),
    Case::new("tcp-close", close)
        .options(&["--tcp-close"])
        .changes(&["fd/"]),
    Case::new("tcp-remap", moved)
        .options(KEEP)
        .restore_options(&["--tcp-remap=127.0.0.1=127.0.0.2"]),
    Case::new("tcp-unlocked", client).options(&["--tcp-established", "--network-lock=skip"]),
];

/// Sends everything back, on every connection, until there is no more.
pub(crate) fn echo(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let mut stream = stream;
            let mut room = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut room) {
                if stream.write_all(&room[..length]).is_err() {
                    break;
                }
            }
        });
    }
}

/// Somebody who sends everything back, and where.
pub(crate) fn echoing(address: &str) -> Result<(Outsider, SocketAddr)> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    let outsider = Outsider::start(|ready| {
        ready();
        echo(&listener);
    })?;
    Ok((outsider, address))
}

/// Some rounds there and back.
pub(crate) fn talk(mut stream: &TcpStream, seed: u8) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    for round in 0..20u8 {
        let said = [seed ^ round; 700];
        let mut heard = [0; 700];
        stream.write_all(&said)?;
        stream.read_exact(&mut heard)?;
        check_eq!(heard, said);
    }
    Ok(())
}

/// How many bytes go in a segment (`tcpi_snd_mss`), up to what can be asked for: on the loopback it is twice as much.
fn segment(stream: &TcpStream) -> Result<u32> {
    let [.., a, b, c, d] = super::tcp_states::info(stream)?;
    Ok(u32::from_ne_bytes([a, b, c, d]).min(32_000))
}

fn client() -> Result<()> {
    talk_at("127.0.0.1:0")
}

fn ipv6() -> Result<()> {
    talk_at("[::1]:0")
}

fn talk_at(address: &str) -> Result<()> {
    let (_outsider, address) = match echoing(address) {
        Ok(there) => there,
        Err(_) if address.starts_with('[') => return zdtm::skip("no IPv6"),
        Err(error) => return Err(error),
    };
    let stream = TcpStream::connect(address)?;
    talk(&stream, 1)?;
    let ends = (stream.local_addr()?, stream.peer_addr()?);
    let segment = segment(&stream)?;
    zdtm::checkpoint()?;
    check!(self::segment(&stream)? >= segment, "smaller segments");
    check_eq!((stream.local_addr()?, stream.peer_addr()?), ends);
    talk(&stream, 2)
}

/// An address of IPv4 in a socket of IPv6.
fn mapped() -> Result<()> {
    let (_outsider, address) = echoing("127.0.0.1:0")?;
    let Ok(stream) = TcpStream::connect(format!("[::ffff:127.0.0.1]:{}", address.port())) else {
        return zdtm::skip("no IPv6");
    };
    talk(&stream, 1)?;
    let segment = segment(&stream)?;
    zdtm::checkpoint()?;
    check!(self::segment(&stream)? >= segment, "smaller segments");
    talk(&stream, 2)
}

/// Accepted from outside, beside the socket it was accepted at.
fn server() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let number = listener.into_raw_fd();
    let _outsider = Outsider::start(|ready| {
        nix::unistd::close(number).ok();
        let first = TcpStream::connect(address).expect("listening");
        ready();
        for mut stream in [Some(first), None]
            .into_iter()
            .map(|one| one.unwrap_or_else(|| TcpStream::connect(address).expect("listening again")))
        {
            let mut room = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut room) {
                if stream.write_all(&room[..length]).is_err() {
                    break;
                }
            }
        }
    })?;
    // SAFETY: the number was given up above, and is the listener's.
    let listener = unsafe { <TcpListener as std::os::fd::FromRawFd>::from_raw_fd(number) };
    let (stream, _) = listener.accept()?;
    talk(&stream, 1)?;
    let segment = segment(&stream)?;
    zdtm::checkpoint()?;
    check!(self::segment(&stream)? >= segment, "smaller segments");
    talk(&stream, 2)?;
    drop(stream);
    let (stream, _) = listener.accept()?;
    talk(&stream, 3)
}

/// Both ends, and the listener.
fn ourselves() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    both(&one, &other, b"before")?;
    zdtm::checkpoint()?;
    both(&one, &other, b"behind")?;
    let more = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    both(&more, &other, b"anew..")
}

/// All of it has another address: who listens, and both ends.
fn moved() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let one = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    both(&one, &other, b"before")?;
    zdtm::checkpoint()?;
    let now = listener.local_addr()?;
    // It was left running, or it was restored.
    zdtm::check!(["127.0.0.1", "127.0.0.2"].contains(&now.ip().to_string().as_str()));
    check_eq!(now.port(), port);
    check_eq!(one.local_addr()?.ip(), now.ip());
    check_eq!((one.peer_addr()?, other.local_addr()?), (now, now));
    both(&one, &other, b"behind")?;
    let more = TcpStream::connect(now)?;
    let (other, _) = listener.accept()?;
    both(&more, &other, b"anew..")
}

fn both(mut one: &TcpStream, mut other: &TcpStream, text: &[u8; 6]) -> Result<()> {
    let mut room = [0; 6];
    one.write_all(text)?;
    other.read_exact(&mut room)?;
    check_eq!(&room, text);
    other.write_all(text)?;
    one.read_exact(&mut room)?;
    check_eq!(&room, text);
    Ok(())
}

fn many() -> Result<()> {
    let (_outsider, address) = echoing("127.0.0.1:0")?;
    let streams = (0..40)
        .map(|_| TcpStream::connect(address))
        .collect::<std::io::Result<Vec<_>>>()?;
    for (seed, stream) in (0..).zip(&streams) {
        talk(stream, seed)?;
    }
    zdtm::checkpoint()?;
    for (seed, stream) in (0..).zip(&streams) {
        talk(stream, seed)?;
    }
    Ok(())
}

/// The connection ends, and the program is told in the usual way.
fn close() -> Result<()> {
    let (_outsider, address) = echoing("127.0.0.1:0")?;
    let mut stream = TcpStream::connect(address)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    talk(&stream, 1)?;
    zdtm::checkpoint()?;
    if stream.peer_addr().is_ok() {
        // It was left running.
        return talk(&stream, 2);
    }
    check_eq!(stream.read(&mut [0; 1])?, 0);
    let failed = stream.write(b"x").expect_err("nobody is there");
    check_eq!(failed.kind(), std::io::ErrorKind::BrokenPipe);
    let again = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    both(&again, &other, b"listen")
}
