//! The network lock: no packet of certain connections comes in or goes out while their sockets are not themselves.
//!
//! A table of nf_tables with a set of the connections and two rules, made over netlink. A [`Lock`] belongs to its
//! socket: when the process ends, in whatever way, the kernel removes it. What has to outlive a dump, so that
//! the kernel does not tell the other ends that nobody is there, is [`park`]ed in a table under the id of
//! the dump; the restore, ours or CRIU's, removes that.

use std::net::{IpAddr, SocketAddr};

use criu_kind::{Error, Result};
use netlink_sys::Socket;
use nix::errno::Errno;

use crate::nft::{
    self, Batch, DEL_TABLE, NEW_CHAIN, NEW_ELEMENTS, NEW_RULE, NEW_SET, NEW_TABLE, attribute,
    nested, number, text,
};
use crate::sockets::inet::address::on_the_wire;

/// The mark of packets that go through: that of CRIU, whose packets shall pass our tables and ours theirs.
pub(crate) const MARK: u32 = 0xc114;

/// `NFT_TABLE_F_OWNER`, Linux 5.12.
const OWNER: u32 = 2;
/// Elements in one message: an attribute has at most 64 KiB.
const AT_ONCE: usize = 800;
const ACCEPT: u32 = 1;
const DROP: u32 = 0;
const VERDICT: u32 = 0;
/// `NFT_REG32_00`.
const REGISTER: u32 = 8;

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
        let socket = nft::open()?;
        let mut batch = Batch::new();
        table(&mut batch, name, OWNER, connections);
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

/// Where a family keeps its addresses: number, name of its set, length of an address, offsets.
struct Family {
    number: u8,
    set: &'static str,
    length: u32,
    from: u32,
    to: u32,
    /// The types of the parts of a key, for whoever lists the table.
    kind: u32,
}

const FAMILIES: [Family; 2] = [
    Family {
        number: 2,
        set: "conns4",
        length: 4,
        from: 12,
        to: 16,
        kind: ((7 << 6 | 13) << 6 | 7) << 6 | 13,
    },
    Family {
        number: 10,
        set: "conns6",
        length: 16,
        from: 8,
        to: 24,
        kind: ((8 << 6 | 13) << 6 | 8) << 6 | 13,
    },
];

fn table(batch: &mut Batch, name: &str, flags: u32, connections: &[Connection]) {
    batch.add(NEW_TABLE, &[text(1, name), number(2, flags)]);
    for (id, family) in (1..).zip(&FAMILIES) {
        let key = 2 * (family.length + 4);
        let set = [
            text(1, name),
            text(2, family.set),
            number(3, 0),
            number(4, family.kind),
            number(5, key),
            number(10, id),
        ];
        batch.add(NEW_SET, &set);
        let is_v4 = family.length == 4;
        let ours = connections
            .iter()
            .filter(|one| one.local.is_ipv4() == is_v4);
        let mut elements: Vec<Vec<u8>> = ours
            .flat_map(|one| [(one.local, one.remote), (one.remote, one.local)])
            .map(|(from, to)| [end(&from), end(&to)].concat())
            .collect();
        elements.sort();
        elements.dedup();
        for some in elements.chunks(AT_ONCE) {
            let some: Vec<Vec<u8>> = some
                .iter()
                .map(|key| nested(1, &[nested(1, &[attribute(1, key)])]))
                .collect();
            let list = [
                text(1, name),
                text(2, family.set),
                number(4, id),
                nested(3, &some),
            ];
            batch.add(NEW_ELEMENTS, &list);
        }
    }
    // `NF_INET_LOCAL_IN`, `NF_INET_LOCAL_OUT`, at the priority of filters.
    for (chain, hook) in [("input", 1), ("output", 3)] {
        let hook = nested(4, &[number(1, hook), number(2, 0)]);
        let accept = number(5, ACCEPT);
        batch.add(
            NEW_CHAIN,
            &[
                text(1, name),
                text(3, chain),
                hook,
                accept,
                text(7, "filter"),
            ],
        );
        let pass = [meta(3), equal(&MARK.to_ne_bytes()), verdict(ACCEPT)];
        rule(batch, name, chain, &pass);
        for (id, family) in (1..).zip(&FAMILIES) {
            rule(batch, name, chain, &drop_known(family, id));
        }
    }
}

/// Address and port as a key has them.
fn end(address: &SocketAddr) -> Vec<u8> {
    let mut bytes = match address.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    bytes.extend(address.port().to_be_bytes());
    bytes.extend([0; 2]);
    bytes
}

fn rule(batch: &mut Batch, table: &str, chain: &str, expressions: &[Vec<u8>]) {
    batch.add(
        NEW_RULE,
        &[text(1, table), text(2, chain), nested(4, expressions)],
    );
}

fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, data)])
}

/// `NFT_META_MARK` 3, `NFT_META_NFPROTO` 15, `NFT_META_L4PROTO` 16.
fn meta(key: u32) -> Vec<u8> {
    expression("meta", &[number(1, REGISTER), number(2, key)])
}

fn equal(value: &[u8]) -> Vec<u8> {
    let value = nested(3, &[attribute(1, value)]);
    expression("cmp", &[number(1, REGISTER), number(2, 0), value])
}

fn verdict(code: u32) -> Vec<u8> {
    let code = nested(2, &[nested(2, &[number(1, code)])]);
    expression("immediate", &[number(1, VERDICT), code])
}

/// Bytes of the network header (1) or the transport header (2), into a register.
fn payload(base: u32, offset: u32, length: u32, register: u32) -> Vec<u8> {
    let data = [
        number(1, register),
        number(2, base),
        number(3, offset),
        number(4, length),
    ];
    expression("payload", &data)
}

/// Segments of connections of the set.
fn drop_known(family: &Family, id: u32) -> Vec<Vec<u8>> {
    let port = REGISTER + family.length / 4;
    let lookup = [text(1, family.set), number(2, REGISTER), number(4, id)];
    vec![
        meta(15),
        equal(&[family.number]),
        meta(16),
        equal(&[6]),
        payload(1, family.from, family.length, REGISTER),
        payload(2, 0, 2, port),
        payload(1, family.to, family.length, port + 1),
        payload(2, 2, 2, port + 1 + family.length / 4),
        expression("lookup", &lookup),
        verdict(DROP),
    ]
}
