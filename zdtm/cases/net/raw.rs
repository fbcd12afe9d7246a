//! Raw sockets and ping sockets.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, recv, sendto,
    socket,
};
use zdtm::{Case, Result, check_eq};

use super::tcp_options::{get, set};

pub(crate) const CASES: &[Case] = &[
    Case::new("raw-icmp", icmp),
    Case::new("raw-header", header),
    Case::new("raw-v6", version_6),
    Case::new("ping", ping),
];

fn raw(protocol: SockProtocol) -> Result<OwnedFd, Errno> {
    socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )
}

/// An echo request, as a raw socket sends it: type, code, checksum, identifier, number.
fn request() -> [u8; 8] {
    let mut packet = [8, 0, 0, 0, 0x12, 0x34, 0, 1];
    let sum = !(0x0800u16 + 0x1234 + 1);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Types of messages that do not get through.
fn icmp() -> Result<()> {
    const FILTER: i32 = 1;
    const SOL_RAW: i32 = 255;
    let (one, other) = (raw(SockProtocol::Icmp)?, raw(SockProtocol::Icmp)?);
    bind(one.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
    // Requests: only answers are heard.
    set(&one, SOL_RAW, FILTER, 1 << 8)?;
    zdtm::checkpoint()?;
    check_eq!(get(&one, SOL_RAW, FILTER)?, 1 << 8);
    check_eq!(get(&other, SOL_RAW, FILTER)?, 0);
    let to = SockaddrIn::new(127, 0, 0, 1, 0);
    sendto(other.as_raw_fd(), &request(), &to, MsgFlags::empty())?;
    let mut room = [0; 100];
    check_eq!(recv(one.as_raw_fd(), &mut room, MsgFlags::empty())?, 28);
    check_eq!(room[20], 0);
    Ok(())
}

fn header() -> Result<()> {
    let one = raw(SockProtocol::Raw)?;
    let other = raw(SockProtocol::Udp)?;
    set(&other, libc::SOL_IP, libc::IP_HDRINCL, 1)?;
    set(&other, libc::SOL_IP, libc::IP_NODEFRAG, 1)?;
    zdtm::checkpoint()?;
    check_eq!(get(&one, libc::SOL_IP, libc::IP_HDRINCL)?, 1);
    check_eq!(get(&other, libc::SOL_IP, libc::IP_HDRINCL)?, 1);
    check_eq!(get(&other, libc::SOL_IP, libc::IP_NODEFRAG)?, 1);
    Ok(())
}

/// Of the kind, no IPv4: that was decided when it was made.
fn version_6() -> Result<()> {
    let one = socket(
        AddressFamily::Inet6,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::IcmpV6,
    )?;
    const HOPS: i32 = 16;
    set(&one, libc::SOL_IPV6, HOPS, 77)?;
    set(&one, libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
    zdtm::checkpoint()?;
    check_eq!(get(&one, libc::SOL_IPV6, HOPS)?, 77);
    check_eq!(get(&one, libc::SOL_IPV6, libc::IPV6_RECVPKTINFO)?, 1);
    check_eq!(
        get(&one, libc::SOL_SOCKET, libc::SO_PROTOCOL)?,
        libc::IPPROTO_ICMPV6
    );
    Ok(())
}

fn ping() -> Result<()> {
    let made = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Icmp,
    );
    let Ok(one) = made else {
        return zdtm::skip("net.ipv4.ping_group_range forbids it");
    };
    let to = SockaddrIn::new(127, 0, 0, 1, 0);
    let mut room = [0; 100];
    sendto(one.as_raw_fd(), &request(), &to, MsgFlags::empty())?;
    check_eq!(recv(one.as_raw_fd(), &mut room, MsgFlags::empty())?, 8);
    let identifier = [room[4], room[5]];
    zdtm::checkpoint()?;
    sendto(one.as_raw_fd(), &request(), &to, MsgFlags::empty())?;
    check_eq!(recv(one.as_raw_fd(), &mut room, MsgFlags::empty())?, 8);
    check_eq!([room[4], room[5]], identifier);
    Ok(())
}
