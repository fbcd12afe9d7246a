//! Packets that are brought in as if somebody else had sent them: through a raw socket, over the loopback.

use std::net::{IpAddr, SocketAddr};

use criu_kind::{RestoreCx, Result};
use criu_tracee::Program;

use crate::lock::MARK;
use crate::sockets::inet::address::{encode, on_the_wire};
use crate::sockets::message::{set, set_at};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// `IPV6_HDRINCL` of `include/uapi/linux/in6.h`.
const IPV6_HDRINCL: i32 = 36;

/// `TH_FIN`, `TH_ACK`.
pub(crate) const FIN: u8 = 1;
pub(crate) const ACK: u8 = 16;

/// A segment without data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) sequence: u32,
    pub(crate) acknowledged: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
}

impl Segment {
    /// The packet that has it.
    pub(crate) fn packet(&self, from: &SocketAddr, to: &SocketAddr) -> Vec<u8> {
        let (from, to) = (on_the_wire(from), on_the_wire(to));
        let mut segment = Vec::with_capacity(20);
        segment.extend(from.port().to_be_bytes());
        segment.extend(to.port().to_be_bytes());
        segment.extend(self.sequence.to_be_bytes());
        segment.extend(self.acknowledged.to_be_bytes());
        segment.extend([5 << 4, self.flags]);
        segment.extend(self.window.to_be_bytes());
        segment.extend([0; 4]); // Checksum, urgent pointer.
        let sum = checksum(&from, &to, TCP, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        with_header(&from, &to, TCP, &segment)
    }
}

/// A datagram as a packet.
pub(crate) fn datagram(from: &SocketAddr, to: &SocketAddr, data: &[u8]) -> Vec<u8> {
    let (from, to) = (on_the_wire(from), on_the_wire(to));
    let length = u16::try_from(data.len() + 8).unwrap_or(u16::MAX);
    let mut body = Vec::with_capacity(data.len() + 8);
    body.extend(from.port().to_be_bytes());
    body.extend(to.port().to_be_bytes());
    body.extend(length.to_be_bytes());
    body.extend([0; 2]);
    body.extend(data);
    // No checksum is written as 0, and a sum of 0 in the other way.
    let sum = match checksum(&from, &to, UDP, &body) {
        0 => u16::MAX,
        sum => sum,
    };
    body[6..8].copy_from_slice(&sum.to_be_bytes());
    with_header(&from, &to, UDP, &body)
}

fn octets(address: &SocketAddr) -> Vec<u8> {
    match address.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The sum of the body and of the header that is thought before it.
fn checksum(from: &SocketAddr, to: &SocketAddr, protocol: u8, body: &[u8]) -> u16 {
    let length = u32::try_from(body.len()).unwrap_or(0).to_be_bytes();
    let mut all = [octets(from), octets(to), length.to_vec()].concat();
    all.extend([0, 0, 0, protocol]);
    all.extend(body);
    if !all.len().is_multiple_of(2) {
        all.push(0);
    }
    let words = all.chunks_exact(2);
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// The kernel fills in what is zero of the header of IPv4: length, id, checksum.
fn with_header(from: &SocketAddr, to: &SocketAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut packet = Vec::with_capacity(body.len() + 40);
    if to.is_ipv4() {
        packet.extend([0x45, 0]);
        packet.extend(length.saturating_add(20).to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    } else {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(length.to_be_bytes());
        packet.extend([protocol, 64]);
    }
    packet.extend(octets(from));
    packet.extend(octets(to));
    packet.extend(body);
    packet
}

/// Sends packets that the lock lets through.
pub(crate) fn inject(cx: &mut dyn RestoreCx, to: &SocketAddr, packets: &[Vec<u8>]) -> Result<()> {
    let to = on_the_wire(to);
    let family = if to.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let mut program = Program::new();
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    let fd = program.socket(family, kind, libc::IPPROTO_RAW);
    let fd = cx.here().run(&program)?.fd(fd);
    let mut program = Program::new();
    set(&mut program, fd, libc::SO_MARK, MARK);
    if to.is_ipv6() {
        set_at(&mut program, fd, (libc::SOL_IPV6, IPV6_HDRINCL), 1);
        program.tolerate();
    }
    // The port is the protocol's, and there is none.
    let address = encode(&SocketAddr::new(to.ip(), 0));
    let length = address.len();
    let address = program.bytes(address);
    for packet in packets {
        let bytes = program.bytes(packet.clone());
        program.sendto(fd, bytes, packet.len(), libc::MSG_NOSIGNAL, address, length);
    }
    let sent = cx.here().run(&program);
    let mut program = Program::new();
    program.close(fd);
    cx.here().run(&program)?;
    sent?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_right() {
        let from: SocketAddr = "10.0.0.1:1000".parse().expect("an address");
        let to: SocketAddr = "10.0.0.2:80".parse().expect("an address");
        for data in [&b"odd"[..], b"even"] {
            let packet = datagram(&from, &to, data);
            // With its own sum in it, all of it sums up to nothing.
            assert_eq!(checksum(&from, &to, UDP, &packet[20..]), 0);
            assert_eq!(packet.len(), 28 + data.len());
        }
        let segment = Segment {
            sequence: 7,
            acknowledged: 9,
            flags: FIN | ACK,
            window: 5,
        };
        let from: SocketAddr = "[fe80::1]:1".parse().expect("an address");
        let to: SocketAddr = "[fe80::2]:2".parse().expect("an address");
        let packet = segment.packet(&from, &to);
        assert_eq!(packet.len(), 60);
        assert_eq!(checksum(&from, &to, TCP, &packet[40..]), 0);
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:1".parse().expect("an address");
        assert_eq!(segment.packet(&mapped, &mapped).len(), 40);
    }
}
