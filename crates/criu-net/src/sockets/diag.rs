//! What the kernel knows of all sockets of a network namespace: sock_diag(7), one question for all.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use criu_kind::{Error, Result};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::unix::nlas::{Nla, UnixDiagName};
use netlink_packet_sock_diag::unix::{ShowFlags, StateFlags, UnixRequest, UnixResponse};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

/// A unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UnixInfo {
    /// `SOCK_STREAM` …
    pub(crate) kind: u32,
    /// [`ESTABLISHED`], [`LISTEN`], or 7: neither.
    pub(crate) state: u32,
    /// The inode of the socket it is connected to; 0: that has none, being closed or not yet accepted.
    pub(crate) peer: Option<u32>,
    /// The address after the family, with the NUL of a path.
    pub(crate) name: Vec<u8>,
    /// Inodes of the sockets that wait to be accepted; 0: of one that is closed.
    pub(crate) pending: Vec<u32>,
    /// Bytes that wait, or connections that wait.
    pub(crate) waiting: u32,
    /// Bytes on their way to the other, or how many connections may wait.
    pub(crate) sent: u32,
    /// `RCV_SHUTDOWN` 1, `SEND_SHUTDOWN` 2.
    pub(crate) shutdown: u8,
}

/// `TCP_ESTABLISHED` of `include/net/tcp_states.h`, which unix sockets use too.
pub(crate) const ESTABLISHED: u32 = 1;
/// `TCP_LISTEN`.
pub(crate) const LISTEN: u32 = 10;

/// All unix sockets of the caller's network namespace.
///
/// The kernel gives them in parts, and goes on by counting: if somebody's socket is closed meanwhile, another is left
/// out. So who is missed is asked for again.
#[derive(Debug, Default)]
pub(crate) struct UnixSockets {
    known: RefCell<Known>,
    asked: Cell<u32>,
}

/// How often at most all sockets are asked for.
const PATIENCE: u32 = 4;

#[derive(Debug, Default)]
struct Known {
    all: HashMap<u32, UnixInfo>,
    /// Listening sockets, by those that wait to be accepted.
    listeners: HashMap<u32, u32>,
}

impl UnixSockets {
    /// Asks the kernel.
    pub(crate) fn ask() -> Result<Self> {
        let sockets = Self::default();
        sockets.ask_again()?;
        Ok(sockets)
    }

    fn ask_again(&self) -> Result<()> {
        self.asked.set(self.asked.get() + 1);
        let mut known = self.known.borrow_mut();
        let request = SockDiagMessage::UnixRequest(UnixRequest {
            state_flags: StateFlags::from_bits_retain(u32::MAX),
            inode: 0,
            show_flags: ShowFlags::NAME | ShowFlags::PEER | ShowFlags::ICONS | ShowFlags::RQLEN,
            cookie: [0xff; 8],
        });
        dump(request, |message| {
            if let SockDiagMessage::UnixResponse(socket) = message {
                known.take(&socket);
            }
        })
    }

    fn look<T>(&self, find: impl Fn(&Known) -> Option<T>) -> Result<Option<T>> {
        loop {
            let found = find(&self.known.borrow());
            if found.is_some() || self.asked.get() >= PATIENCE {
                return Ok(found);
            }
            self.ask_again()?;
        }
    }

    /// The socket of an inode.
    pub(crate) fn get(&self, inode: u32) -> Result<Option<UnixInfo>> {
        self.look(|known| known.all.get(&inode).cloned())
    }

    /// The listening socket at which a connection waits.
    pub(crate) fn listener_of(&self, inode: u32) -> Result<Option<u32>> {
        self.look(|known| known.listeners.get(&inode).copied())
    }
}

impl Known {
    fn take(&mut self, socket: &UnixResponse) {
        let mut info = UnixInfo {
            kind: socket.header.kind.into(),
            state: socket.header.state.into(),
            ..UnixInfo::default()
        };
        for fact in &socket.nlas {
            match fact {
                Nla::Name(UnixDiagName::Pathname(path)) => {
                    info.name = [path.as_encoded_bytes(), &[0]].concat();
                }
                Nla::Name(UnixDiagName::Abstract(name)) => {
                    info.name = [&[0][..], name].concat();
                }
                Nla::Peer(peer) => info.peer = Some(*peer),
                Nla::PendingConnections(pending) => info.pending.clone_from(pending),
                Nla::ReceiveQueueLength(waiting, sent) => {
                    (info.waiting, info.sent) = (*waiting, *sent);
                }
                Nla::Shutdown(shutdown) => info.shutdown = *shutdown,
                _ => {}
            }
        }
        let inode = socket.header.inode;
        let pending = info.pending.iter().filter(|pending| **pending != 0);
        self.listeners
            .extend(pending.map(|pending| (*pending, inode)));
        self.all.insert(inode, info);
    }
}

/// Sends a request and takes in all answers.
pub(crate) fn dump(request: SockDiagMessage, mut take: impl FnMut(SockDiagMessage)) -> Result<()> {
    let socket = Socket::new(NETLINK_SOCK_DIAG).map_err(Error::io("socket(NETLINK_SOCK_DIAG)"))?;
    socket
        .connect(&SocketAddr::new(0, 0))
        .map_err(Error::io("connect(NETLINK_SOCK_DIAG)"))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut packet = NetlinkMessage::new(header, request.into());
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket
        .send(&bytes, 0)
        .map_err(Error::io("send(NETLINK_SOCK_DIAG)"))?;
    loop {
        let (answer, _) = socket
            .recv_from_full()
            .map_err(Error::io("recv(NETLINK_SOCK_DIAG)"))?;
        let mut rest = &answer[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest);
            let message = message.map_err(|error| {
                tracing::error!(%error, "sock_diag");
                strange()
            })?;
            match message.payload {
                NetlinkPayload::InnerMessage(message) => take(message),
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => {
                    let errno = error.code.map_or(0, |code| -code.get());
                    return Err(Error::Kernel {
                        call: "sock_diag",
                        errno: Errno::from_raw(errno),
                    });
                }
                _ => return Err(strange()),
            }
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn strange() -> Error {
    Error::Kernel {
        call: "sock_diag",
        errno: Errno::EBADMSG,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn inode(socket: &impl AsRawFd) -> u32 {
        let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
        let link = std::fs::read_link(path).expect("ours");
        let text = link.to_string_lossy().into_owned();
        let number = text.trim_matches(|letter: char| !letter.is_ascii_digit());
        number.parse().expect("socket:[N]")
    }

    #[test]
    fn pairs_and_those_who_wait() {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("criu-net-{}", std::process::id());
        let name = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("short");
        let (one, other) = UnixStream::pair().expect("a pair");
        let listener = UnixListener::bind_addr(&name).expect("free");
        let waiting = UnixStream::connect_addr(&name).expect("listening");
        let sockets = UnixSockets::ask().expect("the kernel has sock_diag");
        let info = sockets.get(inode(&one)).expect("told").expect("known");
        assert_eq!((info.peer, info.state), (Some(inode(&other)), ESTABLISHED));
        let info = sockets.get(inode(&listener)).expect("told").expect("known");
        assert_eq!(
            (&info.pending, info.state),
            (&vec![inode(&waiting)], LISTEN)
        );
        assert_eq!(info.name[0], 0);
        let found = sockets.listener_of(inode(&waiting)).expect("told");
        assert_eq!(found, Some(inode(&listener)));
        let info = sockets.get(inode(&waiting)).expect("told");
        assert_eq!(info.expect("known").peer, Some(0));
    }

    #[test]
    fn who_is_missed_is_asked_for_again() {
        let (one, _other) = UnixStream::pair().expect("a pair");
        let sockets = UnixSockets::ask().expect("the kernel has sock_diag");
        sockets.known.borrow_mut().all.clear();
        let found = sockets.get(inode(&one)).expect("told");
        assert_eq!((found.is_some(), sockets.asked.get()), (true, 2));
        assert_eq!(sockets.get(0).expect("told"), None);
        assert_eq!(sockets.asked.get(), PATIENCE);
    }
}
