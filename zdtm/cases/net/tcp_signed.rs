//! Segments that are signed (TCP-MD5): whoever has lost the key is not heard any more.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getsockopt, socket, sockopt,
};
use zdtm::{Case, Result, check, check_eq};

use super::outsider::Outsider;
use super::tcp::{KEEP, echo, talk};
use super::tcp_queues::{go, wait_for_go};
use super::tcp_states::{answer_at_the_end, ask_and_shut, fill, reaches, state};

pub(crate) const CASES: &[Case] = &[
    Case::new("tcp-signed", signed).options(KEEP),
    Case::new("tcp-signed-ipv6", ipv6).options(KEEP),
    Case::new("tcp-signed-mapped", mapped).options(KEEP),
    Case::new("tcp-signed-listener", listener),
    Case::new("tcp-signed-ourselves", ourselves).options(KEEP),
    Case::new("tcp-signed-close-wait", close_wait).options(KEEP),
    Case::new("tcp-signed-fin-wait2", fin_wait2).options(KEEP),
    Case::new("tcp-signed-unsent", unsent).options(KEEP),
    Case::new("tcp-signed-remap", ourselves)
        .options(KEEP)
        .restore_options(&["--tcp-remap=127.0.0.1=127.0.0.2"]),
];

/// Signs what goes to these addresses, and hears nothing else from them.
fn sign(socket: &impl AsRawFd, address: &str, prefix: u8, key: &[u8]) -> io::Result<()> {
    const TCP_MD5SIG_EXT: libc::c_int = 32;
    // `struct tcp_md5sig`: address, flags, prefix, length of the key, interface, key.
    let mut wanted = [0u8; 216];
    match address.parse().expect("an address") {
        IpAddr::V4(address) => {
            wanted[..2].copy_from_slice(&2u16.to_ne_bytes());
            wanted[4..8].copy_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            wanted[..2].copy_from_slice(&10u16.to_ne_bytes());
            wanted[8..24].copy_from_slice(&address.octets());
        }
    }
    let length = u16::try_from(key.len()).expect("a short key");
    wanted[128..130].copy_from_slice(&[1, prefix]);
    wanted[130..132].copy_from_slice(&length.to_ne_bytes());
    wanted[136..][..key.len()].copy_from_slice(key);
    let number = socket.as_raw_fd();
    let (at, size) = (wanted.as_ptr().cast(), 216);
    // SAFETY: the structure is as long as is said.
    let done = unsafe { libc::setsockopt(number, libc::IPPROTO_TCP, TCP_MD5SIG_EXT, at, size) };
    zdtm::ret(done).map(drop)
}

/// Whether this kernel can.
fn is_able() -> Result<bool> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    match sign(&listener, "127.0.0.1", 32, b"zdtm") {
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}

macro_rules! need {
    () => {
        if !is_able()? {
            return zdtm::skip("no signatures (CONFIG_TCP_MD5SIG)");
        }
    };
}

/// A socket that asks for a connection, and signs if it has a key.
fn ask(address: SocketAddr, key: Option<&[u8]>) -> Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
    if let Some(key) = key {
        let ip = address.ip();
        let most = if ip.to_canonical().is_ipv4() { 32 } else { 128 };
        sign(&socket, &ip.to_string(), most, key)?;
    }
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether somebody answers within so many milliseconds.
fn is_answered(socket: &OwnedFd, patience: u16) -> Result<bool> {
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let count = poll(&mut fds, PollTimeout::from(patience))?;
    Ok(count == 1 && getsockopt(socket, sockopt::SocketError)? == 0)
}

fn dial(address: SocketAddr, key: &[u8]) -> Result<TcpStream> {
    let socket = ask(address, Some(key))?;
    check!(is_answered(&socket, 10_000)?, "nobody answers");
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn signing(address: &str, to: &str) -> Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    let most = if to.contains(':') { 128 } else { 32 };
    sign(&listener, to, most, b"a key")?;
    Ok(listener)
}

/// Somebody who has the key too sends everything back.
fn with_echo(listener: TcpListener, address: SocketAddr) -> Result<()> {
    let _outsider = Outsider::start(|ready| {
        ready();
        echo(&listener);
    })?;
    drop(listener);
    let stream = dial(address, b"a key")?;
    talk(&stream, 1)?;
    zdtm::checkpoint()?;
    talk(&stream, 2)
}

fn signed() -> Result<()> {
    need!();
    let listener = signing("127.0.0.1:0", "127.0.0.1")?;
    let address = listener.local_addr()?;
    with_echo(listener, address)
}

fn ipv6() -> Result<()> {
    need!();
    if TcpListener::bind("[::1]:0").is_err() {
        return zdtm::skip("no IPv6");
    }
    let listener = signing("[::1]:0", "::1")?;
    let address = listener.local_addr()?;
    with_echo(listener, address)
}

fn mapped() -> Result<()> {
    need!();
    if TcpListener::bind("[::1]:0").is_err() {
        return zdtm::skip("no IPv6");
    }
    let listener = signing("127.0.0.1:0", "127.0.0.1")?;
    let port = listener.local_addr()?.port();
    with_echo(listener, format!("[::ffff:127.0.0.1]:{port}").parse()?)
}

/// Who does not sign is not heard, neither before nor after; the narrower key counts, whatever the order.
fn listener() -> Result<()> {
    need!();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    sign(&listener, "127.0.0.0", 8, b"of all")?;
    sign(&listener, "127.0.0.1", 32, b"of one")?;
    let address = listener.local_addr()?;
    let heard = || -> Result<()> {
        check!(!is_answered(&ask(address, None)?, 300)?, "not signed");
        check!(
            !is_answered(&ask(address, Some(b"of all"))?, 300)?,
            "signed by somebody else"
        );
        let mut one = dial(address, b"of one")?;
        let (mut other, _) = listener.accept()?;
        one.write_all(b"hello")?;
        other.read_exact(&mut [0; 5])?;
        Ok(())
    };
    heard()?;
    zdtm::checkpoint()?;
    heard()
}

/// Both ends, and the listener.
fn ourselves() -> Result<()> {
    need!();
    let listener = signing("127.0.0.1:0", "127.0.0.1")?;
    let mut one = dial(listener.local_addr()?, b"a key")?;
    let (mut other, _) = listener.accept()?;
    one.write_all(b"unread")?;
    zdtm::checkpoint()?;
    other.write_all(b"answer")?;
    let mut text = [0; 6];
    for (stream, wanted) in [(&mut other, b"unread"), (&mut one, b"answer")] {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.read_exact(&mut text)?;
        check_eq!(&text, wanted);
    }
    Ok(())
}

/// Somebody who does this with a connection.
fn with(work: impl FnOnce(TcpStream)) -> Result<(Outsider, TcpStream)> {
    let listener = signing("127.0.0.1:0", "127.0.0.1")?;
    let address = listener.local_addr()?;
    let outsider = Outsider::start(|ready| {
        ready();
        work(listener.accept().expect("a client").0);
    })?;
    drop(listener);
    let stream = dial(address, b"a key")?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok((outsider, stream))
}

/// The other end says no more, and we do.
fn close_wait() -> Result<()> {
    need!();
    let (_outsider, mut stream) = with(|mut stream| {
        stream.write_all(b"unread").ok();
        stream.shutdown(Shutdown::Write).ok();
        let mut all = String::new();
        stream.read_to_string(&mut all).ok();
        std::fs::write(zdtm::dir().join("heard"), all).ok();
    })?;
    reaches(&stream, 8)?;
    zdtm::checkpoint()?;
    check_eq!(state(&stream)?, 8);
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    check_eq!(text, "unread");
    stream.write_all(b"said")?;
    drop(stream);
    for _ in 0..4000 {
        if std::fs::read_to_string(zdtm::dir().join("heard")).is_ok_and(|heard| heard == "said") {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    zdtm::bail!("the other end has not heard us")
}

/// The other end knows that we say no more, and goes on.
fn fin_wait2() -> Result<()> {
    need!();
    let (_outsider, stream) = with(answer_at_the_end)?;
    ask_and_shut(stream)
}

/// More than the other end takes: what was not sent is in segments that leave no room for a signature yet.
fn unsent() -> Result<()> {
    need!();
    let (_outsider, mut stream) = with(|mut stream| {
        wait_for_go();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).ok();
        let count = u64::try_from(all.len()).unwrap_or(0);
        stream.write_all(&count.to_ne_bytes()).ok();
    })?;
    let count = u64::try_from(fill(&stream)?)?;
    zdtm::checkpoint()?;
    std::fs::write(go(), "")?;
    stream.shutdown(Shutdown::Write)?;
    let mut heard = [0; 8];
    stream.read_exact(&mut heard)?;
    check_eq!(u64::from_ne_bytes(heard), count);
    Ok(())
}
