//! Where the rings of a packet socket are, and what waits in them.
//!
//! A program and the kernel go round in it, each by a count of its own that it tells nobody. What the kernel has written
//! says it: frames have times, and blocks of TPACKET_V3 running numbers. A new ring begins with its first frame; the
//! kernel is brought to the one that comes next by packets over the loopback, of a protocol that nobody has.
//! Not preserved: numbers of blocks, which begin anew; a block that the kernel has not closed yet.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{DumpCx, Error, RestoreCx, Result};
use criu_tracee::{Program, Window, copy_fd};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use crate::sockets::packet::kind::{V1, V3};
use crate::sockets::packet::send;

/// Ethernet protocols for experiments on one machine: `ETH_P_802_EX1` and its twin. Packets are of the first one.
pub(crate) const EXPERIMENT: u16 = 0x88b5;
const SILENCE: u16 = 0x88b6;
/// `TP_STATUS_USER`: it is the program's.
const USER: u32 = 1;
/// What fits over the loopback; a short one for who counts packets, a long one for who fills blocks.
const SHORT: usize = 16;
const LONG: usize = 60_000;
/// How long a packet may take over the loopback, and a block to be closed beyond its own time.
const PATIENCE: Duration = Duration::from_secs(3);

/// A ring as it is cut into parts that go from hand to hand: frames, or blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) count: usize,
    size: usize,
    /// How many are side by side in a block, and how large that is.
    per_block: usize,
    block: usize,
    /// Where the first is.
    first: usize,
    pub(crate) version: u32,
    /// What comes to a ring of TPACKET_V3 comes in blocks.
    in_blocks: bool,
}

impl Parts {
    fn receiving(entry: &pb::PacketSockEntry) -> Option<Self> {
        let in_blocks = entry.version == V3;
        Self::of(entry.rx_ring.as_ref()?, entry.version, in_blocks, 0)
    }

    /// It is mapped behind the other one.
    fn sending(entry: &pb::PacketSockEntry) -> Option<Self> {
        let first = usize::try_from(entry.rx_ring.as_ref().map_or(0, size_of_ring));
        Self::of(entry.tx_ring.as_ref()?, entry.version, false, first.ok()?)
    }

    fn of(ring: &pb::PacketRing, version: u32, in_blocks: bool, first: usize) -> Option<Self> {
        let block = ring.block_size as usize;
        let (count, size) = if in_blocks {
            (ring.block_nr, block)
        } else {
            (ring.frame_nr, ring.frame_size as usize)
        };
        let per_block = block.checked_div(size)?;
        let parts = Self {
            count: count as usize,
            size,
            per_block,
            block,
            first,
            version,
            in_blocks,
        };
        // As the kernel wants them.
        let fits = count > 0 && per_block > 0 && size.is_multiple_of(16) && size >= 48;
        fits.then_some(parts)
    }

    pub(crate) fn at(&self, index: usize) -> usize {
        self.first + index / self.per_block * self.block + index % self.per_block * self.size
    }

    /// `tp_status`; of a block `block_status`.
    pub(crate) fn status(&self, index: usize) -> usize {
        let within = match self.version {
            V3 if self.in_blocks => 8,
            V3 => 20,
            _ => 0,
        };
        self.at(index) + within
    }

    /// It is the program's; of a ring that sends: it is to be sent.
    pub(crate) fn is_waiting(&self, memory: &Window, index: usize) -> bool {
        memory.get(self.status(index)) & USER != 0
    }

    /// Where it is: seconds and less; of a block the number, whose low word comes first on the machines that there are.
    fn age_words(&self, index: usize) -> [usize; 2] {
        let within = match self.version {
            V3 => [28, 24],
            V1 if size_of::<usize>() == 8 => [20, 24],
            _ => [16, 20],
        };
        within.map(|at| self.at(index) + at)
    }

    /// Grows from one to the next that the kernel fills; 0: it never has.
    fn age(&self, memory: &Window, index: usize) -> u64 {
        let [high, low] = self.age_words(index);
        u64::from(memory.get(high)) << 32 | u64::from(memory.get(low))
    }

    fn set_age(&self, memory: &Window, index: usize, age: u64) {
        let [high, low] = self.age_words(index);
        let half = |shift: u32| u32::try_from(age >> shift & 0xffff_ffff).unwrap_or(0);
        memory.set(high, half(32));
        memory.set(low, half(0));
    }

    /// How many packets are in a block.
    fn packets(&self, memory: &Window, index: usize) -> u32 {
        memory.get(self.at(index) + 12)
    }

    /// What the program has of it: of a block as much as is in use.
    fn content(&self, memory: &Window, index: usize) -> Vec<u8> {
        let length = if self.in_blocks {
            memory.get(self.at(index) + 20) as usize
        } else {
            self.size
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
        Some(last) if parts.in_blocks && !is_waiting(last) => last,
        Some(last) => next(last),
        None => 0,
    }
}

/// Both rings, as a program would see them.
fn memory(fd: &OwnedFd, entry: &pb::PacketSockEntry) -> Result<Window> {
    let size = [&entry.rx_ring, &entry.tx_ring];
    let size: u64 = size.into_iter().flatten().map(size_of_ring).sum();
    let size = usize::try_from(size).map_err(|_| Error::Kernel {
        call: "mmap",
        errno: Errno::EOVERFLOW,
    })?;
    Ok(Window::map(fd.as_fd(), size, 0)?)
}

/// Bytes of a ring.
pub(crate) fn size_of_ring(ring: &pb::PacketRing) -> u64 {
    u64::from(ring.block_size) * u64::from(ring.block_nr)
}

/// Writes where rings are that are not at their beginning, and what waits in them.
pub(crate) fn keep(cx: &mut dyn DumpCx, fd: &OwnedFd, entry: &pb::PacketSockEntry) -> Result<()> {
    let (receiving, sending) = (Parts::receiving(entry), Parts::sending(entry));
    if receiving.is_none() && sending.is_none() {
        return Ok(());
    }
    let memory = memory(fd, entry)?;
    let mut place = pb::PacketRingEntry {
        socket_id: entry.id,
        ..pb::PacketRingEntry::default()
    };
    if let Some(parts) = &receiving {
        let ages = (0..parts.count).map(|index| parts.age(&memory, index));
        let is_waiting = |index| parts.is_waiting(&memory, index);
        place.head = some(head(parts, &ages.collect::<Vec<_>>(), is_waiting));
    }
    if let Some(parts) = &sending {
        place.send_head = send::head(fd, entry, parts, &memory)?.and_then(some);
    }
    if place.head.is_some() || place.send_head.is_some() {
        let ext = pb::FilesExtEntry {
            packet_ring: Some(place),
            ..pb::FilesExtEntry::default()
        };
        cx.append(desc::FILES_EXT, (), &ext, &[])?;
    }
    for (parts, sends) in [(receiving, None), (sending, Some(true))] {
        let Some(parts) = parts else { continue };
        for index in (0..parts.count).filter(|index| parts.is_waiting(&memory, *index)) {
            let frame = pb::PacketFrameEntry {
                socket_id: entry.id,
                index: u32::try_from(index).unwrap_or(u32::MAX),
                content: parts.content(&memory, index),
                sends,
            };
            let ext = pb::FilesExtEntry {
                packet_frame: Some(frame),
                ..pb::FilesExtEntry::default()
            };
            cx.append(desc::FILES_EXT, (), &ext, &[])?;
        }
    }
    Ok(())
}

/// A place that is not the first.
fn some(index: usize) -> Option<u32> {
    u32::try_from(index).ok().filter(|index| *index != 0)
}

/// What is known of the rings of a dump, by the id of the socket.
#[derive(Debug, Default)]
pub(crate) struct Rings(HashMap<u32, Place>);

/// Where they are.
#[derive(Clone, Debug, Default)]
struct Place {
    head: usize,
    send_head: usize,
    waiting: Vec<pb::PacketFrameEntry>,
}

impl Rings {
    pub(crate) fn load(store: &dyn Store) -> Result<Self> {
        let mut rings = Self::default();
        let all = store.entries::<pb::FilesExtEntry>(desc::FILES_EXT, ())?;
        for entry in all.unwrap_or_default() {
            if let Some(known) = entry.message.packet_ring {
                let place = rings.0.entry(known.socket_id).or_default();
                place.head = known.head() as usize;
                place.send_head = known.send_head() as usize;
            }
            if let Some(frame) = entry.message.packet_frame {
                let place = rings.0.entry(frame.socket_id).or_default();
                place.waiting.push(frame);
            }
        }
        Ok(rings)
    }
}

/// Brings new rings to where the old ones were, before their socket is bound to what it hears.
pub(crate) fn restore(cx: &mut dyn RestoreCx, fd: i32, entry: &pb::PacketSockEntry) -> Result<()> {
    let rings = cx.cached(Rings::load)?;
    let Some(place) = rings.0.get(&entry.id) else {
        return Ok(());
    };
    let broken = |why: &str| Error::corrupt("criu-rs-files.img", format!("a ring: {why}"));
    let (receiving, sending) = (Parts::receiving(entry), Parts::sending(entry));
    let memory = memory(&copy_fd(fd)?, entry)?;
    let retire = entry.rx_ring.map_or(0, |ring| ring.retire_tmo);
    // Without a protocol nothing comes, and the ring is at its beginning.
    for (parts, head, sends) in [
        (&receiving, place.head, false),
        (&sending, place.send_head, true),
    ] {
        if head == 0 || !sends && entry.protocol == 0 {
            continue;
        }
        let parts = parts.as_ref().filter(|parts| head < parts.count);
        let parts = parts.ok_or_else(|| broken("the next frame is behind its end"))?;
        let loopback = Loopback::open(cx)?;
        let turned = if sends {
            send::turn(cx, fd, &loopback.address, parts, &memory, head)
        } else {
            loopback.turn(cx, fd, parts, &memory, head, retire)
        };
        loopback.close(cx)?;
        turned?;
    }
    for frame in &place.waiting {
        let parts = if frame.sends() { &sending } else { &receiving };
        let (index, content) = (frame.index as usize, &frame.content);
        let parts = parts.as_ref().filter(|parts| index < parts.count);
        let parts = parts.ok_or_else(|| broken("a frame is behind its end"))?;
        let (status, header) = (parts.status(index), parts.status(index) - parts.at(index));
        if content.len() > parts.size || content.len() < header + 4 {
            return Err(broken("a frame does not fit in"));
        }
        // In a ring that was full the kernel has this block open now.
        if parts.in_blocks && index == place.head {
            tracing::warn!("a block of a ring that was full is lost");
            continue;
        }
        let (before, behind) = content.split_at(header);
        memory.put(parts.at(index), before);
        memory.put(status + 4, &behind[4..behind.len() / 4 * 4]);
        let word = [behind[0], behind[1], behind[2], behind[3]];
        memory.set(status, u32::from_ne_bytes(word));
    }
    if let Some(parts) = &receiving {
        date(parts, &memory, place.head);
    }
    Ok(())
}

/// Makes the part before the next one the youngest, for a dump to come. What turned the ring is younger than what waits.
fn date(parts: &Parts, memory: &Window, head: usize) {
    let waiting = |index: &usize| parts.is_waiting(memory, *index);
    if parts.in_blocks {
        // Blocks that wait get numbers that those of the kernel follow.
        let number = parts.age(memory, head);
        for index in (0..parts.count).filter(waiting) {
            let back = (head + parts.count - index) % parts.count;
            parts.set_age(memory, index, number.saturating_sub(back as u64));
        }
        return;
    }
    let youngest = (0..parts.count)
        .filter(waiting)
        .map(|index| parts.age(memory, index))
        .max();
    let last = (head + parts.count - 1) % parts.count;
    for index in (0..parts.count).filter(|index| !waiting(index)) {
        let is_last = index == last && (head != 0 || youngest.is_some());
        let age = if is_last {
            youngest.unwrap_or(0) + 1
        } else {
            0
        };
        parts.set_age(memory, index, age);
    }
}

/// The loopback, on which the socket hears what is sent for it alone.
struct Loopback {
    sender: i32,
    address: Vec<u8>,
}

impl Loopback {
    fn open(cx: &mut dyn RestoreCx) -> Result<Self> {
        let address = loopback(EXPERIMENT)?;
        let mut program = Program::new();
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        let sender = program.socket(libc::AF_PACKET, kind, 0);
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
        socket: i32,
        parts: &Parts,
        memory: &Window,
        head: usize,
        retire: u32,
    ) -> Result<()> {
        listen(cx, socket, &self.address)?;
        let in_blocks = parts.in_blocks;
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
                    // What is longer than a block would be cut, and the kernel says a line about it.
                    let long = LONG.min(parts.size / 2);
                    self.send(cx, if fills { long } else { SHORT })?;
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
        // What others are turned by is not for it.
        listen(cx, socket, &loopback(SILENCE)?)
    }
}

fn listen(cx: &mut dyn RestoreCx, socket: i32, address: &[u8]) -> Result<()> {
    let mut program = Program::new();
    let bytes = program.bytes(address.to_vec());
    program.bind(socket, bytes, address.len());
    cx.here().run(&program)?;
    Ok(())
}

/// `struct sockaddr_ll` of it.
pub(crate) fn loopback(protocol: u16) -> Result<Vec<u8>> {
    let index = if_nametoindex("lo").map_err(|_| no_loopback())?;
    let family = u16::try_from(libc::AF_PACKET).unwrap_or(0);
    let mut address = [family.to_ne_bytes(), protocol.to_be_bytes()].concat();
    address.extend(index.to_ne_bytes());
    address.extend([0, 0, 0, 6]);
    address.resize(20, 0);
    Ok(address)
}

pub(crate) fn no_loopback() -> Error {
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
        Parts::of(&ring, version, version == V3, 0).expect("a ring")
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
        let frames = Parts::of(&ring, 1, false, 0).expect("a ring");
        assert_eq!(
            [0, 1, 2, 3].map(|index| frames.at(index)),
            [0, 1536, 4096, 5632]
        );
        let blocks = Parts::of(&ring, V3, true, 0).expect("a ring");
        assert_eq!([0, 1].map(|index| blocks.status(index)), [8, 4104]);
        let sending = Parts::of(&ring, V3, false, 8192).expect("a ring");
        assert_eq!([0, 2].map(|index| sending.status(index)), [8212, 12308]);
        let none = pb::PacketRing::default();
        assert_eq!(Parts::of(&none, 1, false, 0), None);
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
    fn a_ring_that_was_turned_tells_where_it_is() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 14).expect("room");
        let memory = Window::map(file.as_fd(), 1 << 14, 0).expect("memory");
        for version in [V1, 1, V3] {
            let parts = parts(version);
            for (next, unread) in [(0, 1), (3, 0), (3, 2), (1, 3), (2, 3), (2, parts.count - 1)] {
                // As after a turn: what the kernel has filled is younger than what waits.
                for index in 0..parts.count {
                    parts.set_age(&memory, index, 1000 + index as u64);
                    memory.set(parts.status(index), 0);
                }
                parts.set_age(&memory, next, if parts.in_blocks { 2000 } else { 5 });
                for back in 1..=unread {
                    let index = (next + parts.count - back) % parts.count;
                    parts.set_age(&memory, index, 100 - back as u64);
                    memory.set(parts.status(index), USER);
                }
                date(&parts, &memory, next);
                let ages = (0..parts.count).map(|index| parts.age(&memory, index));
                let ages: Vec<u64> = ages.collect();
                let found = |is_waiting| head(&parts, &ages, |_| is_waiting);
                // Whether or not the program reads what waits until the next dump; a block that is open is none of it.
                assert_eq!(found(false), next, "{version} {next} {unread}");
                assert!(parts.in_blocks || found(true) == next);
            }
        }
    }

    #[test]
    fn an_open_block_is_the_youngest() {
        let blocks = |ages: [u64; 4], closed: usize| head(&parts(V3), &ages, |at| at == closed);
        assert_eq!(blocks([5, 6, 3, 4], 0), 1);
        // A ring that is full has none open.
        assert_eq!(blocks([5, 6, 3, 4], 1), 2);
    }
}
