//! When tables of nf_tables come and go, so it is seen of any program.
//!
//! The kernel would tell whoever listens, but of each connection in a table too, and then most of the time goes into
//! that. So it is asked again and again which tables there are.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvmsg, send,
    socket,
};

// `include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h`: messages of nf_tables.
const NEW_TABLE: u16 = 10 << 8;
const GET_TABLE: u16 = 10 << 8 | 1;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST` and `NLM_F_DUMP`.
const ALL: u16 = 0x301;
const PAUSE: Duration = Duration::from_millis(2);

/// What was seen, from the beginning on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// When there was one more than at first.
    pub(crate) made: Option<Duration>,
    /// When there was one less than at first.
    pub(crate) gone: Option<Duration>,
}

/// Somebody who looks.
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
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let first = count(&socket)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let thread = std::thread::spawn(move || look(&socket, first, start, &over));
        Ok(Self { is_over, thread })
    }

    /// No more will happen.
    pub(crate) fn end(self) -> anyhow::Result<Seen> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("a thread died"))?
    }
}

fn look(
    socket: &OwnedFd,
    first: usize,
    start: Instant,
    is_over: &AtomicBool,
) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    loop {
        let was_over = is_over.load(Ordering::Relaxed);
        let count = count(socket)?;
        let now = start.elapsed();
        match count.cmp(&first) {
            Greater => _ = seen.made.get_or_insert(now),
            Less => _ = seen.gone.get_or_insert(now),
            Equal => {}
        }
        if was_over {
            return Ok(seen);
        }
        std::thread::sleep(PAUSE);
    }
}

/// How many tables there are; others may have some.
fn count(socket: &OwnedFd) -> anyhow::Result<usize> {
    let mut question = 20u32.to_ne_bytes().to_vec();
    question.extend(GET_TABLE.to_ne_bytes());
    question.extend(ALL.to_ne_bytes());
    question.resize(20, 0);
    send(socket.as_raw_fd(), &question, MsgFlags::empty())?;
    let mut count = 0;
    let mut bytes = vec![0; 32 << 10];
    loop {
        let mut room = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg::<()>(socket.as_raw_fd(), &mut room, None, MsgFlags::empty())?;
        let length = got.bytes;
        for kind in kinds(&bytes[..length]) {
            match kind {
                NEW_TABLE => count += 1,
                DONE => return Ok(count),
                ERROR => bail!("no nf_tables"),
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
