//! Other ends on this machine are told at once that they are heard again.
//!
//! What they have sent while the connection was locked was refused on its way out, so they try again later and later.
//! A segment in order makes them try now; the kernel sends one when something old comes in. Others, on other machines,
//! believe that what they have sent was lost: those only time helps.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr, UdpSocket};

use criu_image::pb;
use criu_kind::Result;
use criu_tracee::Local;

use crate::sockets::inet::packet::{ACK, Segment, inject_at};
use crate::sockets::tcp::state::{CLOSE, SYN_SENT};

/// Something old, to a socket of ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nudge {
    local: SocketAddr,
    remote: SocketAddr,
    segment: Segment,
}

impl Nudge {
    /// For a connection; `None`: there is nobody to be told.
    pub(crate) fn of(
        state: u32,
        entry: &pb::TcpStreamEntry,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Option<Self> {
        // What comes before the last that was confirmed is old.
        let confirmed = entry.rcv_wup.unwrap_or(entry.inq_seq);
        let segment = Segment {
            sequence: confirmed.wrapping_sub(1),
            acknowledged: entry.outq_seq.wrapping_sub(entry.outq_len),
            flags: ACK,
            window: u16::try_from(entry.snd_wnd() >> entry.snd_wscale.min(14)).unwrap_or(u16::MAX),
        };
        (![SYN_SENT, CLOSE].contains(&state)).then_some(Self {
            local,
            remote,
            segment,
        })
    }
}

/// Brings them in, where the other end is on this machine.
pub(crate) fn send(nudges: &[Nudge]) -> Result<()> {
    let mut here: HashMap<IpAddr, bool> = HashMap::new();
    let mut packets: BTreeMap<IpAddr, Vec<Vec<u8>>> = BTreeMap::new();
    for one in nudges {
        let address = one.remote.ip().to_canonical();
        let is_here = *here
            .entry(address)
            .or_insert_with(|| UdpSocket::bind((address, 0)).is_ok());
        if is_here {
            let packet = one.segment.packet(&one.remote, &one.local);
            let all = packets.entry(one.local.ip().to_canonical()).or_default();
            all.push(packet);
        }
    }
    for (to, all) in packets {
        inject_at(&mut Local, &SocketAddr::new(to, 0), &all)?;
    }
    Ok(())
}
