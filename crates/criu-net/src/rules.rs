//! The tables of nf_tables that keep packets away: sets of addresses, chains, and rules that look them up.

use std::net::{IpAddr, SocketAddr};

use crate::lock::{Connection, MARK};
use crate::nft::{
    Batch, NEW_CHAIN, NEW_ELEMENTS, NEW_RULE, NEW_SET, NEW_TABLE, attribute, nested, number, text,
};

/// `NFT_TABLE_F_OWNER`, Linux 5.12.
pub(crate) const OWNER: u32 = 2;
/// Elements in one message: an attribute has at most 64 KiB.
const AT_ONCE: usize = 800;
const ACCEPT: u32 = 1;
const DROP: u32 = 0;
const VERDICT: u32 = 0;
/// `NFT_REG32_00`.
const REGISTER: u32 = 8;

/// Where a family keeps its addresses: number, name of its set, length of an address, offsets.
struct Family {
    number: u8,
    set: &'static str,
    length: u32,
    from: u32,
    to: u32,
    /// The types of the parts of a key, for whoever lists the table.
    kind: u32,
    /// The set of those who listen.
    doors: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        number: 2,
        set: "conns4",
        length: 4,
        from: 12,
        to: 16,
        kind: 7 << 6 | 13,
        doors: "doors4",
    },
    Family {
        number: 10,
        set: "conns6",
        length: 16,
        from: 8,
        to: 24,
        kind: 8 << 6 | 13,
        doors: "doors6",
    },
];

/// A set of a table: name, number in the batch, type and length of its keys, and the keys.
struct Keys {
    set: &'static str,
    id: u32,
    kind: u32,
    length: u32,
    all: Vec<Vec<u8>>,
}

impl Keys {
    fn add(mut self, batch: &mut Batch, table: &str) {
        let set = [
            text(1, table),
            text(2, self.set),
            number(3, 0),
            number(4, self.kind),
            number(5, self.length),
            number(10, self.id),
        ];
        batch.add(NEW_SET, &set);
        self.all.sort();
        self.all.dedup();
        for some in self.all.chunks(AT_ONCE) {
            let some: Vec<Vec<u8>> = some
                .iter()
                .map(|key| nested(1, &[nested(1, &[attribute(1, key)])]))
                .collect();
            let list = [
                text(1, table),
                text(2, self.set),
                number(4, self.id),
                nested(3, &some),
            ];
            batch.add(NEW_ELEMENTS, &list);
        }
    }
}

/// `NF_INET_LOCAL_IN`.
const INPUT: (&str, u32) = ("input", 1);
/// `NF_INET_LOCAL_OUT`.
const OUTPUT: (&str, u32) = ("output", 3);

/// A chain at a hook, at the priority of filters; what has the mark passes.
fn chain(batch: &mut Batch, table: &str, (name, hook): (&str, u32)) {
    let hook = nested(4, &[number(1, hook), number(2, 0)]);
    let accept = number(5, ACCEPT);
    let chain = [
        text(1, table),
        text(3, name),
        hook,
        accept,
        text(7, "filter"),
    ];
    batch.add(NEW_CHAIN, &chain);
    let pass = [meta(3), equal(&MARK.to_ne_bytes()), verdict(ACCEPT)];
    rule(batch, table, name, &pass);
}

/// Segments of these connections are dropped.
pub(crate) fn table(batch: &mut Batch, name: &str, flags: u32, connections: &[Connection]) {
    batch.add(NEW_TABLE, &[text(1, name), number(2, flags)]);
    for (id, family) in (1..).zip(&FAMILIES) {
        let is_v4 = family.length == 4;
        let ours = connections
            .iter()
            .filter(|one| one.local.is_ipv4() == is_v4);
        let keys = Keys {
            set: family.set,
            id,
            kind: family.kind << 12 | family.kind,
            length: 2 * (family.length + 4),
            all: ours
                .flat_map(|one| [(one.local, one.remote), (one.remote, one.local)])
                .map(|(from, to)| [end(&from), end(&to)].concat())
                .collect(),
        };
        keys.add(batch, name);
    }
    for hook in [INPUT, OUTPUT] {
        chain(batch, name, hook);
        for (id, family) in (1..).zip(&FAMILIES) {
            rule(batch, name, hook.0, &drop_known(family, id));
        }
    }
}

/// Who asks for a connection at one of these addresses is not heard, and asks again a second later.
pub(crate) fn doors(batch: &mut Batch, name: &str, listeners: &[SocketAddr]) {
    const PORTS: u32 = 3;
    batch.add(NEW_TABLE, &[text(1, name), number(2, OWNER)]);
    let (everywhere, here): (Vec<SocketAddr>, Vec<_>) =
        listeners.iter().partition(|one| one.ip().is_unspecified());
    for (id, family) in (1..).zip(&FAMILIES) {
        let is_v4 = family.length == 4;
        let keys = Keys {
            set: family.doors,
            id,
            kind: family.kind,
            length: family.length + 4,
            all: here
                .iter()
                .filter(|one| one.is_ipv4() == is_v4)
                .map(end)
                .collect(),
        };
        keys.add(batch, name);
    }
    let ports = Keys {
        set: "ports",
        id: PORTS,
        kind: 13,
        length: 2,
        all: everywhere
            .iter()
            .map(|one| one.port().to_be_bytes().to_vec())
            .collect(),
    };
    ports.add(batch, name);
    chain(batch, name, INPUT);
    for (id, family) in (1..).zip(&FAMILIES) {
        let mut asked = [vec![meta(15), equal(&[family.number])], asks()].concat();
        asked.push(payload(1, family.to, family.length, REGISTER));
        asked.push(payload(2, 2, 2, REGISTER + family.length / 4));
        asked.push(lookup(family.doors, id));
        asked.push(verdict(DROP));
        rule(batch, name, INPUT.0, &asked);
    }
    let mut asked = asks();
    asked.push(payload(2, 2, 2, REGISTER));
    asked.push(lookup("ports", PORTS));
    asked.push(verdict(DROP));
    rule(batch, name, INPUT.0, &asked);
}

/// Segments of TCP that have SYN, but not ACK, RST or FIN.
fn asks() -> Vec<Vec<u8>> {
    const FLAGS: u32 = 13;
    let flags = |bits: u8| attribute(1, &[bits]);
    let mask = [
        number(1, REGISTER),
        number(2, REGISTER),
        number(3, 1),
        nested(4, &[flags(0x17)]),
        nested(5, &[flags(0)]),
    ];
    vec![
        meta(16),
        equal(&[6]),
        payload(2, FLAGS, 1, REGISTER),
        expression("bitwise", &mask),
        equal(&[2]),
    ]
}

fn lookup(set: &str, id: u32) -> Vec<u8> {
    let lookup = [text(1, set), number(2, REGISTER), number(4, id)];
    expression("lookup", &lookup)
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

pub(crate) fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, data)])
}

/// `NFT_META_MARK` 3, `NFT_META_NFPROTO` 15, `NFT_META_L4PROTO` 16.
pub(crate) fn meta(key: u32) -> Vec<u8> {
    expression("meta", &[number(1, REGISTER), number(2, key)])
}

pub(crate) fn equal(value: &[u8]) -> Vec<u8> {
    let value = nested(3, &[attribute(1, value)]);
    expression("cmp", &[number(1, REGISTER), number(2, 0), value])
}

pub(crate) fn verdict(code: u32) -> Vec<u8> {
    let code = nested(2, &[nested(2, &[number(1, code)])]);
    expression("immediate", &[number(1, VERDICT), code])
}

/// Bytes of the network header (1) or the transport header (2), into a register.
pub(crate) fn payload(base: u32, offset: u32, length: u32, register: u32) -> Vec<u8> {
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
    vec![
        meta(15),
        equal(&[family.number]),
        meta(16),
        equal(&[6]),
        payload(1, family.from, family.length, REGISTER),
        payload(2, 0, 2, port),
        payload(1, family.to, family.length, port + 1),
        payload(2, 2, 2, port + 1 + family.length / 4),
        lookup(family.set, id),
        verdict(DROP),
    ]
}
