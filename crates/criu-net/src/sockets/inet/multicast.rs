//! Multicast groups that a socket belongs to, with the sources it hears.
//!
//! The kernel lists the groups of a device, and says of a socket whether it belongs to one: so each socket is asked of
//! each group that there is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use criu_image::pb;
use criu_kind::{DumpCx, Error, RestoreCx, Result};
use criu_tracee::Program;

use crate::sockets::inet::address::{decode, encode};
use crate::sockets::inet::sort::Sort;
use crate::sockets::message::ask_at;

// `include/uapi/linux/in.h`; the same numbers at both levels.
const JOIN_GROUP: i32 = 42;
const FILTER: i32 = 48;
/// `MCAST_EXCLUDE`, `MCAST_INCLUDE`.
const EXCLUDE: u32 = 0;
const INCLUDE: u32 = 1;
/// `struct sockaddr_storage`, and where it is behind a number.
const STORAGE: usize = 128;
const WORD: usize = size_of::<usize>();
/// Sources that are asked for: `net.ipv4.igmp_max_msf` is 10.
const SOURCES: usize = 64;

fn level(sort: &Sort) -> i32 {
    if sort.is_v6() {
        libc::SOL_IPV6
    } else {
        libc::SOL_IP
    }
}

/// The groups of all devices.
#[derive(Debug, Default)]
struct Groups(Vec<(u32, IpAddr)>);

impl Groups {
    fn read() -> Result<Self> {
        let text =
            |name: &str| match std::fs::read_to_string(format!("/proc/thread-self/net/{name}")) {
                // A kernel without the protocol.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
                other => other.map_err(Error::io("read(/proc/net/igmp)")),
            };
        let mut groups = Self::default();
        groups.four(&text("igmp")?);
        groups.six(&text("igmp6")?);
        Ok(groups)
    }

    /// A line for each device, and under it one for each group.
    fn four(&mut self, text: &str) {
        let mut device = 0;
        for line in text.lines().skip(1) {
            let first = line.split_whitespace().next().unwrap_or_default();
            if !line.starts_with('\t') {
                device = first.parse().unwrap_or(0);
            } else if let Ok(group) = u32::from_str_radix(first, 16) {
                self.0
                    .push((device, IpAddr::V4(Ipv4Addr::from(group.to_ne_bytes()))));
            }
        }
    }

    fn six(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let device = words.next().and_then(|word| word.parse().ok());
            let group = words
                .nth(1)
                .and_then(|word| u128::from_str_radix(word, 16).ok());
            if let (Some(device), Some(group)) = (device, group) {
                self.0.push((device, IpAddr::V6(Ipv6Addr::from(group))));
            }
        }
    }
}

/// A number and an address behind it: `struct group_req`, and how `struct group_filter` begins.
fn request(index: u32, group: IpAddr) -> Vec<u8> {
    let mut bytes = index.to_ne_bytes().to_vec();
    bytes.resize(WORD, 0);
    bytes.extend(storage(group));
    bytes
}

fn storage(address: IpAddr) -> Vec<u8> {
    let mut bytes = encode(&SocketAddr::new(address, 0));
    bytes.resize(STORAGE, 0);
    bytes
}

/// Those that a socket belongs to.
pub(crate) fn read(
    cx: &mut dyn DumpCx,
    fd: &OwnedFd,
    sort: &Sort,
) -> Result<Vec<pb::MulticastEntry>> {
    if sort.is_tcp() {
        return Ok(Vec::new());
    }
    let groups = cx.cached(Groups::read)?;
    let mut all = Vec::new();
    for (index, group) in groups
        .0
        .iter()
        .filter(|(_, group)| group.is_ipv6() == sort.is_v6())
    {
        let mut bytes = request(*index, *group);
        let words = bytes.len();
        bytes.extend(EXCLUDE.to_ne_bytes());
        bytes.extend(u32::try_from(SOURCES).unwrap_or(0).to_ne_bytes());
        bytes.resize(bytes.len() + SOURCES * STORAGE, 0);
        let count = u32::try_from(bytes.len()).unwrap_or(0);
        let Ok((bytes, _)) = ask_at(fd, level(sort), FILTER, &bytes, count)? else {
            continue; // It does not belong to it.
        };
        let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|index| bytes[at + index]));
        let sources = bytes[words + 8..].chunks_exact(STORAGE);
        let sources = sources.take(word(words + 4) as usize);
        all.push(pb::MulticastEntry {
            index: *index,
            group: octets(*group),
            include: (word(words) == INCLUDE).then_some(true),
            sources: sources
                .filter_map(|one| Some(octets(decode(one)?.ip())))
                .collect(),
        });
    }
    Ok(all)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address(bytes: &[u8]) -> Result<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let six = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| six()).map_err(|_| {
        Error::corrupt(
            "criu-rs-files.img",
            format!("an address of {} bytes", bytes.len()),
        )
    })
}

/// Joins them again.
pub(crate) fn join(
    cx: &mut dyn RestoreCx,
    fd: i32,
    sort: &Sort,
    groups: &[pb::MulticastEntry],
) -> Result<()> {
    for one in groups {
        let group = address(&one.group)?;
        let request = request(one.index, group);
        let length = request.len();
        let mut program = Program::new();
        let bytes = program.bytes(request.clone());
        let joined = program.setsockopt(fd, level(sort), JOIN_GROUP, bytes, length);
        program.tolerate();
        if one.include() || !one.sources.is_empty() {
            let mut filter = request;
            let mode = if one.include() { INCLUDE } else { EXCLUDE };
            filter.extend(mode.to_ne_bytes());
            filter.extend(u32::try_from(one.sources.len()).unwrap_or(0).to_ne_bytes());
            for source in &one.sources {
                filter.extend(storage(address(source)?));
            }
            let length = filter.len();
            let filter = program.bytes(filter);
            program.setsockopt(fd, level(sort), FILTER, filter, length);
            program.tolerate();
        }
        if let Err(errno) = cx.here().run(&program)?.get(joined) {
            let device = one.index;
            tracing::warn!(device, %group, %errno, "a socket could not join a group again");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let mut groups = Groups::default();
        groups.four("Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n");
        groups.six("1    lo              ff020000000000000000000000000001     1 0000000C 0\n");
        assert_eq!(groups.0.len(), 2);
        if cfg!(target_endian = "little") {
            assert_eq!(groups.0[0], (1, "224.0.0.1".parse().expect("an address")));
        }
        assert_eq!(groups.0[1], (1, "ff02::1".parse().expect("an address")));
    }
}
