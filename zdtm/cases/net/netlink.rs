//! Netlink sockets: their number, their groups, whom they speak with.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, connect,
    getpeername, getsockname, recv, send, socket,
};
use zdtm::{Case, Result, check, check_eq};

use super::tcp_options::{get, set};

pub(crate) const CASES: &[Case] = &[
    Case::new("netlink-route", route),
    Case::new("netlink-groups", groups),
    Case::new("netlink-options", options),
    Case::new("netlink-new", new),
];

const SOL_NETLINK: i32 = 270;

fn made(protocol: SockProtocol) -> Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )?)
}

fn name(socket: &OwnedFd) -> Result<(u32, u32)> {
    let name: NetlinkAddr = getsockname(socket.as_raw_fd())?;
    Ok((name.pid(), name.groups()))
}

/// Asks the kernel for all links, and hears of one at least.
fn ask(socket: &OwnedFd) -> Result<()> {
    let mut request = [0u8; 32];
    request[0] = 32;
    request[4..6].copy_from_slice(&18u16.to_ne_bytes()); // RTM_GETLINK
    request[6..8].copy_from_slice(&0x301u16.to_ne_bytes()); // NLM_F_REQUEST | NLM_F_DUMP
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut room = [0; 32_768];
    let length = recv(socket.as_raw_fd(), &mut room, MsgFlags::empty())?;
    check!(length > 32);
    check_eq!(u16::from_ne_bytes([room[4], room[5]]), 16); // RTM_NEWLINK
    while u16::from_ne_bytes([room[4], room[5]]) != 3 {
        recv(socket.as_raw_fd(), &mut room, MsgFlags::empty())?;
    }
    Ok(())
}

fn route() -> Result<()> {
    let one = made(SockProtocol::NetlinkRoute)?;
    bind(one.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    connect(one.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    ask(&one)?;
    let before = name(&one)?;
    zdtm::checkpoint()?;
    check_eq!(name(&one)?, before);
    ask(&one)
}

/// Also those beyond the first 32.
fn groups() -> Result<()> {
    let (one, two) = (
        made(SockProtocol::NetlinkRoute)?,
        made(SockProtocol::NetlinkKObjectUEvent)?,
    );
    bind(one.as_raw_fd(), &NetlinkAddr::new(0, 0b10_1001))?;
    bind(two.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
    let wide = set(&one, SOL_NETLINK, 1, 34).is_ok();
    connect(two.as_raw_fd(), &NetlinkAddr::new(0, 2)).ok();
    let peer: NetlinkAddr = getpeername(two.as_raw_fd())?;
    let before = (name(&one)?, name(&two)?);
    zdtm::checkpoint()?;
    check_eq!((name(&one)?, name(&two)?), before);
    check_eq!(getpeername::<NetlinkAddr>(two.as_raw_fd())?, peer);
    if wide {
        // It is a member: so it can leave, and the bit was there.
        let mut words = [0u32; 8];
        let mut length = 32 as libc::socklen_t;
        // SAFETY: both point to what the kernel may write.
        unsafe {
            libc::getsockopt(
                one.as_raw_fd(),
                SOL_NETLINK,
                9,
                words.as_mut_ptr().cast(),
                &raw mut length,
            );
        }
        check_eq!(words[..2], [0b10_1001, 0b10]);
    }
    Ok(())
}

fn options() -> Result<()> {
    let one = made(SockProtocol::NetlinkRoute)?;
    for name in [3, 4, 5, 10, 11, 12] {
        set(&one, SOL_NETLINK, name, 1)?;
    }
    set(&one, libc::SOL_SOCKET, libc::SO_RCVBUF, 50_000)?;
    zdtm::checkpoint()?;
    for name in [3, 4, 5, 10, 11, 12] {
        check_eq!(get(&one, SOL_NETLINK, name)?, 1);
    }
    check_eq!(get(&one, libc::SOL_SOCKET, libc::SO_RCVBUF)?, 100_000);
    Ok(())
}

fn new() -> Result<()> {
    let one = made(SockProtocol::NetlinkRoute)?;
    zdtm::checkpoint()?;
    check_eq!(name(&one)?.0, 0);
    ask(&one)
}
