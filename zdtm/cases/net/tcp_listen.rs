//! TCP sockets without a connection: new, bound, listening.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, getsockopt, listen,
    setsockopt, socket, sockopt,
};
use zdtm::{Case, Result, check, check_eq};

use super::tcp_states::state;

pub(crate) const CASES: &[Case] = &[
    Case::new("tcp-new", new),
    Case::new("tcp-bound", bound),
    Case::new("tcp-listen", listening),
    Case::new("tcp-listen-ipv6", v6),
    Case::new("tcp-listen-both", v6only),
    Case::new("tcp-reuseport", reuseport),
];

fn stream(family: AddressFamily) -> Result<OwnedFd> {
    Ok(socket(
        family,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

fn new() -> Result<()> {
    let one = stream(AddressFamily::Inet)?;
    zdtm::checkpoint()?;
    check_eq!(state(&one)?, 7);
    bind(one.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
    listen(&one, Backlog::new(3)?)?;
    TcpStream::connect(TcpListener::from(one).local_addr()?)?;
    Ok(())
}

fn bound() -> Result<()> {
    let one = stream(AddressFamily::Inet)?;
    bind(one.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
    let listener = TcpListener::from(one);
    let address = listener.local_addr()?;
    zdtm::checkpoint()?;
    check_eq!(listener.local_addr()?, address);
    check!(TcpStream::connect(address).is_err());
    listen(&listener, Backlog::new(3)?)?;
    TcpStream::connect(address)?;
    Ok(())
}

fn backlog(listener: &TcpListener) -> Result<String> {
    let port = listener.local_addr()?.port();
    // `ss` would say it; the kernel says it in tcp_info, as what waits and what may wait.
    let mut info = [0u8; 64];
    let mut length = 64 as libc::socklen_t;
    // SAFETY: both point to what the kernel may write.
    let got = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::SOL_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    nix::errno::Errno::result(got)?;
    Ok(format!("{port} {:?} {:?}", &info[24..28], &info[28..32]))
}

fn listening() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listen(&listener, Backlog::new(7)?)?;
    let before = (listener.local_addr()?, backlog(&listener)?);
    zdtm::checkpoint()?;
    check_eq!((listener.local_addr()?, backlog(&listener)?), before);
    check!(TcpListener::bind(before.0).is_err());
    talk(&listener, before.0)
}

fn talk(listener: &TcpListener, address: SocketAddr) -> Result<()> {
    let client = TcpStream::connect(address)?;
    let (_, peer) = listener.accept()?;
    check_eq!(client.local_addr()?.port(), peer.port());
    Ok(())
}

fn v6() -> Result<()> {
    let Ok(listener) = TcpListener::bind("[::]:0") else {
        return zdtm::skip("no IPv6");
    };
    let port = listener.local_addr()?.port();
    zdtm::checkpoint()?;
    talk(&listener, SocketAddr::new("::1".parse()?, port))?;
    talk(&listener, SocketAddr::new("127.0.0.1".parse()?, port))
}

/// One port, a listener for each family.
fn v6only() -> Result<()> {
    let Ok(six) = stream(AddressFamily::Inet6) else {
        return zdtm::skip("no IPv6");
    };
    setsockopt(&six, sockopt::Ipv6V6Only, &true)?;
    bind(
        six.as_raw_fd(),
        &SockaddrIn6::from("[::]:0".parse::<std::net::SocketAddrV6>()?),
    )?;
    listen(&six, Backlog::new(3)?)?;
    let six = TcpListener::from(six);
    let port = six.local_addr()?.port();
    let Ok(four) = TcpListener::bind(("0.0.0.0", port)) else {
        return zdtm::skip("somebody else has the port");
    };
    zdtm::checkpoint()?;
    talk(&six, SocketAddr::new("::1".parse()?, port))?;
    talk(&four, SocketAddr::new("127.0.0.1".parse()?, port))
}

/// Two that share a port; and a third one may join.
fn reuseport() -> Result<()> {
    let another = |port| {
        let one = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        setsockopt(&one, sockopt::ReusePort, &true)?;
        bind(one.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port))?;
        listen(&one, Backlog::new(3)?)?;
        Ok::<_, nix::errno::Errno>(TcpListener::from(one))
    };
    let one = another(0)?;
    let port = one.local_addr()?.port();
    let two = another(port)?;
    // What is given up afterwards does not move it away.
    let changed = another(port)?;
    setsockopt(&changed, sockopt::ReusePort, &false)?;
    zdtm::checkpoint()?;
    check!(!getsockopt(&changed, sockopt::ReusePort)?);
    check!(getsockopt(&two, sockopt::ReusePort)?);
    check_eq!(changed.local_addr()?.port(), port);
    setsockopt(&changed, sockopt::ReusePort, &true)?;
    let three = another(port)?;
    for listener in [&one, &two, &three] {
        check_eq!(listener.local_addr()?.port(), port);
    }
    let mut plain = stream(AddressFamily::Inet)?;
    check!(bind(plain.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port)).is_err());
    plain = stream(AddressFamily::Inet)?;
    setsockopt(&plain, sockopt::ReuseAddr, &true)?;
    check!(bind(plain.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port)).is_err());
    TcpStream::connect(("127.0.0.1", port))?;
    Ok(())
}
