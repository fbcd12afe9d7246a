//! Sockets, interfaces, packet filters.

use criu_tracee::{Arg, Program, Ret, Sysno};
use nix::errno::Errno;
use nix::sys::ioctl::ioctl_num_type;

use crate::feature::{Answer, Lack, judge, refusal, require};
use crate::netlink::{self, ACK, CREATE, DUMP, attribute, message};
use crate::scratch::{Scratch, try_once};

const SIOCGSKNS: u64 = 0x894c;
const SIOCUNIXFILE: u64 = 0x89e0;

/// TCP, UDP and unix sockets can be listed.
pub(crate) fn sock_diag() -> Answer {
    inet_diag(libc::IPPROTO_TCP)?;
    inet_diag(libc::IPPROTO_UDP)?;
    // struct unix_diag_req: family, then zeros but for the states.
    let mut request = [0; 24];
    request[0] = byte(libc::AF_UNIX);
    request[4..8].fill(0xff);
    diag("sock_diag(unix)", &request)
}

pub(crate) fn diag_raw() -> Answer {
    inet_diag(libc::IPPROTO_RAW)
}

fn inet_diag(protocol: i32) -> Answer {
    // struct inet_diag_req_v2: family, protocol, extensions, padding, states, an id of 48 bytes.
    let mut request = [0; 56];
    request[0] = byte(libc::AF_INET);
    request[1] = byte(protocol);
    request[4..8].fill(0xff);
    diag(&format!("sock_diag(inet, {protocol})"), &request)
}

fn diag(call: &str, request: &[u8]) -> Answer {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    let sent = message(SOCK_DIAG_BY_FAMILY, DUMP, request);
    told(
        call,
        netlink::ask(&mut Scratch::new()?, libc::NETLINK_SOCK_DIAG, sent)?,
        &[],
    )
}

fn told(call: &str, answer: Result<u16, Errno>, also_yes: &[Errno]) -> Answer {
    judge(call, answer.map(i64::from), also_yes)
}

fn byte(number: i32) -> u8 {
    u8::try_from(number).expect("families and protocols are small numbers")
}

/// Tries an option of a new socket with the value 1.
fn set(family: i32, kind: i32, level: i32, option: i32) -> Answer {
    try_once(&format!("setsockopt({level}, {option})"), &[], |program| {
        let fd = program.socket(family, kind, 0);
        option_on(program, fd, level, option)
    })
}

fn option_on(program: &mut Program, fd: impl Into<Arg>, level: i32, option: i32) -> Ret {
    let one = program.bytes(1i32.to_ne_bytes());
    program.setsockopt(fd, level, option, one, 4)
}

fn get(option: i32) -> Answer {
    try_once(&format!("getsockopt({option})"), &[], |program| {
        let fd = program.socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let value = program.room(64);
        let length = program.in_out(64u32.to_ne_bytes());
        program.getsockopt(fd, libc::SOL_SOCKET, option, value, length)
    })
}

pub(crate) fn peek_off() -> Answer {
    set(
        libc::AF_UNIX,
        libc::SOCK_DGRAM,
        libc::SOL_SOCKET,
        libc::SO_PEEK_OFF,
    )
}

pub(crate) fn so_get() -> Answer {
    get(libc::SO_BINDTODEVICE)?;
    get(libc::SO_GET_FILTER)
}

pub(crate) fn buf_lock() -> Answer {
    get(libc::SO_BUF_LOCK)
}

pub(crate) fn ipv6_freebind() -> Answer {
    const IPV6_FREEBIND: i32 = 78;
    set(
        libc::AF_INET6,
        libc::SOCK_DGRAM,
        libc::SOL_IPV6,
        IPV6_FREEBIND,
    )
}

pub(crate) fn tcp_repair() -> Answer {
    set(
        libc::AF_INET,
        libc::SOCK_STREAM,
        libc::SOL_TCP,
        libc::TCP_REPAIR,
    )
}

/// Repair mode is for connections one side has closed, too. Tried on a connection to ourselves.
pub(crate) fn tcp_half_closed() -> Answer {
    tcp_repair()?;
    let mut task = Scratch::new()?;
    let listener = task.fd(|program| program.socket(libc::AF_INET, libc::SOCK_STREAM, 0))?;
    // 127.0.0.1, any port.
    let mut address = [0; 16];
    address[..2].copy_from_slice(&u16::from(byte(libc::AF_INET)).to_ne_bytes());
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    let mut program = Program::new();
    let wanted = program.bytes(address);
    program.bind(listener, wanted, 16);
    program.listen(listener, 1);
    let given = program.room(16);
    let length = program.in_out(16u32.to_ne_bytes());
    program.call(
        Sysno::getsockname,
        [listener.into(), given.into(), length.into()],
    );
    let address = task.run(&program)?.bytes(given).to_vec();
    let repaired = task.ask(|program| {
        let address = program.bytes(address);
        let client = program.socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        program.connect(client, address, 16);
        program.shutdown(client, libc::SHUT_WR);
        option_on(program, client, libc::SOL_TCP, libc::TCP_REPAIR)
    })?;
    // Repair mode as such was allowed: EPERM is about this state.
    repaired.map(drop).map_err(|errno| {
        Lack::missing(format!(
            "TCP_REPAIR of a half closed socket: {}",
            errno.desc()
        ))
    })
}

pub(crate) fn socket_ns() -> Answer {
    try_once("ioctl(SIOCGSKNS)", &[], |program| {
        let fd = program.socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0);
        program.ioctl(fd, SIOCGSKNS, 0)
    })
}

/// An unbound socket has no file, which is `ENOENT` to a kernel that looks for one.
pub(crate) fn unix_file() -> Answer {
    try_once("ioctl(SIOCUNIXFILE)", &[Errno::ENOENT], |program| {
        let fd = program.socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0);
        program.ioctl(fd, SIOCUNIXFILE, 0)
    })
}

/// The index of a tun device can be chosen.
pub(crate) fn tun() -> Answer {
    const TUNSETIFINDEX: ioctl_num_type = nix::request_code_write!(b'T', 218, 4);
    try_once("tun", &[], |program| {
        let fd = open_tun(program);
        let index = program.bytes(65_000u32.to_ne_bytes());
        program.ioctl(fd, TUNSETIFINDEX, index)
    })
}

pub(crate) fn tun_ns() -> Answer {
    try_once("ioctl(SIOCGSKNS) of tun", &[], |program| {
        let fd = open_tun(program);
        program.ioctl(fd, SIOCGSKNS, 0)
    })
}

fn open_tun(program: &mut Program) -> Ret {
    let path = program.cstr("/dev/net/tun");
    program.openat(libc::AT_FDCWD, path, libc::O_RDWR, 0)
}

/// Ids of network namespaces; links have had them since the same release (4.0).
pub(crate) fn nsid() -> Answer {
    const RTM_GETNSID: u16 = 90;
    const NETNSA_PID: u16 = 2;
    let mut task = Scratch::new()?;
    let mut body = vec![0; 4];
    body.extend(attribute(NETNSA_PID, &task.pid().to_ne_bytes()));
    let sent = message(RTM_GETNSID, 0, &body);
    told(
        "RTM_GETNSID",
        netlink::ask(&mut task, libc::NETLINK_ROUTE, sent)?,
        &[],
    )
}

/// A kernel that knows `IFLA_NEW_IFINDEX` refuses -1 before it looks for the interface, which is not there.
pub(crate) fn new_ifindex() -> Answer {
    const RTM_SETLINK: u16 = 19;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_NEW_IFINDEX: u16 = 49;
    let mut body = vec![0; 16];
    body.extend(attribute(IFLA_NEW_IFINDEX, &(-1i32).to_ne_bytes()));
    body.extend(attribute(IFLA_IFNAME, b"criu-no-such\0"));
    let sent = message(RTM_SETLINK, ACK | CREATE, &body);
    told(
        "IFLA_NEW_IFINDEX",
        netlink::ask(&mut Scratch::new()?, libc::NETLINK_ROUTE, sent)?,
        &[Errno::ERANGE],
    )
}

const NFT: u16 = 10 << 8;

fn nft(kind: u16, flags: u16, family: u8, body: &[u8]) -> Vec<u8> {
    message(NFT | kind, flags, &[&[family, 0, 0, 0], body].concat())
}

pub(crate) fn nftables() -> Answer {
    const GETGEN: u16 = 16;
    told(
        "nftables",
        netlink::ask(
            &mut Scratch::new()?,
            libc::NETLINK_NETFILTER,
            nft(GETGEN, 0, 0, &[]),
        )?,
        &[],
    )
}

/// A set of address and port, made in a network namespace of its own.
pub(crate) fn nft_sets() -> Answer {
    const BEGIN: u16 = 0x10;
    const END: u16 = 0x11;
    const NEWTABLE: u16 = 0;
    const NEWSET: u16 = 9;
    const INET: u8 = 1;
    let mut task = Scratch::new()?;
    task.fd(|program| program.unshare(libc::CLONE_NEWNET))?;
    let name = b"criu\0";
    let number = |kind, value: u32| attribute(kind, &value.to_be_bytes());
    // Table, name, key type (an address and a port), key length, id.
    let set = [
        attribute(1, name),
        attribute(2, name),
        number(4, 7 << 6 | 13),
        number(5, 8),
        number(10, 1),
    ]
    .concat();
    let batch = [0, 0, 0, 10];
    let messages = [
        message(BEGIN, 0, &batch),
        nft(NEWTABLE, CREATE, INET, &attribute(1, name)),
        nft(NEWSET, CREATE | ACK, INET, &set),
        message(END, 0, &batch),
    ];
    told(
        "a set of nftables",
        netlink::ask(&mut task, libc::NETLINK_NETFILTER, messages.concat())?,
        &[],
    )
}

/// The filter table as the older iptables ask for it.
pub(crate) fn legacy_iptables() -> Answer {
    const IPT_SO_GET_INFO: i32 = 64;
    const INFO_SIZE: usize = 84;
    let mut task = Scratch::new()?;
    let answer = task.ask(|program| {
        let mut info = b"filter".to_vec();
        info.resize(INFO_SIZE, 0);
        let info = program.in_out(info);
        let length = program.in_out(84u32.to_ne_bytes());
        let fd = program.socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW);
        program.getsockopt(fd, libc::SOL_IP, IPT_SO_GET_INFO, info, length)
    })?;
    match answer {
        Ok(_) => require(true, ""),
        Err(errno) => Err(refusal("getsockopt(IPT_SO_GET_INFO)", errno)),
    }
}
