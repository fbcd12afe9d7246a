//! Options of internet sockets: those of TCP, of IP, and of sockets as such.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use zdtm::{Case, Result, check, check_eq};

use super::tcp::{KEEP, echoing, talk};

pub(crate) const CASES: &[Case] = &[
    Case::new("tcp-options", options).options(KEEP),
    Case::new("tcp-more-options", more).options(KEEP),
    Case::new("tcp-listen-options", listening),
    Case::new("tcp-congestion", congestion).options(KEEP),
    Case::new("tcp-reuseaddr", reuseaddr).options(KEEP),
    Case::new("tcp-buffers", buffers).options(KEEP),
];

/// An option that is an int.
pub(crate) fn get(socket: &impl AsRawFd, level: i32, name: i32) -> Result<i32, Errno> {
    let mut value = 0i32;
    let mut length = 4 as libc::socklen_t;
    // SAFETY: both point to what the kernel may write.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    Errno::result(got).map(|_| value)
}

pub(crate) fn set(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> Result<(), Errno> {
    // SAFETY: the value is as long as said.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            4,
        )
    };
    Errno::result(set).map(drop)
}

/// Sets what can be set, and gives what is there then.
pub(crate) fn set_all(
    socket: &impl AsRawFd,
    wanted: &[(i32, i32, i32)],
) -> Vec<(i32, i32, Result<i32, Errno>)> {
    for (level, name, value) in wanted {
        set(socket, *level, *name, *value).ok();
    }
    found(socket, wanted)
}

pub(crate) fn found(
    socket: &impl AsRawFd,
    wanted: &[(i32, i32, i32)],
) -> Vec<(i32, i32, Result<i32, Errno>)> {
    wanted
        .iter()
        .map(|(level, name, _)| (*level, *name, get(socket, *level, *name)))
        .collect()
}

const TCP: i32 = libc::SOL_TCP;
const IP: i32 = libc::SOL_IP;
const SOCKET: i32 = libc::SOL_SOCKET;

/// What CRIU keeps, too.
fn options() -> Result<()> {
    let (_outsider, address) = echoing("127.0.0.1:0")?;
    let (one, other) = (TcpStream::connect(address)?, TcpStream::connect(address)?);
    let wanted = [
        (TCP, libc::TCP_NODELAY, 1),
        (TCP, libc::TCP_KEEPCNT, 5),
        (TCP, libc::TCP_KEEPIDLE, 77),
        (TCP, libc::TCP_KEEPINTVL, 33),
        (SOCKET, libc::SO_KEEPALIVE, 1),
        (SOCKET, libc::SO_OOBINLINE, 1),
        (SOCKET, libc::SO_PRIORITY, 4),
        (IP, libc::IP_TOS, 16),
        (IP, libc::IP_TTL, 61),
    ];
    let before = (set_all(&one, &wanted), found(&other, &wanted));
    check_eq!(before.0[0].2, Ok(1));
    zdtm::checkpoint()?;
    check_eq!((found(&one, &wanted), found(&other, &wanted)), before);
    talk(&one, 1)?;
    talk(&other, 2)
}

/// What it loses.
fn more() -> Result<()> {
    let (_outsider, address) = echoing("127.0.0.1:0")?;
    let (one, other) = (TcpStream::connect(address)?, TcpStream::connect(address)?);
    let wanted = [
        (TCP, libc::TCP_USER_TIMEOUT, 12_345),
        (TCP, libc::TCP_SYNCNT, 3),
        (TCP, libc::TCP_LINGER2, 17),
        (TCP, libc::TCP_NOTSENT_LOWAT, 65_536),
        (TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, 1),
        (TCP, libc::TCP_INQ, 1),
        (TCP, 44, 50_000),  // TCP_RTO_MAX_MS
        (TCP, 45, 100_000), // TCP_RTO_MIN_US
        (TCP, 46, 50_000),  // TCP_DELACK_MAX_US
        (IP, libc::IP_MTU_DISCOVER, 3),
        (IP, libc::IP_RECVTOS, 1),
        (IP, libc::IP_MINTTL, 9),
        (SOCKET, libc::SO_ZEROCOPY, 1),
        (SOCKET, libc::SO_TIMESTAMPING, 24),
        (SOCKET, libc::SO_BUSY_POLL, 50),
        (SOCKET, libc::SO_MAX_PACING_RATE, 1_000_000),
    ];
    let before = (set_all(&one, &wanted), found(&other, &wanted));
    check!(before.0 != before.1);
    zdtm::checkpoint()?;
    check_eq!((found(&one, &wanted), found(&other, &wanted)), before);
    talk(&one, 1)
}

fn listening() -> Result<()> {
    let one = TcpListener::bind("127.0.0.1:0")?;
    let wanted = [
        (TCP, libc::TCP_MAXSEG, 700),
        (TCP, libc::TCP_WINDOW_CLAMP, 50_000),
        (TCP, 44, 50_000), // TCP_RTO_MAX_MS
        (TCP, libc::TCP_DEFER_ACCEPT, 5),
        (TCP, libc::TCP_FASTOPEN, 9),
        (TCP, libc::TCP_NODELAY, 1),
        (IP, libc::IP_FREEBIND, 1),
        (IP, libc::IP_TRANSPARENT, 1),
        (SOCKET, libc::SO_RCVLOWAT, 5),
    ];
    let before = set_all(&one, &wanted);
    let key = [0x5a_u8; 32];
    set_bytes(&one, TCP_FASTOPEN_KEY, &key)?;
    zdtm::checkpoint()?;
    check_eq!(found(&one, &wanted), before);
    check_eq!(get_bytes::<32>(&one, TCP_FASTOPEN_KEY)?, key);
    // Those who are accepted have it from the listener.
    let _stream = TcpStream::connect(one.local_addr()?)?;
    check!(get(&one.accept()?.0, TCP, libc::TCP_MAXSEG)? <= 700);
    Ok(())
}

const TCP_FASTOPEN_KEY: i32 = 33;

fn set_bytes(socket: &impl AsRawFd, name: i32, bytes: &[u8]) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(bytes.len()).expect("short");
    // SAFETY: the value is as long as said.
    let set =
        unsafe { libc::setsockopt(socket.as_raw_fd(), TCP, name, bytes.as_ptr().cast(), length) };
    Errno::result(set).map(drop)
}

fn get_bytes<const LENGTH: usize>(socket: &impl AsRawFd, name: i32) -> Result<[u8; LENGTH], Errno> {
    let mut bytes = [0; LENGTH];
    let mut length = libc::socklen_t::try_from(LENGTH).expect("short");
    // SAFETY: both point to what the kernel may write.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            TCP,
            name,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(got).map(|_| bytes)
}

fn congestion() -> Result<()> {
    use nix::sys::socket::{getsockopt, setsockopt, sockopt::TcpCongestion};
    let (_outsider, address) = echoing("127.0.0.1:0")?;
    let stream = TcpStream::connect(address)?;
    if setsockopt(&stream, TcpCongestion, &std::ffi::OsString::from("reno")).is_err() {
        return zdtm::skip("there is one way only");
    }
    talk(&stream, 1)?;
    let before = getsockopt(&stream, TcpCongestion)?;
    zdtm::checkpoint()?;
    check_eq!(getsockopt(&stream, TcpCongestion)?, before);
    talk(&stream, 2)
}

/// The kernel forgets it on the way through repair mode.
fn reuseaddr() -> Result<()> {
    let (_outsider, address) = echoing("127.0.0.1:0")?;
    let (one, other) = (TcpStream::connect(address)?, TcpStream::connect(address)?);
    set(&one, SOCKET, libc::SO_REUSEADDR, 1)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    zdtm::checkpoint()?;
    check_eq!(get(&one, SOCKET, libc::SO_REUSEADDR)?, 1);
    check_eq!(get(&other, SOCKET, libc::SO_REUSEADDR)?, 0);
    check_eq!(get(&listener, SOCKET, libc::SO_REUSEADDR)?, 1);
    talk(&one, 1)
}

fn buffers() -> Result<()> {
    let (_outsider, address) = echoing("127.0.0.1:0")?;
    let (one, other) = (TcpStream::connect(address)?, TcpStream::connect(address)?);
    set(&one, SOCKET, libc::SO_SNDBUF, 30_000)?;
    set(&one, SOCKET, libc::SO_RCVBUF, 40_000)?;
    let look = |stream: &TcpStream| {
        // `SO_BUF_LOCK`.
        let names = [libc::SO_SNDBUF, libc::SO_RCVBUF, 72];
        names.map(|name| get(stream, SOCKET, name))
    };
    let before = (look(&one), look(&other));
    zdtm::checkpoint()?;
    check_eq!((look(&one), look(&other)), before);
    talk(&one, 1)?;
    talk(&other, 2)
}
