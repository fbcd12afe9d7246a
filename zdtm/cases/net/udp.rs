//! UDP and UDP-Lite: bound, connected, shut, with datagrams that wait.

use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};
use zdtm::{Case, Result, check, check_eq};

use super::tcp_options::{found, get, set, set_all};

pub(crate) const CASES: &[Case] = &[
    Case::new("udp-bound", bound),
    Case::new("udp-ipv6", v6),
    Case::new("udp-connected", connected),
    Case::new("udp-waiting", waiting),
    Case::new("udp-waiting-ipv6", waiting6),
    Case::new("udp-waiting-connected", waiting_connected),
    Case::new("udp-shut", shut),
    Case::new("udp-options", options),
    Case::new("udp-shared-port", shared),
    Case::new("udp-groups", groups),
    Case::new("udp-corked", corked).refused("a datagram that is being gathered"),
    Case::new("udp-more", more).refused("a datagram that is being gathered"),
    Case::new("udp-cork", cork),
    Case::new("udplite", lite),
];

fn hear(socket: &UdpSocket) -> Result<(Vec<u8>, std::net::SocketAddr)> {
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut room = vec![0; 65_536];
    let (length, from) = socket.recv_from(&mut room)?;
    room.truncate(length);
    Ok((room, from))
}

fn exchange(one: &UdpSocket, other: &UdpSocket, text: &[u8]) -> Result<()> {
    one.send_to(text, other.local_addr()?)?;
    check_eq!(hear(other)?, (text.to_vec(), one.local_addr()?));
    Ok(())
}

fn bound() -> Result<()> {
    let (one, other) = (
        UdpSocket::bind("127.0.0.1:0")?,
        UdpSocket::bind("127.0.0.1:0")?,
    );
    let fresh = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let before = (one.local_addr()?, other.local_addr()?);
    exchange(&one, &other, b"before")?;
    zdtm::checkpoint()?;
    check_eq!((one.local_addr()?, other.local_addr()?), before);
    exchange(&one, &other, b"behind")?;
    check!(UdpSocket::bind(before.0).is_err());
    check_eq!(UdpSocket::from(fresh).local_addr()?.port(), 0);
    Ok(())
}

fn v6() -> Result<()> {
    let Ok(one) = UdpSocket::bind("[::1]:0") else {
        return zdtm::skip("no IPv6");
    };
    let other = UdpSocket::bind("[::1]:0")?;
    let any = UdpSocket::bind("[::]:0")?;
    let before = any.local_addr()?;
    zdtm::checkpoint()?;
    exchange(&one, &other, b"behind")?;
    check_eq!(any.local_addr()?, before);
    Ok(())
}

fn connected() -> Result<()> {
    let (one, other) = (
        UdpSocket::bind("127.0.0.1:0")?,
        UdpSocket::bind("127.0.0.1:0")?,
    );
    one.connect(other.local_addr()?)?;
    zdtm::checkpoint()?;
    check_eq!(one.peer_addr()?, other.local_addr()?);
    one.send(b"to whom it concerns")?;
    check_eq!(hear(&other)?.0, b"to whom it concerns");
    // From others it takes nothing.
    let third = UdpSocket::bind("127.0.0.1:0")?;
    third.send_to(b"no", one.local_addr()?)?;
    other.send_to(b"yes", one.local_addr()?)?;
    check_eq!(hear(&one)?.0, b"yes");
    Ok(())
}

/// From several, of every size.
fn queue(address: &str) -> Result<()> {
    let Ok(one) = UdpSocket::bind(address) else {
        return zdtm::skip("no such address");
    };
    let senders = [UdpSocket::bind(address)?, UdpSocket::bind(address)?];
    let gone = UdpSocket::bind(address)?;
    let mut wanted = Vec::new();
    for (size, sender) in [0, 1, 1400, 30_000].into_iter().zip(senders.iter().cycle()) {
        let data = vec![0x5a; size];
        sender.send_to(&data, one.local_addr()?)?;
        wanted.push((data, sender.local_addr()?));
    }
    gone.send_to(b"farewell", one.local_addr()?)?;
    wanted.push((b"farewell".to_vec(), gone.local_addr()?));
    drop(gone);
    zdtm::checkpoint()?;
    for one_wanted in wanted {
        check_eq!(hear(&one)?, one_wanted);
    }
    one.set_nonblocking(true)?;
    check!(one.recv(&mut [0; 1]).is_err());
    Ok(())
}

fn waiting() -> Result<()> {
    queue("127.0.0.1:0")
}

fn waiting6() -> Result<()> {
    queue("[::1]:0")
}

fn waiting_connected() -> Result<()> {
    let (one, other) = (
        UdpSocket::bind("127.0.0.1:0")?,
        UdpSocket::bind("127.0.0.1:0")?,
    );
    one.connect(other.local_addr()?)?;
    other.connect(one.local_addr()?)?;
    for text in [&b"first"[..], b"second"] {
        one.send(text)?;
    }
    zdtm::checkpoint()?;
    for text in [&b"first"[..], b"second"] {
        check_eq!(hear(&other)?.0, text);
    }
    one.send(b"third")?;
    check_eq!(hear(&other)?.0, b"third");
    Ok(())
}

fn shut() -> Result<()> {
    use nix::sys::socket::{Shutdown, shutdown};
    let sockets = [Shutdown::Read, Shutdown::Write, Shutdown::Both].map(|how| {
        let (one, other) = (
            UdpSocket::bind("127.0.0.1:0")?,
            UdpSocket::bind("127.0.0.1:0")?,
        );
        one.connect(other.local_addr()?)?;
        shutdown(one.as_raw_fd(), how)?;
        one.set_nonblocking(true)?;
        Ok::<_, std::io::Error>((one, other))
    });
    let look = || {
        let mut all = Vec::new();
        for pair in &sockets {
            let Ok((one, _other)) = pair else { continue };
            let heard = one.recv(&mut [0; 1]).map_err(|error| error.kind());
            let said = one.send(b"x").map_err(|error| error.kind());
            all.push((heard, said));
        }
        all
    };
    let before = look();
    check_eq!(before.len(), 3);
    zdtm::checkpoint()?;
    check_eq!(look(), before);
    Ok(())
}

fn options() -> Result<()> {
    const IP: i32 = libc::SOL_IP;
    let (one, other) = (
        UdpSocket::bind("127.0.0.1:0")?,
        UdpSocket::bind("127.0.0.1:0")?,
    );
    let wanted = [
        (libc::SOL_SOCKET, libc::SO_BROADCAST, 1),
        (libc::SOL_SOCKET, libc::SO_TIMESTAMP, 1),
        (libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1),
        (libc::SOL_SOCKET, libc::SO_NO_CHECK, 1),
        (IP, libc::IP_PKTINFO, 1),
        (IP, libc::IP_RECVERR, 1),
        (IP, libc::IP_RECVTTL, 1),
        (IP, libc::IP_MULTICAST_TTL, 7),
        (IP, libc::IP_MULTICAST_LOOP, 0),
        (IP, libc::IP_MULTICAST_ALL, 0),
        (17, libc::UDP_SEGMENT, 500),
        (17, libc::UDP_GRO, 1),
    ];
    let before = (set_all(&one, &wanted), found(&other, &wanted));
    check!(before.0 != before.1);
    zdtm::checkpoint()?;
    check_eq!((found(&one, &wanted), found(&other, &wanted)), before);
    Ok(())
}

fn shared() -> Result<()> {
    let another = |port| {
        let one = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        setsockopt(&one, sockopt::ReusePort, &true)?;
        bind(one.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port))?;
        Ok::<_, nix::errno::Errno>(UdpSocket::from(one))
    };
    let one = another(0)?;
    let port = one.local_addr()?.port();
    let two = another(port)?;
    zdtm::checkpoint()?;
    let three = another(port)?;
    for socket in [&one, &two, &three] {
        check_eq!(socket.local_addr()?.port(), port);
    }
    check!(UdpSocket::bind(("127.0.0.1", port)).is_err());
    Ok(())
}

/// Two groups, one of them with one source.
fn groups() -> Result<()> {
    let one = UdpSocket::bind("0.0.0.0:0")?;
    let (here, first, second): (std::net::Ipv4Addr, _, _) = (
        "127.0.0.1".parse()?,
        "239.17.34.1".parse()?,
        [239, 17, 34, 2],
    );
    one.join_multicast_v4(&first, &here)?;
    // `IP_ADD_SOURCE_MEMBERSHIP`: group, device, source.
    let request = [second, here.octets(), here.octets()].concat();
    // SAFETY: the request is as long as said.
    let joined = unsafe {
        libc::setsockopt(
            one.as_raw_fd(),
            libc::SOL_IP,
            39,
            request.as_ptr().cast(),
            12,
        )
    };
    nix::errno::Errno::result(joined)?;
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    set(
        &sender,
        libc::SOL_IP,
        libc::IP_MULTICAST_IF,
        i32::from_ne_bytes(here.octets()),
    )?;
    let port = one.local_addr()?.port();
    zdtm::checkpoint()?;
    for group in [first, second.into()] {
        sender.send_to(&group.octets(), (group, port))?;
        check_eq!(hear(&one)?.0, group.octets());
    }
    one.leave_multicast_v4(&first, &here)?;
    check!(one.leave_multicast_v4(&first, &here).is_err());
    Ok(())
}

fn corked() -> Result<()> {
    let (one, other) = (
        UdpSocket::bind("127.0.0.1:0")?,
        UdpSocket::bind("127.0.0.1:0")?,
    );
    one.connect(other.local_addr()?)?;
    set(&one, 17, 1, 1)?;
    one.send(b"half ")?;
    zdtm::checkpoint()?;
    one.send(b"and half")?;
    set(&one, 17, 1, 0)?;
    check_eq!(hear(&other)?.0, b"half and half");
    Ok(())
}

/// As above, but it is said with what is sent.
fn more() -> Result<()> {
    let (one, other) = (
        UdpSocket::bind("127.0.0.1:0")?,
        UdpSocket::bind("127.0.0.1:0")?,
    );
    one.connect(other.local_addr()?)?;
    // nix has no name for it.
    let more = MsgFlags::from_bits_retain(libc::MSG_MORE);
    let sent = nix::sys::socket::send(one.as_raw_fd(), b"half ", more)?;
    check_eq!(sent, 5);
    zdtm::checkpoint()?;
    one.send(b"and half")?;
    check_eq!(hear(&other)?.0, b"half and half");
    Ok(())
}

/// What comes will be gathered; nothing has come.
fn cork() -> Result<()> {
    let (one, other) = (
        UdpSocket::bind("127.0.0.1:0")?,
        UdpSocket::bind("127.0.0.1:0")?,
    );
    one.connect(other.local_addr()?)?;
    other.send_to(b"waits", one.local_addr()?)?;
    set(&one, 17, 1, 1)?;
    zdtm::checkpoint()?;
    check_eq!(get(&one, 17, 1), Ok(1));
    check_eq!(hear(&one)?.0, b"waits");
    one.send(b"half ")?;
    one.send(b"and half")?;
    set(&one, 17, 1, 0)?;
    check_eq!(hear(&other)?.0, b"half and half");
    Ok(())
}

fn lite() -> Result<()> {
    let made = || -> Result<OwnedFd, nix::errno::Errno> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        // SAFETY: numbers; what it gives is ours alone.
        let one = unsafe {
            let number = libc::socket(libc::AF_INET, kind, libc::IPPROTO_UDPLITE);
            OwnedFd::from_raw_fd(nix::errno::Errno::result(number)?)
        };
        bind(one.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
        Ok(one)
    };
    let (Ok(one), Ok(other)) = (made(), made()) else {
        return zdtm::skip("no UDP-Lite");
    };
    set(&one, 136, 10, 20)?;
    let (one, other) = (UdpSocket::from(one), UdpSocket::from(other));
    zdtm::checkpoint()?;
    check_eq!(super::tcp_options::get(&one, 136, 10)?, 20);
    exchange(&one, &other, b"a light one")
}
