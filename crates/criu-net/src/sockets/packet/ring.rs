//! Where a ring is to which packets come, and what waits in it.
//!
//! A program and the kernel go round in it, each by a count of its own that it tells nobody. What the kernel has written
//! says it: frames have times, and blocks of TPACKET_V3 running numbers. A new ring begins with its first frame; the
//! kernel is brought to the one that comes next by packets over the loopback, of a protocol that nobody has.
//! Not preserved: numbers of blocks; a block that the kernel has not closed yet.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{DumpCx, Error, RestoreCx, Result};
use criu_tracee::{Program, Window};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use std::collections::HashMap;
use std::os::fd::AsFd;

use crate::sockets::packet::kind::{V1, V3};

/// An ethernet protocol for experiments on one machine: `ETH_P_802_EX1`.
const EXPERIMENT: u16 = 0x88b5;
/// `TP_STATUS_USER`: it is the program's.
const USER: u32 = 1;
/// What fits over the loopback; a short one for who counts packets, a long one for who fills blocks.
const SHORT: usize = 16;
const LONG: usize = 60_000;
/// How long a packet may take over the loopback, and a block to be closed beyond its own time.
const PATIENCE: Duration = Duration::from_secs(3);

/// A ring as it is cut into parts that go from hand to hand: frames, or blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts {
    count: usize,
    size: usize,
    /// How many are side by side in a block, and how large that is.
    per_block: usize,
    block: usize,
    version: u32,
}

impl Parts {
    fn of(ring: &pb::PacketRing, version: u32) -> Option<Self> {
        let block = ring.block_size as usize;
        let (count, size) = match version {
            V3 => (ring.block_nr, block),
            _ => (ring.frame_nr, ring.frame_size as usize),
        };
        let per_block = block.checked_div(size)?;
        let parts = Self {
            count: count as usize,
            size,
            per_block,
            block,
            version,
        };
        // As the kernel wants them.
        let fits = count > 0 && per_block > 0 && size.is_multiple_of(16) && size >= 48;
        fits.then_some(parts)
    }

    fn at(&self, index: usize) -> usize {
        index / self.per_block * self.block + index % self.per_block * self.size
    }

    /// `tp_status`; of a block `block_status`.
    fn status(&self, index: usize) -> usize {
        self.at(index) + if self.version == V3 { 8 } else { 0 }
    }

    fn is_waiting(&self, memory: &Window, index: usize) -> bool {
        memory.get(self.status(index)) & USER != 0
    }

    /// Grows from one to the next that the kernel fills; 0: it never has.
    fn age(&self, memory: &Window, index: usize) -> u64 {
        // Seconds and less; of a block the number, whose low word comes first on the machines that there are.
        let (high, low) = match self.version {
            V3 => (28, 24),
            V1 if size_of::<usize>() == 8 => (20, 24),
            _ => (16, 20),
        };
        let word = |at| u64::from(memory.get(self.at(index) + at));
        word(high) << 32 | word(low)
    }

    /// How many packets are in a block.
    fn packets(&self, memory: &Window, index: usize) -> u32 {
        memory.get(self.at(index) + 12)
    }

    /// What the program has of it: of a block as much as is in use.
    fn content(&self, memory: &Window, index: usize) -> Vec<u8> {
        let length = match self.version {
            V3 => memory.get(self.at(index) + 20) as usize,
            _ => self.size,
        };
        memory.bytes(self.at(index), length.next_multiple_of(4).min(self.size))
    }
}

/// The part that comes next: behind the youngest one; a block that is not closed yet is itself the youngest.
fn head(parts: &Parts, ages: &[u64], is_waiting: impl Fn(usize) -> bool) -> usize {
    let youngest = ages.iter().copied().max().unwrap_or(0);
    if youngest == 0 {
        return 0;
    }
    let next = |index: usize| (index + 1) % parts.count;
    // Several may have come in the same moment.
    let last = (0..ages.len()).find(|index| {
        ages[*index] == youngest && (ages[next(*index)] != youngest || ages.len() == 1)
    });
    match last {
        Some(last) if parts.version == V3 && !is_waiting(last) => last,
        Some(last) => next(last),
        None => 0,
    }
}

fn memory(fd: BorrowedFd<'_>, ring: &pb::PacketRing, others: u64) -> Result<Window> {
    let size = u64::from(ring.block_size) * u64::from(ring.block_nr) + others;
    let size = usize::try_from(size).map_err(|_| Error::Kernel {
        call: "mmap",
        errno: Errno::EOVERFLOW,
    })?;
    Ok(Window::map(fd, size, 0)?)
}

/// Writes where the ring is, if it is not at its beginning, and what waits in it. `others`: bytes of the ring behind it.
pub(crate) fn keep(
    cx: &mut dyn DumpCx,
    fd: &OwnedFd,
    entry: &pb::PacketSockEntry,
    others: u64,
) -> Result<()> {
    let Some(ring) = &entry.rx_ring else {
        return Ok(());
    };
    let Some(parts) = Parts::of(ring, entry.version) else {
        return Ok(());
    };
    let memory = memory(fd.as_fd(), ring, others)?;
    let ages: Vec<u64> = (0..parts.count)
        .map(|index| parts.age(&memory, index))
        .collect();
    let head = head(&parts, &ages, |index| parts.is_waiting(&memory, index));
    let number = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
    if head != 0 {
        let place = pb::PacketRingEntry {
            socket_id: entry.id,
            head: number(head),
        };
        let ext = pb::FilesExtEntry {
            packet_ring: Some(place),
            ..pb::FilesExtEntry::default()
        };
        cx.append(desc::FILES_EXT, (), &ext, &[])?;
    }
    for index in (0..parts.count).filter(|index| parts.is_waiting(&memory, *index)) {
        let frame = pb::PacketFrameEntry {
            socket_id: entry.id,
            index: number(index),
            content: parts.content(&memory, index),
        };
        let ext = pb::FilesExtEntry {
            packet_frame: Some(frame),
            ..pb::FilesExtEntry::default()
        };
        cx.append(desc::FILES_EXT, (), &ext, &[])?;
    }
    Ok(())
}

/// What is known of the rings of a dump, by the id of the socket.
#[derive(Debug, Default)]
pub(crate) struct Rings(HashMap<u32, Place>);

/// Where one is.
#[derive(Clone, Debug, Default)]
struct Place {
    head: usize,
    waiting: Vec<(usize, Vec<u8>)>,
}

impl Rings {
    pub(crate) fn load(store: &dyn Store) -> Result<Self> {
        let mut rings = Self::default();
        let all = store.entries::<pb::FilesExtEntry>(desc::FILES_EXT, ())?;
        for entry in all.unwrap_or_default() {
            if let Some(place) = entry.message.packet_ring {
                rings.0.entry(place.socket_id).or_default().head = place.head as usize;
            }
            if let Some(frame) = entry.message.packet_frame {
                let place = rings.0.entry(frame.socket_id).or_default();
                place.waiting.push((frame.index as usize, frame.content));
            }
        }
        Ok(rings)
    }
}

/// Brings a new ring to where the old one was, before its socket is bound to what it hears.
pub(crate) fn restore(
    cx: &mut dyn RestoreCx,
    fd: i32,
    socket: BorrowedFd<'_>,
    entry: &pb::PacketSockEntry,
    others: u64,
) -> Result<()> {
    let rings = cx.cached(Rings::load)?;
    let (Some(place), Some(ring)) = (rings.0.get(&entry.id), &entry.rx_ring) else {
        return Ok(());
    };
    let broken = |why: &str| Error::corrupt("criu-rs-files.img", format!("a ring: {why}"));
    let parts = Parts::of(ring, entry.version).ok_or_else(|| broken("it has no frames"))?;
    if place.head >= parts.count {
        return Err(broken("the next frame is behind its end"));
    }
    let memory = memory(socket, ring, others)?;
    if place.head != 0 {
        let loopback = Loopback::open(cx, fd)?;
        let turned = loopback.turn(cx, &parts, &memory, place.head, ring.retire_tmo);
        loopback.close(cx)?;
        turned?;
    }
    for (index, content) in &place.waiting {
        let (status, header) = (
            parts.status(*index),
            parts.status(*index) - parts.at(*index),
        );
        if *index >= parts.count || content.len() > parts.size || content.len() < header + 4 {
            return Err(broken("a frame does not fit in"));
        }
        // In a ring that was full the kernel has this block open now.
        if parts.version == V3 && *index == place.head {
            tracing::warn!("a block of a ring that was full is lost");
            continue;
        }
        let (before, behind) = content.split_at(header);
        memory.put(parts.at(*index), before);
        memory.put(status + 4, &behind[4..behind.len() / 4 * 4]);
        let word = [behind[0], behind[1], behind[2], behind[3]];
        memory.set(status, u32::from_ne_bytes(word));
    }
    Ok(())
}

/// The loopback, on which the socket hears what is sent for it alone.
struct Loopback {
    sender: i32,
    address: Vec<u8>,
}

impl Loopback {
    fn open(cx: &mut dyn RestoreCx, socket: i32) -> Result<Self> {
        let index = if_nametoindex("lo").map_err(|_| no_loopback())?;
        // `struct sockaddr_ll`.
        let family = u16::try_from(libc::AF_PACKET).unwrap_or(0);
        let mut address = [family.to_ne_bytes(), EXPERIMENT.to_be_bytes()].concat();
        address.extend(index.to_ne_bytes());
        address.extend([0, 0, 0, 6]);
        address.resize(20, 0);
        let mut program = Program::new();
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        let sender = program.socket(libc::AF_PACKET, kind, 0);
        let bytes = program.bytes(address.clone());
        program.bind(socket, bytes, address.len());
        let outcome = cx.here().run(&program)?;
        Ok(Self {
            sender: outcome.fd(sender),
            address,
        })
    }

    fn close(&self, cx: &mut dyn RestoreCx) -> Result<()> {
        let mut program = Program::new();
        program.close(self.sender);
        cx.here().run(&program)?;
        Ok(())
    }

    fn send(&self, cx: &mut dyn RestoreCx, mut length: usize) -> Result<()> {
        loop {
            let mut program = Program::new();
            let packet = program.bytes(vec![0; length]);
            let address = program.bytes(self.address.clone());
            let size = self.address.len();
            let sent = program.sendto(self.sender, packet, length, 0, address, size);
            program.tolerate();
            match cx.here().run(&program)?.get(sent) {
                Ok(_) => return Ok(()),
                Err(Errno::EMSGSIZE | Errno::ENOBUFS) if length > SHORT => length /= 2,
                Err(Errno::ENETDOWN | Errno::ENXIO) => return Err(no_loopback()),
                Err(errno) => {
                    return Err(Error::Kernel {
                        call: "sendto(AF_PACKET)",
                        errno,
                    });
                }
            }
        }
    }

    /// Lets the kernel go on to the part that is to come next. All before are free again.
    fn turn(
        &self,
        cx: &mut dyn RestoreCx,
        parts: &Parts,
        memory: &Window,
        head: usize,
        retire: u32,
    ) -> Result<()> {
        let in_blocks = parts.version == V3;
        let patience = PATIENCE + 2 * Duration::from_millis(retire.into());
        let mut at = 0;
        // What somebody else has sent turns the ring as well: then it is another round.
        while at != head
            || parts.is_waiting(memory, at)
            || in_blocks && parts.packets(memory, at) != 0
        {
            let next = (at + 1) % parts.count;
            let start = Instant::now();
            let mut sent = false;
            while !parts.is_waiting(memory, at) {
                // What does not fit into a block comes into the next, and that is to be empty in the end: the last one
                // is left to the kernel's clock.
                let is_last = in_blocks && next == head;
                let fills = in_blocks && !is_last;
                let is_empty = in_blocks && parts.packets(memory, at) == 0;
                if fills || is_empty && !sent || !in_blocks && !sent {
                    self.send(cx, if fills { LONG } else { SHORT })?;
                    sent = true;
                } else {
                    std::thread::sleep(Duration::from_micros(100));
                }
                if start.elapsed() > patience {
                    return Err(Error::unsupported(
                        "a ring does not fill with packets over the loopback",
                        "bring the device lo up, and let nobody drop what comes over it",
                    ));
                }
            }
            memory.set(parts.status(at), 0);
            at = next;
        }
        Ok(())
    }
}

fn no_loopback() -> Error {
    Error::unsupported(
        "the ring of a packet socket is brought to where it was over the loopback, and there is none",
        "bring the device lo up",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(version: u32) -> Parts {
        let ring = pb::PacketRing {
            block_size: 4096,
            block_nr: 4,
            frame_size: 2048,
            frame_nr: 8,
            ..pb::PacketRing::default()
        };
        Parts::of(&ring, version).expect("a ring")
    }

    #[test]
    fn frames_do_not_cross_blocks() {
        let ring = pb::PacketRing {
            block_size: 4096,
            block_nr: 2,
            frame_size: 1536,
            frame_nr: 4,
            ..pb::PacketRing::default()
        };
        let frames = Parts::of(&ring, 1).expect("a ring");
        assert_eq!(
            [0, 1, 2, 3].map(|index| frames.at(index)),
            [0, 1536, 4096, 5632]
        );
        let blocks = Parts::of(&ring, V3).expect("a ring");
        assert_eq!([0, 1].map(|index| blocks.status(index)), [8, 4104]);
        let none = pb::PacketRing::default();
        assert_eq!(Parts::of(&none, 1), None);
    }

    #[test]
    fn the_next_is_behind_the_youngest() {
        let frames = |ages: [u64; 8]| head(&parts(1), &ages, |_| false);
        assert_eq!(frames([0; 8]), 0);
        assert_eq!(frames([5, 6, 7, 0, 0, 0, 0, 0]), 3);
        assert_eq!(frames([15, 16, 7, 8, 9, 10, 11, 12]), 2);
        assert_eq!(frames([5, 6, 7, 8, 9, 10, 11, 12]), 0);
        // Three in one moment, across the end.
        assert_eq!(frames([9, 1, 2, 3, 4, 5, 9, 9]), 1);
        // All of them: one is as good as another.
        assert_eq!(frames([9; 8]), 0);
    }

    #[test]
    fn an_open_block_is_the_youngest() {
        let blocks = |ages: [u64; 4], closed: usize| head(&parts(V3), &ages, |at| at == closed);
        assert_eq!(blocks([5, 6, 3, 4], 0), 1);
        // A ring that is full has none open.
        assert_eq!(blocks([5, 6, 3, 4], 1), 2);
    }
}
