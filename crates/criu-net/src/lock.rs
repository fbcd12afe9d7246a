//! The network lock: no packet of certain connections comes in or goes out while their sockets are not themselves.
//!
//! A table of nf_tables with a set of the connections and two rules, made over netlink. A [`Lock`] belongs to its
//! socket: when the process ends, in whatever way, the kernel removes it. What has to outlive a dump, so that
//! the kernel does not tell the other ends that nobody is there, is [`park`]ed in a table under the id of
//! the dump; the restore, ours or CRIU's, removes that.

use std::net::SocketAddr;

use criu_kind::{Error, Result};
use netlink_sys::Socket;
use nix::errno::Errno;

use crate::nft::{self, Batch, DEL_TABLE, text};
use crate::rules::{OWNER, doors, table};
use crate::sockets::inet::address::on_the_wire;

/// The mark of packets that go through: that of CRIU, whose packets shall pass our tables and ours theirs.
pub(crate) const MARK: u32 = 0xc114;

/// One end of a connection and the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Connection {
    /// Here.
    pub local: SocketAddr,
    /// There.
    pub remote: SocketAddr,
}

impl Connection {
    /// As packets have it.
    pub(crate) fn new(local: &SocketAddr, remote: &SocketAddr) -> Self {
        Self {
            local: on_the_wire(local),
            remote: on_the_wire(remote),
        }
    }
}

impl std::fmt::Display for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} - {}", self.local, self.remote)
    }
}

/// A lock; dropped, the connections are free again.
#[derive(Debug)]
pub struct Lock {
    socket: Socket,
    name: String,
}

impl Lock {
    /// Locks these connections. The name must be nobody else's.
    pub fn new(name: &str, connections: &[Connection]) -> Result<Self> {
        let mut batch = Batch::new();
        table(&mut batch, name, OWNER, connections);
        Self::made(name, batch)
    }

    /// Lets nobody connect to these addresses.
    pub(crate) fn doors(name: &str, listeners: &[SocketAddr]) -> Result<Self> {
        let mut batch = Batch::new();
        doors(&mut batch, name, listeners);
        Self::made(name, batch)
    }

    fn made(name: &str, batch: Batch) -> Result<Self> {
        let socket = nft::open()?;
        match batch.commit(&socket)? {
            Ok(()) => Ok(Self {
                socket,
                name: name.to_owned(),
            }),
            Err(errno) => Err(refused(errno)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut batch = Batch::new();
        batch.add(DEL_TABLE, &[text(1, &self.name)]);
        match batch.commit(&self.socket) {
            Ok(Ok(())) => {}
            // The kernel does it when the socket is closed.
            Ok(Err(errno)) => {
                tracing::warn!(%errno, table = self.name, "the network lock could not be removed")
            }
            Err(error) => {
                tracing::warn!(%error, table = self.name, "the network lock could not be removed")
            }
        }
    }
}

/// The name of the table under which connections of a dump are parked: the one CRIU looks for. It has room for the
/// first part of the id only.
fn parking(run: &str) -> String {
    let part: String = run.chars().take(21).collect();
    format!("CRIU-{part}")
}

/// Locks connections until they are restored, or somebody removes the table: nobody is to hear that their sockets
/// are gone.
pub fn park(run: &str, connections: &[Connection]) -> Result<()> {
    let mut batch = Batch::new();
    table(&mut batch, &parking(run), 0, connections);
    batch.commit(&nft::open()?)?.map_err(refused)
}

/// Frees the connections that a dump has parked; `false`: it has not.
pub fn unpark(run: &str) -> Result<bool> {
    let mut batch = Batch::new();
    batch.add(DEL_TABLE, &[text(1, &parking(run))]);
    match batch.commit(&nft::open()?)? {
        Ok(()) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(refused(errno)),
    }
}

fn refused(errno: Errno) -> Error {
    match errno {
        Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EINVAL => nft::unavailable(),
        Errno::EPERM => Error::unsupported(
            "connections cannot be kept undisturbed without CAP_NET_ADMIN",
            "run criu as root of the network namespace, or risk it with --network-lock skip",
        ),
        errno => Error::Kernel {
            call: "nf_tables",
            errno,
        },
    }
}
