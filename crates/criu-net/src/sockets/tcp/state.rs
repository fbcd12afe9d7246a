//! States of TCP, and what the kernel says of a socket in one.

use std::os::fd::OwnedFd;

use criu_kind::{Error, Result};
use nix::errno::Errno;

use crate::sockets::message::option_at;

// `include/net/tcp_states.h`.
pub(crate) const ESTABLISHED: u32 = 1;
pub(crate) const SYN_SENT: u32 = 2;
pub(crate) const FIN_WAIT1: u32 = 4;
pub(crate) const FIN_WAIT2: u32 = 5;
pub(crate) const CLOSE: u32 = 7;
pub(crate) const CLOSE_WAIT: u32 = 8;
pub(crate) const LAST_ACK: u32 = 9;
pub(crate) const LISTEN: u32 = 10;
pub(crate) const CLOSING: u32 = 11;

/// For people.
pub(crate) fn name(state: u32) -> &'static str {
    match state {
        ESTABLISHED => "ESTABLISHED",
        SYN_SENT => "SYN_SENT",
        3 => "SYN_RECV",
        FIN_WAIT1 => "FIN_WAIT1",
        FIN_WAIT2 => "FIN_WAIT2",
        6 => "TIME_WAIT",
        CLOSE => "CLOSE",
        CLOSE_WAIT => "CLOSE_WAIT",
        LAST_ACK => "LAST_ACK",
        LISTEN => "LISTEN",
        CLOSING => "CLOSING",
        _ => "an unknown state",
    }
}

/// Whether our own end has said that it sends no more, and that is a part of what it has sent.
pub(crate) fn has_sent_fin(state: u32) -> bool {
    [FIN_WAIT1, FIN_WAIT2, CLOSING, LAST_ACK, CLOSE].contains(&state)
}

/// Whether the other end has.
pub(crate) fn has_got_fin(state: u32) -> bool {
    [CLOSE_WAIT, LAST_ACK, CLOSING, CLOSE].contains(&state)
}

/// The first bytes of `struct tcp_info`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpInfo {
    pub(crate) state: u32,
    /// `TCPI_OPT_TIMESTAMPS` 1, `TCPI_OPT_SACK` 2, `TCPI_OPT_WSCALE` 4 …
    pub(crate) options: u32,
    pub(crate) snd_wscale: u32,
    pub(crate) rcv_wscale: u32,
}

/// Asks for them.
pub(crate) fn info(fd: &OwnedFd) -> Result<TcpInfo> {
    let bytes = option_at(fd, (libc::SOL_TCP, libc::TCP_INFO), 8)?;
    let bytes = bytes
        .filter(|bytes| bytes.len() == 8)
        .ok_or(Error::Kernel {
            call: "getsockopt(TCP_INFO)",
            errno: Errno::ENOPROTOOPT,
        })?;
    // Two fields of four bits, in the order in which the machine has them.
    let (low, high) = (bytes[6] & 15, bytes[6] >> 4);
    let (snd, rcv) = if cfg!(target_endian = "little") {
        (low, high)
    } else {
        (high, low)
    };
    Ok(TcpInfo {
        state: bytes[0].into(),
        options: bytes[5].into(),
        snd_wscale: snd.into(),
        rcv_wscale: rcv.into(),
    })
}

/// How many connections wait at a listening socket to be accepted: `tcpi_unacked`.
pub(crate) fn waiting(fd: &OwnedFd) -> Result<u32> {
    const UNACKED: usize = 24;
    let bytes = option_at(fd, (libc::SOL_TCP, libc::TCP_INFO), UNACKED + 4)?.unwrap_or_default();
    let word = bytes
        .get(UNACKED..)
        .and_then(|word| word.try_into().ok())
        .ok_or(Error::Kernel {
            call: "getsockopt(TCP_INFO)",
            errno: Errno::ENOPROTOOPT,
        })?;
    Ok(u32::from_ne_bytes(word))
}
