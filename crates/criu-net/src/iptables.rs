//! Rules of iptables that a dump by CRIU has left: they drop the segments of its connections until a restore removes them.
//!
//! CRIU has iptables(8) add one to `INPUT` and one to `OUTPUT` of the table `filter` for each connection: dropped is what
//! has these addresses and ports, and not CRIU's mark. Where that program speaks nf_tables (the default since 1.8) the
//! rules are there for everybody to be read and removed, with constants in comparisons or, by older versions, in the
//! structures of matches. Rules of `ip_tables`, its predecessor, are not: whoever has those is told.

use std::net::{IpAddr, SocketAddr};

use criu_kind::{Error, Result};
use netlink_packet_core::NlasIterator;
use netlink_sys::Socket;
use nix::errno::Errno;

use crate::lock::{Connection, MARK};
use crate::nft::{self, Batch, DEL_RULE, GET_RULE, attribute, text};

const TABLE: &str = "filter";
/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const FAMILIES: [u8; 2] = [2, 10];

// Attributes, `include/uapi/linux/netfilter/nf_tables.h`.
const CHAIN: u16 = 2;
const HANDLE: u16 = 3;
const EXPRESSIONS: u16 = 4;
const NAME: u16 = 1;
const DATA: u16 = 2;
const CMP_DATA: u16 = 3;
const MATCH_INFO: u16 = 3;
const IMMEDIATE_DATA: u16 = 2;
const VALUE: u16 = 1;
const VERDICT: u16 = 2;
const CODE: u16 = 1;
const DROP: [u8; 4] = [0; 4];

/// Removes the rules about these connections; says how many there were.
pub(crate) fn remove(connections: &[Connection]) -> Result<usize> {
    let socket = nft::open()?;
    let mut batch = Batch::new();
    let mut count = 0;
    for family in FAMILIES {
        for rule in rules(&socket, family)? {
            if connections.iter().any(|one| rule.is_about(one)) {
                count += 1;
                let which = [
                    text(1, TABLE),
                    attribute(CHAIN, &rule.chain),
                    attribute(HANDLE, &rule.handle),
                ];
                batch.add_in(family, DEL_RULE, &which);
            }
        }
    }
    if count > 0 {
        batch.commit(&socket)?.map_err(|errno| Error::Kernel {
            call: "nf_tables(NFT_MSG_DELRULE)",
            errno,
        })?;
    }
    Ok(count)
}

/// Whether there may be rules that nobody but the program of `ip_tables` can see.
pub(crate) fn has_hidden() -> bool {
    ["ip_tables_names", "ip6_tables_names"].iter().any(|name| {
        let names = std::fs::read_to_string(format!("/proc/net/{name}"));
        names.is_ok_and(|names| names.lines().any(|name| name == TABLE))
    })
}

fn rules(socket: &Socket, family: u8) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    let asked = nft::dump(socket, family, GET_RULE, &[text(1, TABLE)], |body| {
        rules.extend(Rule::parse(body));
    })?;
    match asked {
        // No table, or not the family.
        Ok(()) | Err(Errno::ENOENT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) => Ok(rules),
        Err(errno) => Err(Error::Kernel {
            call: "nf_tables(NFT_MSG_GETRULE)",
            errno,
        }),
    }
}

/// What a rule compares with, in order, if it drops what is equal.
#[derive(Debug, PartialEq, Eq)]
struct Rule {
    chain: Vec<u8>,
    handle: Vec<u8>,
    constants: Vec<Vec<u8>>,
}

impl Rule {
    fn parse(body: &[u8]) -> Option<Self> {
        let expressions = find(body, EXPRESSIONS)?;
        let mut constants = Vec::new();
        let mut drops = false;
        for (_, element) in all(expressions) {
            let (Some(name), Some(data)) = (find(element, NAME), find(element, DATA)) else {
                continue;
            };
            match name {
                b"cmp\0" => {
                    constants.extend(find(data, CMP_DATA).and_then(|data| find(data, VALUE)))
                }
                b"match\0" => constants.extend(find(data, MATCH_INFO)),
                b"immediate\0" => {
                    let verdict = find(data, IMMEDIATE_DATA).and_then(|data| find(data, VERDICT));
                    drops |= verdict.and_then(|verdict| find(verdict, CODE)) == Some(&DROP);
                }
                _ => {}
            }
        }
        drops.then_some(Self {
            chain: find(body, CHAIN)?.to_vec(),
            handle: find(body, HANDLE)?.to_vec(),
            constants: constants.into_iter().map(<[u8]>::to_vec).collect(),
        })
    }

    /// Whether it drops the segments of a connection, in one direction, that do not have CRIU's mark.
    fn is_about(&self, connection: &Connection) -> bool {
        let Connection { local, remote } = connection;
        self.is_from_to(local, remote) || self.is_from_to(remote, local)
    }

    fn is_from_to(&self, from: &SocketAddr, to: &SocketAddr) -> bool {
        let addresses = [from, to].map(|end| match end.ip() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        });
        let ports = [from.port(), to.port()];
        self.has(&[&MARK.to_ne_bytes()])
            && self.has(&addresses.each_ref().map(Vec::as_slice))
            && self.has_ports(ports)
    }

    /// In one comparison, in two, or as two ranges in the structure of a match (`struct xt_tcp`).
    fn has_ports(&self, ports: [u16; 2]) -> bool {
        let [from, to] = ports.map(u16::to_be_bytes);
        let ranges = ports.map(|port| [port.to_ne_bytes(), port.to_ne_bytes()].concat());
        self.has(&[&[from, to].concat()])
            || self.has(&[&from, &to])
            || self
                .constants
                .iter()
                .any(|info| info.starts_with(&ranges.concat()))
    }

    /// Whether these constants stand behind each other. The structure of a match begins with what it compares with.
    fn has(&self, wanted: &[&[u8]]) -> bool {
        self.constants.windows(wanted.len()).any(|some| {
            some.iter().zip(wanted).all(|(one, wanted)| {
                one == wanted || wanted.len() == 4 && one.len() >= 12 && one.starts_with(wanted)
            })
        })
    }
}

/// The payload of the first attribute of a kind.
fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    all(attributes).find_map(|(of, value)| (of == kind).then_some(value))
}

/// Kinds and payloads.
fn all(attributes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const HEADER: usize = 4;
    NlasIterator::new(attributes)
        .map_while(std::result::Result::ok)
        .filter_map(|one| {
            let (kind, length) = (one.kind(), usize::from(one.length()));
            Some((kind, one.into_inner().get(HEADER..length)?))
        })
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::nft::{NEW_CHAIN, NEW_RULE, NEW_TABLE, nested};
    use crate::rules::{equal, expression, meta, payload, verdict};

    const MARK_BYTES: [u8; 4] = MARK.to_ne_bytes();

    fn connection(local: &str, remote: &str) -> Connection {
        let end = |text: &str| text.parse().expect("an end");
        Connection::new(&end(local), &end(remote))
    }

    fn rule(constants: &[&[u8]]) -> Rule {
        Rule {
            chain: b"INPUT\0".to_vec(),
            handle: vec![0; 8],
            constants: constants.iter().map(|one| one.to_vec()).collect(),
        }
    }

    #[test]
    fn as_iptables_writes_them_today() {
        let (from, to) = ([127, 0, 0, 1], [127, 0, 0, 2]);
        let ports = [0x13, 0x88, 0x17, 0x70];
        let one = rule(&[&from, &to, &[6], &MARK_BYTES, &ports]);
        assert!(one.is_about(&connection("127.0.0.1:5000", "127.0.0.2:6000")));
        assert!(one.is_about(&connection("127.0.0.2:6000", "127.0.0.1:5000")));
        for other in ["127.0.0.1:6000", "127.0.0.3:5000"] {
            assert!(!one.is_about(&connection(other, "127.0.0.2:6000")));
        }
        let unmarked = rule(&[&from, &to, &[6], &ports]);
        assert!(!unmarked.is_about(&connection("127.0.0.1:5000", "127.0.0.2:6000")));
    }

    #[test]
    fn as_older_ones_wrote_them() {
        let (from, to) = ([127, 0, 0, 1], [127, 0, 0, 2]);
        let ports: Vec<u8> = [5000u16, 5000, 6000, 6000]
            .iter()
            .flat_map(|port| port.to_ne_bytes())
            .collect();
        let tcp = [&ports[..], &[0; 8]].concat();
        let mark = [&MARK_BYTES[..], &[0xff; 4], &[1, 0, 0, 0], &[0; 4]].concat();
        let one = rule(&[&from, &to, &[6], &tcp, &mark]);
        assert!(one.is_about(&connection("127.0.0.1:5000", "127.0.0.2:6000")));
        assert!(!one.is_about(&connection("127.0.0.1:5000", "127.0.0.2:6001")));
    }

    /// The rule for one direction, as the kernel is given it.
    fn add(batch: &mut Batch, chain: &str, (from, to): ([u8; 4], [u8; 4]), ports: [u8; 4]) {
        const REGISTER: u32 = 8;
        let expressions = [
            payload(1, 12, 4, REGISTER),
            equal(&from),
            payload(1, 16, 4, REGISTER),
            equal(&to),
            meta(3),
            equal(&MARK_BYTES),
            payload(2, 0, 4, REGISTER),
            equal(&ports),
            expression("counter", &[]),
            verdict(0),
        ];
        let rule = [text(1, TABLE), text(2, chain), nested(4, &expressions)];
        batch.add_in(FAMILIES[0], NEW_RULE, &rule);
    }

    fn ours_go_and_others_stay() -> Result<()> {
        let socket = nft::open()?;
        let mut batch = Batch::new();
        batch.add_in(FAMILIES[0], NEW_TABLE, &[text(1, TABLE)]);
        for chain in ["INPUT", "OUTPUT"] {
            batch.add_in(FAMILIES[0], NEW_CHAIN, &[text(1, TABLE), text(3, chain)]);
        }
        let (one, two) = ([127, 0, 0, 1], [127, 0, 0, 2]);
        add(&mut batch, "INPUT", (one, two), [0x13, 0x88, 0x17, 0x70]);
        add(&mut batch, "OUTPUT", (two, one), [0x17, 0x70, 0x13, 0x88]);
        add(&mut batch, "INPUT", (one, two), [0x13, 0x89, 0x17, 0x70]);
        let made = batch.commit(&socket)?;
        assert_eq!(made, Ok(()));
        let ours = [connection("127.0.0.2:6000", "127.0.0.1:5000")];
        assert_eq!(remove(&ours)?, 2);
        assert_eq!(remove(&ours)?, 0);
        let left = rules(&socket, FAMILIES[0])?;
        assert_eq!(left.len(), 1);
        assert!(left[0].is_about(&connection("127.0.0.2:6000", "127.0.0.1:5001")));
        let mut batch = Batch::new();
        batch.add_in(FAMILIES[0], nft::DEL_TABLE, &[text(1, TABLE)]);
        assert_eq!(batch.commit(&socket)?, Ok(()));
        assert_eq!(remove(&ours)?, 0, "no table");
        Ok(())
    }

    #[test]
    fn removal() {
        // A network namespace of this thread.
        let test = std::thread::spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => ours_go_and_others_stay().expect("nf_tables"),
            Err(error) => eprintln!("not tried: {error}"),
        });
        test.join().expect("it does not panic");
    }
}
