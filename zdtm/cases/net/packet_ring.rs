//! Rings of packet sockets: memory through which packets come (PACKET_RX_RING) and go (PACKET_TX_RING).

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use zdtm::{Case, Child, Mapping, Result, check, check_eq, ret};

use super::packet::{SOL_PACKET, bound, made};
use super::tcp_options::{get, set};

pub(crate) const CASES: &[Case] = &[
    Case::new("packet-ring-mapped", mapped).exclusive(),
    Case::new("packet-ring-turned", turned).exclusive(),
    Case::new("packet-ring-round", round).exclusive(),
    Case::new("packet-ring-full", full).exclusive(),
    Case::new("packet-ring-blocks", blocks).exclusive(),
    Case::new("packet-ring-both", both).exclusive(),
    Case::new("packet-ring-unsent", unsent).exclusive(),
    Case::new("packet-ring-inherited", inherited).exclusive(),
    Case::new("packet-ring-part", part)
        .refused("a ring can be mapped only as a whole")
        .exclusive(),
    Case::new("packet-ring-fanout", fanout).exclusive(),
];

/// An ethernet protocol for experiments, in the order of the network: nobody else has it.
const OURS: i32 = 0x88b5u16.to_be() as i32;
const VERSION: i32 = 10;
const RX_RING: i32 = 5;
const TX_RING: i32 = 13;
const FANOUT: i32 = 18;
/// A block is a page, of two frames.
fn block() -> usize {
    zdtm::page_size()
}

fn frame_size() -> usize {
    block() / 2
}

/// What a program says of a frame that the kernel may have, and the other way round.
const KERNEL: u32 = 0;
const USER: u32 = 1;
const SEND_REQUEST: u32 = 1;

/// A ring of this many frames, of TPACKET_V2.
fn ring(socket: &OwnedFd, name: i32, frames: usize) -> Result<()> {
    if get(socket, SOL_PACKET, VERSION)? != 1 {
        set(socket, SOL_PACKET, VERSION, 1)?;
    }
    let words = [
        block(),
        frames * frame_size() / block(),
        frame_size(),
        frames,
    ];
    let words = words.map(|word| u32::try_from(word).expect("small"));
    // SAFETY: `struct tpacket_req`: four words.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            SOL_PACKET,
            name,
            words.as_ptr().cast(),
            16,
        )
    };
    Ok(ret(set).map(drop)?)
}

fn map(socket: &OwnedFd, frames: usize) -> Result<Mapping> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    Mapping::new(
        frames * frame_size(),
        access,
        libc::MAP_SHARED,
        socket.as_raw_fd(),
        0,
    )
}

/// `tp_status` of `struct tpacket2_hdr`.
fn status(ring: &Mapping, frame: usize) -> &AtomicU32 {
    &ring.words()[frame * frame_size() / 4]
}

/// What is in a frame that the kernel gives, within some seconds; it gets the frame back.
fn received(ring: &Mapping, frame: usize) -> Result<Vec<u8>> {
    for _ in 0..2000 {
        let now = status(ring, frame).load(Ordering::Acquire);
        if now & USER != 0 {
            let bytes = &ring.bytes()[frame * frame_size()..][..frame_size()];
            let half = |at: usize| usize::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
            let length = u32::from_ne_bytes(bytes[8..12].try_into()?);
            // `tp_net` of the header: where the packet begins behind what the device put before it.
            let packet = bytes[half(14)..][..usize::try_from(length)?].to_vec();
            status(ring, frame).store(KERNEL, Ordering::Release);
            return Ok(packet);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    zdtm::bail!("nothing comes in frame {frame}")
}

/// `struct sockaddr_ll` of the loopback.
fn loopback() -> Result<[u8; 20]> {
    let mut address = [0u8; 20];
    address[..2].copy_from_slice(&17u16.to_ne_bytes());
    address[2..4].copy_from_slice(&u16::try_from(OURS)?.to_ne_bytes());
    address[4..8].copy_from_slice(&1u32.to_ne_bytes());
    address[11] = 6;
    Ok(address)
}

/// Sends a packet over the loopback.
fn send(word: &[u8]) -> Result<()> {
    let socket = bound(0)?;
    let address = loopback()?;
    // SAFETY: bytes and an address, as long as said.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            word.as_ptr().cast(),
            word.len(),
            0,
            address.as_ptr().cast(),
            20,
        )
    };
    Errno::result(sent)?;
    Ok(())
}

/// Whatever comes after the restore is in the memory.
fn mapped() -> Result<()> {
    let socket = bound(OURS)?;
    ring(&socket, RX_RING, 8)?;
    let memory = map(&socket, 8)?;
    zdtm::checkpoint()?;
    for frame in 0..20 {
        let word = format!("packet {frame}");
        send(word.as_bytes())?;
        check_eq!(received(&memory, frame % 8)?, word.as_bytes());
    }
    Ok(())
}

/// Somewhere in the middle, with some that nobody has read yet.
fn turned() -> Result<()> {
    go_on(&bound(OURS)?, 8, 5)
}

/// It has gone round more than once, and is bound to no device.
fn round() -> Result<()> {
    go_on(&made(OURS)?, 6, 15)
}

/// So many are read before; two more wait meanwhile, and the next come behind them.
fn go_on(socket: &OwnedFd, frames: usize, before: usize) -> Result<()> {
    ring(socket, RX_RING, frames)?;
    let memory = map(socket, frames)?;
    let word = |index: usize| format!("packet {index}");
    for index in 0..before {
        send(word(index).as_bytes())?;
        check_eq!(received(&memory, index % frames)?, word(index).as_bytes());
    }
    for index in before..before + 2 {
        send(word(index).as_bytes())?;
    }
    let others: Vec<u32> = (0..frames)
        .map(|frame| status(&memory, frame).load(Ordering::Acquire) & USER)
        .collect();
    zdtm::checkpoint()?;
    let after: Vec<u32> = (0..frames)
        .map(|frame| status(&memory, frame).load(Ordering::Acquire) & USER)
        .collect();
    check_eq!(after, others);
    for index in before..before + 2 {
        check_eq!(received(&memory, index % frames)?, word(index).as_bytes());
    }
    for index in before + 2..before + 20 {
        send(word(index).as_bytes())?;
        check_eq!(received(&memory, index % frames)?, word(index).as_bytes());
    }
    Ok(())
}

/// All wait to be read, and the one that comes next finds no room.
fn full() -> Result<()> {
    let socket = bound(OURS)?;
    ring(&socket, RX_RING, 4)?;
    let memory = map(&socket, 4)?;
    for word in [b"one", b"two"] {
        send(word)?;
    }
    check_eq!(received(&memory, 0)?, b"one");
    check_eq!(received(&memory, 1)?, b"two");
    for word in [b"six", b"ten", b"old", b"new"] {
        send(word)?;
    }
    zdtm::checkpoint()?;
    for (frame, word) in [(2, b"six"), (3, b"ten"), (0, b"old"), (1, b"new")] {
        check_eq!(received(&memory, frame)?, word);
    }
    send(b"end")?;
    check_eq!(received(&memory, 2)?, b"end");
    Ok(())
}

/// A ring of TPACKET_V3: blocks of packets, which the kernel closes after a while.
fn blocks() -> Result<()> {
    const BLOCKS: usize = 5;
    const SIZE: usize = 4096 * 4;
    let socket = bound(OURS)?;
    set(&socket, SOL_PACKET, VERSION, 2)?;
    // `struct tpacket_req3`: a block is closed after 20 ms.
    let words = [SIZE, BLOCKS, 2048, BLOCKS * SIZE / 2048, 20, 0, 0];
    let words = words.map(|word| u32::try_from(word).expect("small"));
    // SAFETY: seven words.
    let made = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            SOL_PACKET,
            RX_RING,
            words.as_ptr().cast(),
            28,
        )
    };
    ret(made)?;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let memory = Mapping::new(
        BLOCKS * SIZE,
        access,
        libc::MAP_SHARED,
        socket.as_raw_fd(),
        0,
    )?;
    let field = |block: usize, at: usize| &memory.words()[(block * SIZE + at) / 4];
    // The first packet of a block that the kernel has closed; it gets it back.
    let received = |block: usize| {
        for _ in 0..3000 {
            if field(block, 8).load(Ordering::Acquire) & USER != 0 {
                let first = block * SIZE + field(block, 16).load(Ordering::Relaxed) as usize;
                let bytes = &memory.bytes()[first..];
                let length = u32::from_ne_bytes(bytes[12..16].try_into()?) as usize;
                let net = usize::from(u16::from_ne_bytes([bytes[26], bytes[27]]));
                let packet = bytes[net..][..length].to_vec();
                field(block, 8).store(KERNEL, Ordering::Release);
                return Ok(packet);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        zdtm::bail!("block {block} is not closed")
    };
    for block in 0..7 {
        send(format!("block {block}").as_bytes())?;
        check_eq!(
            received(block % BLOCKS)?,
            format!("block {block}").as_bytes()
        );
    }
    send(b"unread")?;
    let open = 7 % BLOCKS;
    while field(open, 8).load(Ordering::Acquire) & USER == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    zdtm::checkpoint()?;
    check_eq!(received(open)?, b"unread");
    for block in 8..15 {
        send(format!("block {block}").as_bytes())?;
        check_eq!(
            received(block % BLOCKS)?,
            format!("block {block}").as_bytes()
        );
    }
    Ok(())
}

/// Frames of a ring to send.
struct Sending {
    socket: OwnedFd,
    frames: Mapping,
}

impl Sending {
    const FRAMES: usize = 6;

    /// One to receive, in which nothing comes, and one to send, in one mapping.
    fn new() -> Result<Self> {
        let socket = bound(0)?;
        ring(&socket, RX_RING, 4)?;
        ring(&socket, TX_RING, Self::FRAMES)?;
        let memory = map(&socket, 4 + Self::FRAMES)?;
        let frames = memory.part(4 * frame_size(), Self::FRAMES * frame_size());
        Ok(Self { socket, frames })
    }

    fn fill(&self, index: usize) -> Result<Vec<u8>> {
        let word = format!("packet {index}").into_bytes();
        let frame = &mut self.frames.bytes()[index % Self::FRAMES * frame_size()..][..frame_size()];
        frame[4..8].copy_from_slice(&u32::try_from(word.len())?.to_ne_bytes());
        // Behind the header, `TPACKET2_HDRLEN - sizeof(struct sockaddr_ll)`.
        frame[32..][..word.len()].copy_from_slice(&word);
        status(&self.frames, index % Self::FRAMES).store(SEND_REQUEST, Ordering::Release);
        Ok(word)
    }

    /// Sends what is filled; how many bytes that were.
    fn send(&self) -> Result<usize> {
        let address = loopback()?;
        // SAFETY: no bytes, and an address as long as said.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                std::ptr::null(),
                0,
                0,
                address.as_ptr().cast(),
                20,
            )
        };
        Ok(usize::try_from(Errno::result(sent)?)?)
    }
}

/// One to receive and one to send, in one mapping: the next frame is the next one afterwards.
fn both() -> Result<()> {
    let (sending, listener) = (Sending::new()?, bound(OURS)?);
    ring(&listener, RX_RING, 2)?;
    let heard = map(&listener, 2)?;
    let go_on = |indices: std::ops::Range<usize>| {
        for index in indices {
            let word = sending.fill(index)?;
            check_eq!(sending.send()?, word.len());
            check_eq!(received(&heard, index % 2)?, word);
        }
        Ok(())
    };
    go_on(0..9)?;
    zdtm::checkpoint()?;
    go_on(9..20)
}

/// What the program has filled, but not sent.
fn unsent() -> Result<()> {
    let (sending, listener) = (Sending::new()?, bound(OURS)?);
    ring(&listener, RX_RING, 8)?;
    let heard = map(&listener, 8)?;
    for index in 0..4 {
        let word = sending.fill(index)?;
        check_eq!(sending.send()?, word.len());
        check_eq!(received(&heard, index)?, word);
    }
    let words = [4, 5, 6].map(|index| sending.fill(index));
    zdtm::checkpoint()?;
    check_eq!(sending.send()?, 3 * "packet 4".len());
    for (index, word) in (4..).zip(words) {
        check_eq!(received(&heard, index)?, word?);
    }
    Ok(())
}

/// A child has the memory, but not the socket.
fn inherited() -> Result<()> {
    let socket = bound(OURS)?;
    ring(&socket, RX_RING, 4)?;
    let memory = map(&socket, 4)?;
    let (number, view) = (socket.as_raw_fd(), memory.part(0, 4 * frame_size()));
    let child = Child::spawn("child", move || {
        nix::unistd::close(number)?;
        Child::checkpoint();
        check_eq!(received(&view, 0)?, b"to both");
        Ok(())
    })?;
    zdtm::checkpoint()?;
    send(b"to both")?;
    child.finish()?;
    send(b"to one")?;
    check_eq!(received(&memory, 1)?, b"to one");
    Ok(())
}

/// A part of the memory is read only, and so a mapping of its own.
fn part() -> Result<()> {
    let socket = bound(OURS)?;
    ring(&socket, RX_RING, 4)?;
    let memory = map(&socket, 4)?;
    memory.part(0, block()).protect(libc::PROT_READ)?;
    zdtm::checkpoint()?;
    send(b"it goes on")?;
    check!(status(&memory, 0).load(Ordering::Acquire) & USER != 0);
    Ok(())
}

/// Two that share what comes, each with a ring.
fn fanout() -> Result<()> {
    let mut members = Vec::new();
    for _ in 0..2 {
        let socket = bound(OURS)?;
        ring(&socket, RX_RING, 4)?;
        let memory = map(&socket, 4)?;
        // `PACKET_FANOUT_LB`: in turn.
        set(&socket, SOL_PACKET, FANOUT, 1 << 16 | 4711)?;
        members.push((socket, memory));
    }
    zdtm::checkpoint()?;
    for word in [b"one", b"two", b"six", b"ten"] {
        send(word)?;
    }
    for (_, memory) in &members {
        check_eq!(received(memory, 0)?.len(), 3);
        check_eq!(received(memory, 1)?.len(), 3);
    }
    Ok(())
}
