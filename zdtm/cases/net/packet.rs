//! Packet sockets: what they hear, and how it is handed out.

use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use zdtm::{Case, Result, check, check_eq};

use super::tcp_options::{get, set};

pub(crate) const CASES: &[Case] = &[
    Case::new("packet-listens", listens),
    Case::new("packet-new", new),
    Case::new("packet-options", options),
    Case::new("packet-memberships", memberships).exclusive(),
    Case::new("packet-fanout", fanout).exclusive(),
    Case::new("packet-ring", ring),
    Case::new("packet-old", old),
];

pub(crate) const SOL_PACKET: i32 = 263;
/// `ETH_P_ALL`, in the order of the network.
const ALL: i32 = 0x0003u16.to_be() as i32;

pub(crate) fn made(protocol: i32) -> Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: numbers; what it gives is ours alone.
    unsafe {
        let number = libc::socket(libc::AF_PACKET, kind, protocol);
        Ok(OwnedFd::from_raw_fd(Errno::result(number)?))
    }
}

/// On the loopback.
pub(crate) fn bound(protocol: i32) -> Result<OwnedFd> {
    let one = made(0)?;
    let mut address = [0u8; 20];
    address[..2].copy_from_slice(&17u16.to_ne_bytes());
    address[2..4].copy_from_slice(&u16::try_from(protocol)?.to_ne_bytes());
    address[4..8].copy_from_slice(&1u32.to_ne_bytes());
    // SAFETY: the address is as long as said.
    let bound = unsafe { libc::bind(one.as_raw_fd(), address.as_ptr().cast(), 20) };
    Errno::result(bound)?;
    Ok(one)
}

/// Whether it hears a datagram with this word on the loopback.
fn hears(sockets: &[&OwnedFd], word: &[u8]) -> Result<usize> {
    let to = UdpSocket::bind("127.0.0.1:0")?;
    UdpSocket::bind("127.0.0.1:0")?.send_to(word, to.local_addr()?)?;
    let deadline = Instant::now() + Duration::from_millis(500);
    let mut heard = 0;
    while Instant::now() < deadline && heard == 0 {
        for socket in sockets {
            let mut room = [0; 2000];
            while let Ok(length) = recv(socket.as_raw_fd(), &mut room, MsgFlags::MSG_DONTWAIT) {
                heard += usize::from(room[..length].ends_with(word));
            }
        }
    }
    Ok(heard)
}

fn listens() -> Result<()> {
    let (one, deaf) = (bound(ALL)?, bound(i32::from(0x88b5u16.to_be()))?);
    check!(hears(&[&one], b"before")? > 0);
    zdtm::checkpoint()?;
    check!(hears(&[&one], b"behind")? > 0);
    check_eq!(hears(&[&deaf], b"behind")?, 0);
    Ok(())
}

fn new() -> Result<()> {
    let one = made(0)?;
    zdtm::checkpoint()?;
    check_eq!(hears(&[&one], b"behind")?, 0);
    Ok(())
}

fn options() -> Result<()> {
    let (one, other) = (bound(ALL)?, made(0)?);
    // Auxiliary data, original device, version, reserve, loss; and one CRIU has no field for.
    let wanted = [
        (8, 1),
        (9, 1),
        (10, 1),
        (12, 64),
        (14, 1),
        (17, 1),
        (20, 1),
        (23, 1),
    ];
    for (name, value) in wanted {
        set(&one, SOL_PACKET, name, value)?;
    }
    let before = get(&other, SOL_PACKET, 10)?;
    zdtm::checkpoint()?;
    for (name, value) in wanted {
        check_eq!(get(&one, SOL_PACKET, name)?, value, "option {name}");
    }
    check_eq!(get(&other, SOL_PACKET, 10)?, before);
    Ok(())
}

fn member(socket: &OwnedFd, name: i32, kind: u16, address: u8) -> Result<(), Errno> {
    let mut request = [0u8; 16];
    request[..4].copy_from_slice(&1u32.to_ne_bytes());
    request[4..6].copy_from_slice(&kind.to_ne_bytes());
    request[6..8].copy_from_slice(&6u16.to_ne_bytes());
    request[8..14].copy_from_slice(&[1, 0, 0x5e, 0x17, 0x34, address]);
    // SAFETY: the request is as long as said.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            SOL_PACKET,
            name,
            request.as_ptr().cast(),
            16,
        )
    };
    Errno::result(set).map(drop)
}

/// Several on one device, one of them twice.
fn memberships() -> Result<()> {
    let one = made(0)?;
    for address in [0xa1, 0xa2, 0xa2] {
        member(&one, 1, 0, address)?;
    }
    member(&one, 1, 1, 0)?;
    check_eq!((listed(0xa1)?, listed(0xa2)?), (true, true));
    zdtm::checkpoint()?;
    check_eq!((listed(0xa1)?, listed(0xa2)?), (true, true));
    for (address, stays) in [(0xa1, false), (0xa2, true), (0xa2, false)] {
        member(&one, 2, 0, address)?;
        check_eq!(listed(address)?, stays);
    }
    member(&one, 2, 1, 0)?;
    Ok(())
}

/// Whether the loopback listens to such an address.
fn listed(address: u8) -> Result<bool> {
    let text = std::fs::read_to_string("/proc/net/dev_mcast")?;
    Ok(text.contains(&format!("01005e1734{address:02x}")))
}

/// Two that share what comes.
fn fanout() -> Result<()> {
    let (one, two) = (bound(ALL)?, bound(ALL)?);
    let id = i32::from(u16::try_from(std::process::id() & 0xffff).unwrap_or(0)) | 1;
    for socket in [&one, &two] {
        set(socket, SOL_PACKET, 18, id)?;
    }
    zdtm::checkpoint()?;
    check_eq!(get(&one, SOL_PACKET, 18)?, id);
    check_eq!(get(&two, SOL_PACKET, 18)?, id);
    check!(hears(&[&one, &two], b"behind")? > 0);
    Ok(())
}

/// A ring that nobody has mapped.
fn ring() -> Result<()> {
    let one = bound(ALL)?;
    let page = zdtm::page_size();
    let words = [page, 4, page / 2, 8].map(|word| u32::try_from(word).expect("small"));
    let set_ring = |socket: &OwnedFd| {
        // SAFETY: the request is as long as said.
        let set = unsafe {
            libc::setsockopt(socket.as_raw_fd(), SOL_PACKET, 5, words.as_ptr().cast(), 16)
        };
        Errno::result(set)
    };
    set(&one, SOL_PACKET, 10, 1)?;
    set_ring(&one)?;
    zdtm::checkpoint()?;
    let length = 4 * page;
    // SAFETY: a new mapping, where the kernel likes it.
    let map = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            one.as_raw_fd(),
            0,
        )
    };
    check!(map != libc::MAP_FAILED, "{}", Errno::last());
    // SAFETY: the mapping is ours.
    unsafe { libc::munmap(map, length) };
    Ok(())
}

/// The obsolete `SOCK_PACKET`: bound by the name of a device, or to none.
fn old() -> Result<()> {
    let made = || {
        // SAFETY: numbers; what it gives is ours alone.
        unsafe {
            let number = libc::socket(libc::AF_PACKET, 10 | libc::SOCK_CLOEXEC, ALL);
            Ok::<_, Errno>(OwnedFd::from_raw_fd(Errno::result(number)?))
        }
    };
    let (bound, unbound) = (made()?, made()?);
    let mut address = [0u8; 16];
    address[..2].copy_from_slice(&17u16.to_ne_bytes());
    address[2..4].copy_from_slice(b"lo");
    // SAFETY: the address is as long as said.
    let done = unsafe { libc::bind(bound.as_raw_fd(), address.as_ptr().cast(), 16) };
    Errno::result(done)?;
    let name = |socket: &OwnedFd| {
        let (mut name, mut length) = ([0u8; 16], 16);
        // SAFETY: room and its length.
        let got = unsafe {
            libc::getsockname(
                socket.as_raw_fd(),
                name.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        Errno::result(got)?;
        Ok::<_, Errno>(name)
    };
    zdtm::checkpoint()?;
    check_eq!(name(&bound)?, address);
    check_eq!(name(&unbound)?[2..], [0; 14]);
    check!(hears(&[&bound], b"to the bound")? > 0);
    check!(hears(&[&unbound], b"to the other")? > 0);
    Ok(())
}
