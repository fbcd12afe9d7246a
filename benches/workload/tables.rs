//! When tables of nf_tables come and go: the kernel tells whoever listens, so it is seen of any program.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

// `include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h`: a message of nf_tables, and the group of them.
const NEW_TABLE: u16 = 10 << 8;
const DEL_TABLE: u16 = 10 << 8 | 2;
const GROUP: u32 = 1 << (7 - 1);
/// A lock of many connections is as many messages.
const ROOM: usize = 64 << 20;
/// How long it takes to see that nobody waits for more.
const PATIENCE: TimeVal = TimeVal::new(0, 10_000);

/// What was seen, from the beginning on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// When the first table was made.
    pub(crate) made: Option<Duration>,
    /// When the last was removed.
    pub(crate) gone: Option<Duration>,
}

/// Somebody who listens.
#[derive(Debug)]
pub(crate) struct Watch {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Seen>>,
}

impl Watch {
    /// From now on; times are since `start`.
    pub(crate) fn start(start: Instant) -> anyhow::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
        setsockopt(&socket, sockopt::RcvBufForce, &ROOM)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &PATIENCE)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let thread = std::thread::spawn(move || listen(&socket, start, &over));
        Ok(Self { is_over, thread })
    }

    /// No more will happen.
    pub(crate) fn end(self) -> anyhow::Result<Seen> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("a thread died"))?
    }
}

/// Until there is nothing to hear and nothing to come.
fn listen(socket: &OwnedFd, start: Instant, is_over: &AtomicBool) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    let mut bytes = vec![0; 64 << 10];
    loop {
        let was_over = is_over.load(Ordering::Relaxed);
        let mut room = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg::<()>(socket.as_raw_fd(), &mut room, None, MsgFlags::empty());
        let length = match got.map(|message| message.bytes) {
            Ok(length) => length,
            Err(Errno::EAGAIN) if was_over => return Ok(seen),
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let now = start.elapsed();
        for kind in kinds(&bytes[..length]) {
            match kind {
                NEW_TABLE => _ = seen.made.get_or_insert(now),
                DEL_TABLE => seen.gone = Some(now),
                _ => {}
            }
        }
    }
}

/// The types of the messages in it.
fn kinds(mut bytes: &[u8]) -> Vec<u16> {
    let mut kinds = Vec::new();
    while let (Some(length), Some(kind)) = (bytes.first_chunk(), bytes.get(4..6)) {
        let length = u32::from_ne_bytes(*length) as usize;
        kinds.push(u16::from_ne_bytes([kind[0], kind[1]]));
        let next = length.max(16).next_multiple_of(4);
        bytes = bytes.get(next..).unwrap_or_default();
    }
    kinds
}
