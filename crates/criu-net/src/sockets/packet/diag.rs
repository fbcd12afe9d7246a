//! What the kernel knows of all packet sockets of a network namespace: packet_diag, which no library speaks.

use std::collections::HashMap;

use criu_image::pb;
use criu_kind::{Error, Result};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
/// `PACKET_SHOW_INFO | MCLIST | RING_CFG | FANOUT` of `include/uapi/linux/packet_diag.h`.
const SHOW: u32 = 15;
const ANSWER: usize = 16;

/// A packet socket.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PacketInfo {
    /// Index, version, reserve, threshold of copying, time stamp, flags.
    pub(crate) words: [u32; 6],
    pub(crate) memberships: Vec<pb::PacketMclist>,
    pub(crate) rx_ring: Option<pb::PacketRing>,
    pub(crate) tx_ring: Option<pb::PacketRing>,
    /// Id in the low half, type and flags in the high one.
    pub(crate) fanout: Option<u32>,
    pub(crate) protocol: u32,
}

/// All of them, by inode.
#[derive(Debug, Default)]
pub(crate) struct PacketSockets {
    all: HashMap<u32, PacketInfo>,
}

impl PacketSockets {
    /// Asks the kernel.
    pub(crate) fn ask() -> Result<Self> {
        let socket =
            Socket::new(NETLINK_SOCK_DIAG).map_err(Error::io("socket(NETLINK_SOCK_DIAG)"))?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(Error::io("connect(NETLINK_SOCK_DIAG)"))?;
        let mut request = Vec::new();
        request.extend(36u32.to_ne_bytes());
        request.extend(BY_FAMILY.to_ne_bytes());
        request.extend(DUMP.to_ne_bytes());
        request.extend([0; 8]);
        request.extend([u8::try_from(libc::AF_PACKET).unwrap_or(17), 0, 0, 0]);
        request.extend(0u32.to_ne_bytes());
        request.extend(SHOW.to_ne_bytes());
        request.extend([0xff; 8]);
        socket
            .send(&request, 0)
            .map_err(Error::io("send(NETLINK_SOCK_DIAG)"))?;
        let mut sockets = Self::default();
        loop {
            let (answer, _) = socket
                .recv_from_full()
                .map_err(Error::io("recv(NETLINK_SOCK_DIAG)"))?;
            let mut rest = &answer[..];
            while rest.len() >= HEADER {
                let length = (word(rest, 0) as usize).clamp(HEADER, rest.len());
                let kind = u16::from_ne_bytes([rest[4], rest[5]]);
                match kind {
                    DONE => return Ok(sockets),
                    ERROR => {
                        let errno = Errno::from_raw(-word(rest, HEADER).cast_signed());
                        return Err(missing(errno));
                    }
                    _ => sockets.take(&rest[HEADER..length]),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    fn take(&mut self, message: &[u8]) {
        let (inode, protocol) = (
            word(message, 4),
            u16::from_ne_bytes([at(message, 2), at(message, 3)]),
        );
        let mut info = PacketInfo {
            // In the order of the network, as socket(2) takes it.
            protocol: protocol.to_be().into(),
            ..PacketInfo::default()
        };
        let mut rest = message.get(ANSWER..).unwrap_or_default();
        while rest.len() >= 4 {
            let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]])).clamp(4, rest.len());
            let value = &rest[4..length];
            match u16::from_ne_bytes([rest[2], rest[3]]) & 0x3fff {
                0 => info.words = std::array::from_fn(|index| word(value, 4 * index)),
                1 => info.memberships = memberships(value),
                2 => info.rx_ring = Some(ring(value)),
                3 => info.tx_ring = Some(ring(value)),
                4 => info.fanout = Some(word(value, 0)),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        self.all.insert(inode, info);
    }

    /// The socket of an inode.
    pub(crate) fn get(&self, inode: u32) -> Option<&PacketInfo> {
        self.all.get(&inode)
    }
}

fn missing(errno: Errno) -> Error {
    match errno {
        Errno::ENOENT => Error::unsupported(
            "the kernel does not tell of packet sockets",
            "load the module: modprobe af_packet_diag",
        ),
        errno => Error::Kernel {
            call: "packet_diag",
            errno,
        },
    }
}

fn at(bytes: &[u8], index: usize) -> u8 {
    bytes.get(index).copied().unwrap_or(0)
}

fn word(bytes: &[u8], start: usize) -> u32 {
    u32::from_ne_bytes(std::array::from_fn(|index| at(bytes, start + index)))
}

/// `struct packet_diag_mclist`: index, count, type, length of the address, and room for one.
fn memberships(bytes: &[u8]) -> Vec<pb::PacketMclist> {
    let mut all = Vec::new();
    for one in bytes.chunks_exact(44) {
        let half = |start| u16::from_ne_bytes([one[start], one[start + 1]]);
        let length = usize::from(half(10)).min(32);
        // As often as it was asked for.
        for _ in 0..word(one, 4).max(1) {
            all.push(pb::PacketMclist {
                index: word(one, 0),
                r#type: half(8).into(),
                addr: one[12..12 + length].to_vec(),
            });
        }
    }
    all
}

/// `struct packet_diag_ring`.
fn ring(bytes: &[u8]) -> pb::PacketRing {
    pb::PacketRing {
        block_size: word(bytes, 0),
        block_nr: word(bytes, 4),
        frame_size: word(bytes, 8),
        frame_nr: word(bytes, 12),
        retire_tmo: word(bytes, 16),
        sizeof_priv: word(bytes, 20),
        features: word(bytes, 24),
    }
}
