//! What the kernel knows of all internet sockets of a network namespace: a question for each protocol and family.

use std::collections::HashMap;
use std::net::SocketAddr;

use criu_image::pb;
use criu_kind::{Error, Result};
use netlink_packet_core::Nla as _;
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use nix::errno::Errno;

use crate::sockets::diag::dump;
use crate::sockets::tcp::signature;

/// `INET_DIAG_MD5SIG` of `include/uapi/linux/inet_diag.h`.
const MD5: u16 = 18;

/// An internet socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InetInfo {
    /// `TCP_LISTEN` …, also of datagram sockets.
    pub(crate) state: u32,
    /// Bytes that wait, or connections that wait to be accepted.
    pub(crate) waiting: u32,
    /// Bytes on their way, or how many connections may wait.
    pub(crate) sent: u32,
    /// `RCV_SHUTDOWN` 1, `SEND_SHUTDOWN` 2.
    pub(crate) shutdown: u8,
    /// With what its segments are signed. The kernel tells who has `CAP_NET_ADMIN`.
    pub(crate) keys: Vec<pb::TcpKeyEntry>,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// All TCP, UDP and UDP-Lite sockets of the caller's network namespace, by inode.
#[derive(Debug, Default)]
pub(crate) struct InetSockets {
    all: HashMap<u32, InetInfo>,
}

impl InetSockets {
    /// Asks the kernel.
    pub(crate) fn ask() -> Result<Self> {
        Self::of(&[libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_UDPLITE])
    }

    /// Whether there is one of this sort.
    pub(crate) fn any(&self, is: impl Fn(&InetInfo) -> bool) -> bool {
        self.all.values().any(is)
    }

    /// Asks for these protocols.
    pub(crate) fn of(protocols: &[i32]) -> Result<Self> {
        let mut sockets = Self::default();
        for protocol in protocols {
            for family in [libc::AF_INET, libc::AF_INET6] {
                let asked = sockets.add(family, *protocol);
                match asked {
                    // A kernel without the protocol, or without the module that tells.
                    Err(Error::Kernel {
                        errno: Errno::ENOENT | Errno::EOPNOTSUPP,
                        ..
                    }) => {}
                    other => other?,
                }
            }
        }
        Ok(sockets)
    }

    fn add(&mut self, family: i32, protocol: i32) -> Result<()> {
        ask(family, protocol, u32::MAX, |socket| self.take(socket))
    }

    fn take(&mut self, socket: &InetResponse) {
        let header = &socket.header;
        let id = &header.socket_id;
        let shutdown = socket.nlas.iter().find_map(|fact| match fact {
            Nla::Shutdown(how) => Some(*how),
            _ => None,
        });
        let keys = socket.nlas.iter().find_map(|fact| match fact {
            Nla::Other(other) if other.kind() == MD5 => {
                let mut bytes = vec![0; other.value_len()];
                other.emit_value(&mut bytes);
                Some(signature::keys(&bytes))
            }
            _ => None,
        });
        let info = InetInfo {
            state: header.state.into(),
            waiting: header.recv_queue,
            sent: header.send_queue,
            shutdown: shutdown.unwrap_or(0),
            keys: keys.unwrap_or_default(),
            local: SocketAddr::new(id.source_address, id.source_port),
            remote: SocketAddr::new(id.destination_address, id.destination_port),
        };
        // Connections that nobody has accepted, and those that only wait for time to pass, have none.
        if header.inode != 0 {
            self.all.insert(header.inode, info);
        }
    }

    /// The socket of an inode.
    pub(crate) fn get(&self, inode: u32) -> Option<&InetInfo> {
        self.all.get(&inode)
    }
}

/// Asks for the sockets of a family and a protocol in these states.
fn ask(family: i32, protocol: i32, states: u32, mut take: impl FnMut(&InetResponse)) -> Result<()> {
    let byte = |number: i32| u8::try_from(number).unwrap_or(0);
    let request = InetRequest {
        family: byte(family),
        protocol: byte(protocol),
        // The keys of TCP come with its state, which is much.
        extensions: match protocol {
            libc::IPPROTO_TCP => ExtensionFlags::SHUTDOWN | ExtensionFlags::INFO,
            _ => ExtensionFlags::SHUTDOWN,
        },
        states: StateFlags::from_bits_retain(states),
        socket_id: if family == libc::AF_INET {
            SocketId::new_v4()
        } else {
            SocketId::new_v6()
        },
    };
    dump(SockDiagMessage::InetRequest(request), |message| {
        if let SockDiagMessage::InetResponse(socket) = message {
            take(&socket);
        }
    })
}

/// The addresses at which somebody asks for a connection, and has had the first answer.
pub(crate) fn asking() -> Result<Vec<SocketAddr>> {
    const SYN_RECV: u32 = 1 << 3;
    let mut all = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let asked = ask(family, libc::IPPROTO_TCP, SYN_RECV, |socket| {
            let id = &socket.header.socket_id;
            all.push(SocketAddr::new(id.source_address, id.source_port));
        });
        match asked {
            // A kernel without the family, or without the module that tells.
            Err(Error::Kernel {
                errno: Errno::ENOENT | Errno::EOPNOTSUPP,
                ..
            }) => {}
            other => other?,
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;

    use super::*;

    fn inode(socket: &impl AsRawFd) -> u32 {
        let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
        let link = std::fs::read_link(path).expect("ours");
        let text = link.to_string_lossy().into_owned();
        let number = text.trim_matches(|letter: char| !letter.is_ascii_digit());
        number.parse().expect("socket:[N]")
    }

    #[test]
    fn listeners_connections_and_datagrams() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
        let datagrams = UdpSocket::bind("[::1]:0").expect("loopback");
        let all = InetSockets::ask().expect("the kernel has sock_diag");
        let found = all.get(inode(&listener)).expect("known");
        assert_eq!((found.state, found.waiting, found.sent), (10, 1, 128));
        let found = all.get(inode(&client)).expect("known");
        assert_eq!(found.remote, listener.local_addr().expect("bound"));
        let found = all.get(inode(&datagrams)).expect("known");
        assert_eq!(found.local, datagrams.local_addr().expect("bound"));
    }
}
