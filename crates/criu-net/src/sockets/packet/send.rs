//! Where a ring is from which packets go.
//!
//! Nothing in its memory tells which frame the kernel sends next. But of one that cannot be sent, being too long, it says
//! so only if it is that one; so the frames are made such, one after the other, until it does.
//! Not known of sockets with `PACKET_LOSS`: those skip what they cannot send.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use criu_image::pb;
use criu_kind::{Error, RestoreCx, Result};
use criu_tracee::{Local, Program, Site, Window};
use nix::errno::Errno;

use crate::sockets::packet::kind::{V1, V3};
use crate::sockets::packet::ring::{EXPERIMENT, Parts, loopback, no_loopback};

/// `TP_STATUS_AVAILABLE`, `TP_STATUS_SEND_REQUEST`, `TP_STATUS_WRONG_FORMAT`.
const FREE: u32 = 0;
const SEND: u32 = 1;
const WRONG: u32 = 4;
const TOO_LONG: u32 = i32::MAX.cast_unsigned();
/// Enough for a packet: with an ethernet header, and what `PACKET_VNET_HDR` puts before that.
const LEAST: u32 = 32;
const PATIENCE: Duration = Duration::from_secs(3);

/// `tp_len` of a frame.
fn length(parts: &Parts, index: usize) -> usize {
    let within = match parts.version {
        V3 => 16,
        V1 if size_of::<usize>() == 8 => 8,
        _ => 4,
    };
    parts.at(index) + within
}

/// The frame that is sent next; `None`: nobody can tell.
pub(crate) fn head(
    fd: &OwnedFd,
    entry: &pb::PacketSockEntry,
    parts: &Parts,
    memory: &Window,
) -> Result<Option<usize>> {
    let states: Vec<u32> = (0..parts.count)
        .map(|index| memory.get(parts.status(index)))
        .collect();
    if let Some(known) = first_of(&states) {
        return Ok(known);
    }
    if entry.loss {
        return Ok(None);
    }
    let Ok(address) = loopback(EXPERIMENT) else {
        return Ok(None);
    };
    for index in 0..parts.count {
        let places = [parts.status(index), length(parts, index)];
        let former = places.map(|at| memory.get(at));
        memory.set(places[1], TOO_LONG);
        memory.set(places[0], SEND);
        let mut program = Program::new();
        let bytes = program.bytes(address.clone());
        let sent = program.sendto(
            fd.as_raw_fd(),
            0,
            0,
            libc::MSG_DONTWAIT,
            bytes,
            address.len(),
        );
        program.tolerate();
        let outcome = Local.run(&program);
        let is_next = memory.get(places[0]) == WRONG;
        memory.set(places[1], former[1]);
        memory.set(places[0], former[0]);
        match outcome?.get(sent) {
            _ if is_next => return Ok(Some(index)),
            Err(errno) => {
                tracing::warn!(%errno, "where a ring is that sends is not known: it will begin anew");
                return Ok(None);
            }
            Ok(_) => {}
        }
    }
    Ok(None)
}

/// The first of those that are to be sent, if there are any. Frames on their way are as good as sent.
fn first_of(states: &[u32]) -> Option<Option<usize>> {
    let asks = |index: usize| states[index] == SEND;
    let before = |index: usize| (index + states.len() - 1) % states.len();
    let mut starts = (0..states.len()).filter(|index| asks(*index) && !asks(before(*index)));
    match (starts.next(), starts.next()) {
        (Some(first), None) => Some(Some(first)),
        // With others between them nobody can tell, and all of them is the same.
        (Some(_), Some(_)) => Some(None),
        (None, _) => (!states.is_empty() && asks(0)).then_some(None),
    }
}

/// Lets the kernel go on to the frame that is to be sent next, by packets over the loopback that nobody hears.
pub(crate) fn turn(
    cx: &mut dyn RestoreCx,
    fd: i32,
    address: &[u8],
    parts: &Parts,
    memory: &Window,
    head: usize,
) -> Result<()> {
    for index in 0..head {
        memory.set(length(parts, index), LEAST);
        memory.set(parts.status(index), SEND);
    }
    let mut program = Program::new();
    let bytes = program.bytes(address.to_vec());
    let sent = program.sendto(fd, 0, 0, 0, bytes, address.len());
    program.tolerate();
    let outcome = cx.here().run(&program)?;
    outcome.get(sent).map_err(|errno| match errno {
        Errno::ENETDOWN | Errno::ENXIO => no_loopback(),
        errno => Error::Kernel {
            call: "sendto(PACKET_TX_RING)",
            errno,
        },
    })?;
    let start = Instant::now();
    for index in 0..head {
        while memory.get(parts.status(index)) != FREE {
            if start.elapsed() > PATIENCE {
                return Err(Error::unsupported(
                    "the ring of a packet socket does not send over the loopback",
                    "bring the device lo up, and let nobody drop what goes over it",
                ));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        memory.set(length(parts, index), 0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_sent_begins_with_the_next() {
        assert_eq!(first_of(&[0, 0, 0]), None);
        assert_eq!(first_of(&[0, 1, 1]), Some(Some(1)));
        assert_eq!(first_of(&[1, 0, 1]), Some(Some(2)));
        assert_eq!(first_of(&[2, 1, 0]), Some(Some(1)));
        assert_eq!(first_of(&[1, 1, 1]), Some(None));
        assert_eq!(first_of(&[1, 0, 1, 0]), Some(None));
    }
}
