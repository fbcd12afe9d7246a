//! Packet sockets: packet(7), with filters, memberships, fanout groups and rings.
//!
//! Not preserved: packets that wait elsewhere than in a ring; what passed while nobody was there.

use criu_image::pb;
use criu_kind::{DumpCx, Error, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result};
use criu_tracee::Program;
use nix::errno::Errno;
use nix::net::if_::if_indextoname;

use crate::sockets::inet::{more, sort};
use crate::sockets::message::set_at;
use crate::sockets::options;
use crate::sockets::packet::diag::PacketSockets;
use crate::sockets::packet::ring;

const NEW: i32 = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
// `include/uapi/linux/if_packet.h`.
const SOL_PACKET: i32 = 263;
/// `SOCK_PACKET` of `include/linux/net.h`, obsolete: whole frames of one device.
const SOCK_PACKET: u32 = 10;
const ADD_MEMBERSHIP: i32 = 1;
const RX_RING: i32 = 5;
const COPY_THRESH: i32 = 7;
const AUXDATA: i32 = 8;
const ORIGDEV: i32 = 9;
const VERSION: i32 = 10;
const RESERVE: i32 = 12;
const TX_RING: i32 = 13;
const LOSS: i32 = 14;
const VNET_HDR: i32 = 15;
const TIMESTAMP: i32 = 17;
const FANOUT: i32 = 18;
/// No fanout, in images.
const ALONE: u32 = u32::MAX;
/// `TPACKET_V1`, and `TPACKET_V3`, whose rings are described by more words.
pub(crate) const V1: u32 = 0;
pub(crate) const V3: u32 = 2;
// `include/uapi/linux/packet_diag.h`.
const HAS_AUXDATA: u32 = 2;
const HAS_ORIGDEV: u32 = 4;
const HAS_VNET_HDR: u32 = 8;
const HAS_LOSS: u32 = 16;

/// A packet socket.
#[derive(Debug)]
pub struct Packet;

impl FileKind for Packet {
    type Entry = pb::PacketSockEntry;
    const NAME: &'static str = "packet";
    const SINCE: Kernel = Kernel::new(3, 10, 0);

    fn claims(&self, file: &OpenFile) -> bool {
        file.family == Some(libc::AF_PACKET)
    }

    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        let netns = sort::namespace(cx, file)?;
        let sort = sort::Sort::of(&file.fd)?;
        let all = cx.cached(PacketSockets::ask)?;
        let inode = u32::try_from(file.inode.ino).unwrap_or(0);
        let info = all.get(inode).ok_or_else(|| {
            Error::unsupported("a packet socket that the kernel does not list", "try again")
        })?;
        more::keep(cx, file, sort, file.number(), Vec::new())?;
        let [index, version, reserve, copy_thresh, timestamp, flags] = info.words;
        let entry = pb::PacketSockEntry {
            id: file.number(),
            r#type: sort.kind.cast_unsigned(),
            protocol: info.protocol,
            flags: file.flags(),
            ifindex: index,
            fown: file.owner,
            opts: options::read(&file.fd)?,
            version,
            reserve,
            aux_data: flags & HAS_AUXDATA != 0,
            orig_dev: flags & HAS_ORIGDEV != 0,
            vnet_hdr: flags & HAS_VNET_HDR != 0,
            loss: flags & HAS_LOSS != 0,
            timestamp,
            copy_thresh,
            mclist: info.memberships.clone(),
            fanout: info.fanout,
            rx_ring: info.rx_ring,
            tx_ring: info.tx_ring,
            ns_id: cx.namespace("net", netns),
        };
        ring::keep(cx, &file.fd, &entry)?;
        Ok(entry)
    }

    /// Both rings, one after the other.
    fn mapped(&self, entry: &Self::Entry) -> Option<u64> {
        let rings = [&entry.rx_ring, &entry.tx_ring];
        let sizes = rings.into_iter().flatten().map(ring::size_of_ring);
        sizes.reduce(|one, other| one + other)
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let more = more::Facts::of(cx, entry.id)?;
        let mut program = Program::new();
        let kind = entry.r#type | NEW.unsigned_abs();
        // With a protocol it would hear all devices at once. The old kind gets its protocol nowhere else.
        let protocol = match entry.r#type == SOCK_PACKET {
            true => entry.protocol.cast_signed(),
            false => 0,
        };
        let fd = program.socket(libc::AF_PACKET, kind, protocol);
        let fd = cx.here().run(&program)?.fd(fd);
        let mut program = Program::new();
        let numbers = [
            (VERSION, entry.version),
            (RESERVE, entry.reserve),
            (COPY_THRESH, entry.copy_thresh),
            (TIMESTAMP, entry.timestamp),
            (AUXDATA, entry.aux_data.into()),
            (ORIGDEV, entry.orig_dev.into()),
            (VNET_HDR, entry.vnet_hdr.into()),
            (LOSS, entry.loss.into()),
        ];
        for (name, value) in numbers.into_iter().filter(|(_, value)| *value != 0) {
            set_at(&mut program, fd, (SOL_PACKET, name), value);
        }
        for (name, ring) in [(RX_RING, &entry.rx_ring), (TX_RING, &entry.tx_ring)] {
            if let Some(ring) = ring {
                self.ring(&mut program, fd, name, ring, entry.version);
            }
        }
        cx.here().run(&program)?;
        if entry.rx_ring.is_some() || entry.tx_ring.is_some() {
            ring::restore(cx, fd, entry)?;
        }
        // Before the first packet comes.
        let mut program = Program::new();
        options::write(&mut program, fd, &entry.opts);
        cx.here().run(&program)?;
        more::write(cx, fd, &more, false)?;
        Ok(Opened::Here(fd))
    }

    /// It listens when all rings have been turned: that is done by packets, which are not for it.
    fn last(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry, fd: i32) -> Result<Program> {
        bind(cx, fd, entry)?;
        for one in &entry.mclist {
            join(cx, fd, one)?;
        }
        if let Some(fanout) = entry.fanout.filter(|fanout| *fanout != ALONE) {
            let mut program = Program::new();
            set_at(&mut program, fd, (SOL_PACKET, FANOUT), fanout);
            cx.here().run(&program)?;
        }
        Ok(Program::new())
    }
}

impl Packet {
    fn ring(&self, program: &mut Program, fd: i32, name: i32, ring: &pb::PacketRing, version: u32) {
        let mut words = vec![
            ring.block_size,
            ring.block_nr,
            ring.frame_size,
            ring.frame_nr,
        ];
        if version == V3 {
            words.extend([ring.retire_tmo, ring.sizeof_priv, ring.features]);
        }
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        let length = bytes.len();
        let bytes = program.bytes(bytes);
        program.setsockopt(fd, SOL_PACKET, name, bytes, length);
    }
}

/// `struct sockaddr_ll`, for most: protocol and device say what it hears.
fn bind(cx: &mut dyn RestoreCx, fd: i32, entry: &pb::PacketSockEntry) -> Result<()> {
    let is_old = entry.r#type == SOCK_PACKET;
    // Having a protocol, one of the old kind hears all devices already.
    if entry.ifindex == 0 && (entry.protocol == 0 || is_old) {
        return Ok(());
    }
    let failed = |errno| match errno {
        Errno::ENODEV | Errno::ENXIO => Error::unsupported(
            format!(
                "a packet socket of network device {}, which is not here",
                entry.ifindex
            ),
            "make the device again, with the same index",
        ),
        errno => Error::Kernel {
            call: "bind",
            errno,
        },
    };
    let half = |number: u32| u16::try_from(number).unwrap_or(0).to_ne_bytes();
    let mut address = half(libc::AF_PACKET.unsigned_abs()).to_vec();
    if is_old {
        // `struct sockaddr`: the device by its name (`packet_bind_spkt`).
        let name = if_indextoname(entry.ifindex).map_err(failed)?;
        address.extend(name.to_bytes());
        address.resize(16, 0);
    } else {
        address.extend(half(entry.protocol));
        address.extend(entry.ifindex.to_ne_bytes());
        address.resize(20, 0);
    }
    let length = address.len();
    let mut program = Program::new();
    let address = program.bytes(address);
    let bound = program.bind(fd, address, length);
    program.tolerate();
    cx.here().run(&program)?.get(bound).map_err(failed)?;
    Ok(())
}

/// `struct packet_mreq_max`.
fn join(cx: &mut dyn RestoreCx, fd: i32, one: &pb::PacketMclist) -> Result<()> {
    let mut request = one.index.to_ne_bytes().to_vec();
    request.extend(u16::try_from(one.r#type).unwrap_or(0).to_ne_bytes());
    request.extend(u16::try_from(one.addr.len()).unwrap_or(0).to_ne_bytes());
    request.extend(&one.addr);
    // At least `struct packet_mreq`, with room for eight bytes.
    request.resize(request.len().max(16), 0);
    let length = request.len();
    let mut program = Program::new();
    let request = program.bytes(request);
    program.setsockopt(fd, SOL_PACKET, ADD_MEMBERSHIP, request, length);
    cx.here().run(&program)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use criu_kind::testing::restored;
    use expect_test::expect;

    use super::*;

    fn ring(block_nr: u32) -> pb::PacketRing {
        pb::PacketRing {
            block_size: 4096,
            block_nr,
            frame_size: 2048,
            frame_nr: 2 * block_nr,
            retire_tmo: 60,
            sizeof_priv: 8,
            features: 1,
        }
    }

    fn entry(rx: Option<u32>, tx: Option<u32>, version: u32) -> pb::PacketSockEntry {
        pb::PacketSockEntry {
            id: 7,
            r#type: libc::SOCK_RAW.cast_unsigned(),
            version,
            rx_ring: rx.map(ring),
            tx_ring: tx.map(ring),
            ..pb::PacketSockEntry::default()
        }
    }

    #[test]
    fn both_rings_are_one_mapping() {
        let mapped = |rx, tx| FileKind::mapped(&Packet, &entry(rx, tx, 1));
        assert_eq!(mapped(Some(4), None), Some(4 << 12));
        assert_eq!(mapped(Some(4), Some(2)), Some(6 << 12));
        assert_eq!(mapped(None, None), None);
    }

    #[test]
    fn the_version_comes_before_the_ring_it_is_of() {
        let rings = |version| {
            let listing = restored(&Packet, &entry(Some(4), None, version)).expect("a program");
            let lines = listing.lines().filter(|line| line.contains(", 263, "));
            lines.collect::<Vec<_>>().join("\n")
        };
        let (two, three) = (rings(1), rings(2));
        if cfg!(target_endian = "little") {
            expect![[r#"
                $0 = setsockopt(100, 263, 10, <01000000>, 4)
                $1 = setsockopt(100, 263, 5, <00100000040000000008000008000000>, 16)"#]]
            .assert_eq(&two);
            expect![[r#"
                $0 = setsockopt(100, 263, 10, <02000000>, 4)
                $1 = setsockopt(100, 263, 5, <001000000400000000080000080000003c0000000800000001000000>, 28)"#]].assert_eq(&three);
        }
    }
}
