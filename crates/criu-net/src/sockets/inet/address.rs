//! Internet addresses: as the kernel has them, as images have them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use criu_kind::{Error, Result};
use nix::sys::socket::{SockaddrStorage, getsockname};

use crate::sockets::message::option_at;

/// `SO_PEERNAME` of `include/uapi/asm-generic/socket.h`; the same on every machine.
const SO_PEERNAME: i32 = 28;

/// An address as an image has it: words in the order of the network.
pub(crate) fn words(address: IpAddr) -> Vec<u32> {
    let bytes = match &address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let words = bytes.chunks_exact(4);
    words
        .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
        .collect()
}

/// The address of an image. The first version had four words for every family.
pub(crate) fn of_words(family: u32, words: &[u32], port: u32) -> Result<SocketAddr> {
    let broken = || Error::corrupt("files.img", format!("an address of {} words", words.len()));
    let port = u16::try_from(port).map_err(|_| broken())?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let address = if is_v6(family) {
        let octets: [u8; 16] = bytes[..].try_into().map_err(|_| broken())?;
        IpAddr::V6(octets.into())
    } else {
        let octets: [u8; 4] = bytes
            .get(..4)
            .ok_or_else(broken)?
            .try_into()
            .unwrap_or([0; 4]);
        IpAddr::V4(octets.into())
    };
    Ok(SocketAddr::new(address, port))
}

/// Whether a family is `AF_INET6`.
pub(crate) fn is_v6(family: u32) -> bool {
    u32::try_from(libc::AF_INET6) == Ok(family)
}

/// `struct sockaddr_in` or `struct sockaddr_in6`.
pub(crate) fn encode(address: &SocketAddr) -> Vec<u8> {
    let family = |family: i32| u16::try_from(family).unwrap_or(0).to_ne_bytes();
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(address) => [
            &family(libc::AF_INET)[..],
            &port,
            &address.ip().octets(),
            &[0; 8],
        ]
        .concat(),
        SocketAddr::V6(address) => [
            &family(libc::AF_INET6)[..],
            &port,
            &address.flowinfo().to_ne_bytes(),
            &address.ip().octets(),
            &address.scope_id().to_ne_bytes(),
        ]
        .concat(),
    }
}

/// The address in such a structure.
pub(crate) fn decode(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let address = match i32::from(family) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(4..8)?).ok()?)),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(
            <[u8; 16]>::try_from(bytes.get(8..24)?).ok()?,
        )),
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

/// The address of a socket.
pub(crate) fn local(fd: impl AsFd) -> Result<Option<SocketAddr>> {
    let name = getsockname::<SockaddrStorage>(fd.as_fd().as_raw_fd());
    let name = name.map_err(Error::kernel("getsockname"))?;
    let four = name
        .as_sockaddr_in()
        .map(|name| SocketAddr::V4((*name).into()));
    Ok(four.or_else(|| {
        name.as_sockaddr_in6()
            .map(|name| SocketAddr::V6((*name).into()))
    }))
}

/// Where a socket is connected to, was, or is about to be; `None`: nowhere.
pub(crate) fn remote(fd: impl AsFd, family: u32) -> Result<Option<SocketAddr>> {
    // `struct sockaddr_in6`, `struct sockaddr_in`: the kernel does not take more room than it needs.
    let room = if is_v6(family) { 28 } else { 16 };
    let name = option_at(fd, (libc::SOL_SOCKET, SO_PEERNAME), room)?;
    Ok(name.and_then(|name| decode(&name)))
}

/// The address as packets have it: those of IPv4 that are mapped into IPv6 are of IPv4.
pub(crate) fn on_the_wire(address: &SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for text in [
            "127.0.0.1:80",
            "[::1]:65535",
            "[::ffff:10.0.0.1]:7",
            "[fe80::1]:9",
        ] {
            let address: SocketAddr = text.parse().expect("an address");
            assert_eq!(decode(&encode(&address)), Some(address));
            let family = if address.is_ipv6() {
                libc::AF_INET6
            } else {
                libc::AF_INET
            };
            let family = family.unsigned_abs();
            let back = of_words(family, &words(address.ip()), address.port().into());
            assert_eq!(back.expect("it fits"), address);
        }
        assert!(of_words(libc::AF_INET6.unsigned_abs(), &[1], 0).is_err());
        assert!(of_words(libc::AF_INET.unsigned_abs(), &[1], 70_000).is_err());
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:7".parse().expect("an address");
        assert_eq!(on_the_wire(&mapped).to_string(), "10.0.0.1:7");
    }
}
