//! Options for which the image messages have no field: those in which a socket differs from a new one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{DumpCx, Error, OpenFile, RestoreCx, Result};
use criu_tracee::{Local, Program, Site, fetch_fd, pidfd_open, socket_option};
use nix::errno::Errno;
use nix::unistd::{Pid, close, getegid, geteuid};

use crate::sockets::inet::sort::Sort;
use crate::sockets::inet::{address, multicast};

/// An option: level, name, bytes.
type Row = (i32, i32, usize);

// `include/uapi/linux/{in,in6,tcp,udp}.h` and `include/uapi/asm-generic/socket.h`; the same on every machine.
const SOCKET: i32 = libc::SOL_SOCKET;
const IP: i32 = libc::SOL_IP;
const IPV6: i32 = libc::SOL_IPV6;
const TCP: i32 = libc::SOL_TCP;
const UDP: i32 = 17;
const UDPLITE: i32 = 136;
const PACKET: i32 = 263;
const NETLINK: i32 = 270;

/// What must be there before an address is.
const EARLY: &[Row] = &[
    (IP, 19, 4),   // IP_TRANSPARENT
    (IP, 24, 4),   // IP_BIND_ADDRESS_NO_PORT
    (IP, 51, 4),   // IP_LOCAL_PORT_RANGE
    (IPV6, 75, 4), // IPV6_TRANSPARENT
];

/// What may come later, in this order.
const ROWS: &[Row] = &[
    (SOCKET, libc::SO_TIMESTAMP, 4),
    (SOCKET, libc::SO_TIMESTAMPNS, 4),
    (SOCKET, libc::SO_TIMESTAMPING, 8),
    (SOCKET, 40, 4),  // SO_RXQ_OVFL
    (SOCKET, 41, 4),  // SO_WIFI_STATUS
    (SOCKET, 45, 4),  // SO_SELECT_ERR_QUEUE
    (SOCKET, 46, 4),  // SO_BUSY_POLL
    (SOCKET, 47, 8),  // SO_MAX_PACING_RATE
    (SOCKET, 60, 4),  // SO_ZEROCOPY
    (SOCKET, 61, 8),  // SO_TXTIME
    (SOCKET, 69, 4),  // SO_PREFER_BUSY_POLL
    (SOCKET, 70, 4),  // SO_BUSY_POLL_BUDGET
    (SOCKET, 74, 4),  // SO_TXREHASH
    (SOCKET, 75, 4),  // SO_RCVMARK
    (SOCKET, 82, 4),  // SO_RCVPRIORITY
    (IP, 1, 4),       // IP_TOS, of IPv6 sockets too
    (IP, 2, 4),       // IP_TTL
    (IP, 6, 4),       // IP_RECVOPTS
    (IP, 7, 4),       // IP_RETOPTS
    (IP, 10, 4),      // IP_MTU_DISCOVER
    (IP, 11, 4),      // IP_RECVERR
    (IP, 12, 4),      // IP_RECVTTL
    (IP, 13, 4),      // IP_RECVTOS
    (IP, 18, 4),      // IP_PASSSEC
    (IP, 20, 4),      // IP_RECVORIGDSTADDR
    (IP, 21, 4),      // IP_MINTTL
    (IP, 23, 4),      // IP_CHECKSUM
    (IP, 25, 4),      // IP_RECVFRAGSIZE
    (IP, 26, 4),      // IP_RECVERR_RFC4884
    (IP, 32, 4),      // IP_MULTICAST_IF
    (IP, 33, 4),      // IP_MULTICAST_TTL
    (IP, 34, 4),      // IP_MULTICAST_LOOP
    (IP, 49, 4),      // IP_MULTICAST_ALL
    (IP, 50, 4),      // IP_UNICAST_IF
    (IPV6, 16, 4),    // IPV6_UNICAST_HOPS
    (IPV6, 17, 4),    // IPV6_MULTICAST_IF
    (IPV6, 18, 4),    // IPV6_MULTICAST_HOPS
    (IPV6, 19, 4),    // IPV6_MULTICAST_LOOP
    (IPV6, 23, 4),    // IPV6_MTU_DISCOVER
    (IPV6, 25, 4),    // IPV6_RECVERR
    (IPV6, 29, 4),    // IPV6_MULTICAST_ALL
    (IPV6, 31, 4),    // IPV6_RECVERR_RFC4884
    (IPV6, 33, 4),    // IPV6_FLOWINFO_SEND
    (IPV6, 51, 4),    // IPV6_RECVHOPLIMIT
    (IPV6, 53, 4),    // IPV6_RECVHOPOPTS
    (IPV6, 56, 4),    // IPV6_RECVRTHDR
    (IPV6, 58, 4),    // IPV6_RECVDSTOPTS
    (IPV6, 60, 4),    // IPV6_RECVPATHMTU
    (IPV6, 62, 4),    // IPV6_DONTFRAG
    (IPV6, 66, 4),    // IPV6_RECVTCLASS
    (IPV6, 67, 4),    // IPV6_TCLASS
    (IPV6, 70, 4),    // IPV6_AUTOFLOWLABEL
    (IPV6, 72, 4),    // IPV6_ADDR_PREFERENCES
    (IPV6, 73, 4),    // IPV6_MINHOPCOUNT
    (IPV6, 74, 4),    // IPV6_RECVORIGDSTADDR
    (IPV6, 76, 4),    // IPV6_UNICAST_IF
    (IPV6, 77, 4),    // IPV6_RECVFRAGSIZE
    (TCP, 2, 4),      // TCP_MAXSEG, of who has no connection
    (TCP, 7, 4),      // TCP_SYNCNT
    (TCP, 8, 4),      // TCP_LINGER2
    (TCP, 9, 4),      // TCP_DEFER_ACCEPT
    (TCP, 10, 4),     // TCP_WINDOW_CLAMP, of the same
    (TCP, 13, 16),    // TCP_CONGESTION
    (TCP, 16, 4),     // TCP_THIN_LINEAR_TIMEOUTS
    (TCP, 18, 4),     // TCP_USER_TIMEOUT
    (TCP, 23, 4),     // TCP_FASTOPEN
    (TCP, 25, 4),     // TCP_NOTSENT_LOWAT
    (TCP, 27, 4),     // TCP_SAVE_SYN
    (TCP, 30, 4),     // TCP_FASTOPEN_CONNECT
    (TCP, 33, 32),    // TCP_FASTOPEN_KEY
    (TCP, 34, 4),     // TCP_FASTOPEN_NO_COOKIE
    (TCP, 36, 4),     // TCP_INQ
    (TCP, 37, 4),     // TCP_TX_DELAY
    (TCP, 44, 4),     // TCP_RTO_MAX_MS
    (TCP, 45, 4),     // TCP_RTO_MIN_US
    (TCP, 46, 4),     // TCP_DELACK_MAX_US
    (UDP, 1, 4),      // UDP_CORK
    (UDP, 100, 4),    // UDP_ENCAP
    (UDP, 101, 4),    // UDP_NO_CHECK6_TX
    (UDP, 102, 4),    // UDP_NO_CHECK6_RX
    (UDP, 103, 4),    // UDP_SEGMENT
    (UDP, 104, 4),    // UDP_GRO
    (UDPLITE, 10, 4), // UDPLITE_SEND_CSCOV
    (UDPLITE, 11, 4), // UDPLITE_RECV_CSCOV
    (NETLINK, 3, 4),  // NETLINK_PKTINFO
    (NETLINK, 4, 4),  // NETLINK_BROADCAST_ERROR
    (NETLINK, 5, 4),  // NETLINK_NO_ENOBUFS
    (NETLINK, 8, 4),  // NETLINK_LISTEN_ALL_NSID
    (NETLINK, 10, 4), // NETLINK_CAP_ACK
    (NETLINK, 11, 4), // NETLINK_EXT_ACK
    (NETLINK, 12, 4), // NETLINK_GET_STRICT_CHK
    (PACKET, 20, 4),  // PACKET_QDISC_BYPASS
    (PACKET, 23, 4),  // PACKET_IGNORE_OUTGOING
    (SOCKET, libc::SO_PEEK_OFF, 4),
    (SOCKET, 44, 4), // SO_LOCK_FILTER: nothing can be attached afterwards
];

/// What new sockets have, by sort.
#[derive(Debug, Default)]
struct Pristine(RefCell<HashMap<Sort, Rc<Values>>>);

/// The options that sockets of a sort have, in order, and what a new one has there, if that is known.
type Values = Vec<(Row, Option<Vec<u8>>)>;

/// No option has more.
const MOST: usize = 32;

/// The value of an option, if the socket has it. There may be very many sockets, and they have many.
fn value<'a>(
    fd: &OwnedFd,
    (level, name, room): Row,
    bytes: &'a mut [u8; MOST],
) -> Option<&'a [u8]> {
    bytes.fill(0);
    let count = u32::try_from(room).ok()?;
    let count = socket_option(fd, (level, name), &mut bytes[..room], count).ok()?;
    bytes.get(..count as usize)
}

fn all_rows() -> impl Iterator<Item = Row> {
    EARLY.iter().chain(ROWS).copied()
}

/// What a socket has.
fn values(fd: &OwnedFd) -> Values {
    let found = |row| value(fd, row, &mut [0; MOST]).map(|value| (row, Some(value.to_vec())));
    all_rows().filter_map(found).collect()
}

impl Pristine {
    fn of(&self, sort: Sort) -> Result<Rc<Values>> {
        if let Some(known) = self.0.borrow().get(&sort) {
            return Ok(known.clone());
        }
        let mut program = Program::new();
        let kind = sort.kind | libc::SOCK_CLOEXEC;
        let fd = program.socket(sort.family, kind, sort.protocol);
        program.tolerate();
        let made = Local.run(&program)?.get(fd);
        let found = match made {
            Ok(fd) => {
                let fd = i32::try_from(fd).unwrap_or(-1);
                let owned = fetch_fd(&pidfd_open(Pid::this())?, fd)?;
                close(fd).map_err(Error::kernel("close"))?;
                owned.map(|fd| values(&fd)).unwrap_or_default()
            }
            // Whoever made it was allowed to: then nothing is known to be as in a new one.
            Err(_) => all_rows().map(|row| (row, None)).collect(),
        };
        let found = Rc::new(found);
        self.0.borrow_mut().insert(sort, found.clone());
        Ok(found)
    }
}

/// Reads the options that differ, and whose socket it is if not ours.
fn read(cx: &mut dyn DumpCx, file: &OpenFile, sort: Sort, id: u32) -> Result<pb::SocketExtEntry> {
    let pristine = cx.cached(|| Ok(Pristine::default()))?.of(sort)?;
    let mut entry = pb::SocketExtEntry {
        socket_id: id,
        ..pb::SocketExtEntry::default()
    };
    // What connections agree upon, and change as they go, is shown by options that others set.
    let is_connected = sort.is_tcp() && address::remote(&file.fd, sort.family)?.is_some();
    let mut bytes = [0; MOST];
    for (row, fresh) in pristine.iter() {
        let (level, name, _) = *row;
        // What is kept elsewhere; accepting a connection writes these of TCP, and nobody can set them.
        let elsewhere = matches!((level, name), (IP, 1 | 2)) && !sort.is_v6()
            || matches!((level, name), (IP, 32..=34) | (IPV6, 17..=19)) && sort.is_tcp()
            || matches!((level, name), (TCP, 2 | 10)) && is_connected;
        if !elsewhere
            && let Some(value) = value(&file.fd, *row, &mut bytes)
            && fresh.as_deref() != Some(value)
        {
            entry.options.push(pb::SocketOptionEntry {
                level: level.cast_unsigned(),
                name: name.cast_unsigned(),
                value: value.to_vec(),
            });
        }
    }
    let ours = (geteuid().as_raw(), getegid().as_raw());
    if (file.inode.uid, file.inode.gid) != ours {
        entry.uid = Some(file.inode.uid);
        entry.gid = Some(file.inode.gid);
    }
    if [libc::AF_INET, libc::AF_INET6]
        .map(i32::unsigned_abs)
        .contains(&sort.family)
    {
        entry.groups = multicast::read(cx, &file.fd, &sort)?;
    }
    Ok(entry)
}

/// Writes what [`read`] finds, and the keys, unless it is like a new one of ours.
pub(crate) fn keep(
    cx: &mut dyn DumpCx,
    file: &OpenFile,
    sort: Sort,
    id: u32,
    keys: Vec<pb::TcpKeyEntry>,
) -> Result<()> {
    let mut ext = read(cx, file, sort, id)?;
    ext.keys = keys;
    let is_new = pb::SocketExtEntry {
        socket_id: id,
        ..pb::SocketExtEntry::default()
    };
    if ext != is_new {
        let ext = pb::FilesExtEntry {
            socket: Some(ext),
            ..pb::FilesExtEntry::default()
        };
        cx.append(desc::FILES_EXT, (), &ext, &[])?;
    }
    Ok(())
}

/// What entries lack, by id.
#[derive(Debug, Default)]
pub(crate) struct Facts(HashMap<u32, pb::SocketExtEntry>);

impl Facts {
    fn load(store: &dyn Store) -> Result<Self> {
        let all = store.entries::<pb::FilesExtEntry>(desc::FILES_EXT, ())?;
        let all = all.unwrap_or_default().into_iter();
        let all = all.filter_map(|entry| entry.message.socket);
        Ok(Self(all.map(|socket| (socket.socket_id, socket)).collect()))
    }

    /// What the entry of this id lacks.
    pub(crate) fn of(cx: &mut dyn RestoreCx, id: u32) -> Result<pb::SocketExtEntry> {
        let facts = cx.cached(Self::load)?;
        Ok(facts.0.get(&id).cloned().unwrap_or_default())
    }
}

fn is_early(option: &pb::SocketOptionEntry) -> bool {
    let key = (option.level.cast_signed(), option.name.cast_signed());
    EARLY.iter().any(|(level, name, _)| (*level, *name) == key)
}

/// Sets those that come before an address, or those that come after.
pub(crate) fn write(
    cx: &mut dyn RestoreCx,
    fd: i32,
    entry: &pb::SocketExtEntry,
    early: bool,
) -> Result<()> {
    let mut program = Program::new();
    let mut calls = Vec::new();
    for option in entry.options.iter().filter(|one| is_early(one) == early) {
        let value = program.bytes(option.value.clone());
        let length = option.value.len();
        let (level, name) = (option.level.cast_signed(), option.name.cast_signed());
        calls.push((program.setsockopt(fd, level, name, value, length), option));
        program.tolerate();
    }
    if let (Some(uid), Some(gid), false) = (entry.uid, entry.gid, early) {
        let itself = program.cstr("");
        program.fchownat(fd, itself, uid, gid, libc::AT_EMPTY_PATH);
    }
    let outcome = cx.here().run(&program)?;
    for (call, option) in calls {
        if let Err(errno) = outcome.get(call) {
            refused(option, errno);
        }
    }
    Ok(())
}

fn refused(option: &pb::SocketOptionEntry, errno: Errno) {
    let (level, name) = (option.level, option.name);
    tracing::warn!(level, name, %errno, "an option of a socket could not be set again");
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_changed_is_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback");
        let fd: OwnedFd = socket.as_fd().try_clone_to_owned().expect("a copy");
        let sort = Sort::of(&fd).expect("a socket");
        let pristine = Pristine::default().of(sort).expect("a new one");
        assert_eq!(values(&fd), *pristine);
        socket.set_multicast_ttl_v4(7).expect("an option");
        let changed = values(&fd);
        let pairs = changed.iter().zip(pristine.iter());
        let differ: Vec<_> = pairs.filter(|(one, other)| one != other).collect();
        assert_eq!(differ.len(), 1);
        assert_eq!(differ[0].0.0, (IP, 33, 4));
    }
}
