//! Which sort of internet socket it is, and which sorts can be kept.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use criu_image::pb;
use criu_kind::{DumpCx, Error, OpenFile, Result};
use criu_proc::ProcDir;
use criu_tracee::{Local, Program, Site};
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::sockets::inet::address::is_v6;
use crate::sockets::message::{number, option_at};

/// `SIOCGSKNS` of `include/uapi/linux/sockios.h`.
const SIOCGSKNS: u32 = 0x894c;

/// Family, type and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sort {
    pub(crate) family: u32,
    pub(crate) kind: i32,
    pub(crate) protocol: i32,
}

impl Sort {
    /// What a socket is.
    pub(crate) fn of(fd: &OwnedFd) -> Result<Self> {
        let ask = |name, call| Ok::<_, Error>(number(fd, name, call)?.unwrap_or(0).cast_signed());
        Ok(Self {
            family: ask(libc::SO_DOMAIN, "getsockopt(SO_DOMAIN)")?.cast_unsigned(),
            kind: ask(libc::SO_TYPE, "getsockopt(SO_TYPE)")?,
            protocol: ask(libc::SO_PROTOCOL, "getsockopt(SO_PROTOCOL)")?,
        })
    }

    /// What an image says. Those of older kernels may have no protocol.
    pub(crate) fn of_entry(entry: &pb::InetSkEntry) -> Self {
        Self {
            family: entry.family,
            kind: entry.r#type.cast_signed(),
            protocol: entry.proto.cast_signed(),
        }
    }

    pub(crate) fn is_v6(&self) -> bool {
        is_v6(self.family)
    }

    pub(crate) fn is_raw(&self) -> bool {
        self.kind == libc::SOCK_RAW
    }

    pub(crate) fn is_tcp(&self) -> bool {
        self.kind == libc::SOCK_STREAM
    }

    pub(crate) fn is_udp(&self) -> bool {
        self.kind == libc::SOCK_DGRAM
            && [0, libc::IPPROTO_UDP, libc::IPPROTO_UDPLITE].contains(&self.protocol)
    }

    /// Refuses, by name, what cannot be kept.
    pub(crate) fn check(&self) -> Result<()> {
        let known = match self.kind {
            libc::SOCK_STREAM => [0, libc::IPPROTO_TCP].contains(&self.protocol),
            libc::SOCK_DGRAM => {
                self.is_udp() || [libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6].contains(&self.protocol)
            }
            kind => kind == libc::SOCK_RAW,
        };
        if known {
            return Ok(());
        }
        let (name, remedy) = match self.protocol {
            libc::IPPROTO_MPTCP => (
                "multipath TCP (MPTCP)",
                "let the program use plain TCP; Go programs do with GODEBUG=multipathtcp=0",
            ),
            libc::IPPROTO_SCTP => ("SCTP", "close it before the dump"),
            libc::IPPROTO_DCCP => ("DCCP", "close it before the dump"),
            _ => ("a protocol that cannot be kept", "close it before the dump"),
        };
        let fact = format!(
            "a socket of {name} (type {}, protocol {})",
            self.kind, self.protocol
        );
        Err(Error::unsupported(fact, remedy))
    }
}

/// `SO_NETNS_COOKIE` of `include/uapi/asm-generic/socket.h`, Linux 5.14; the same on every machine.
const SO_NETNS_COOKIE: i32 = 71;

/// The network namespace that we are in.
#[derive(Debug)]
struct Ours {
    inode: u64,
    /// A number that no other has, if the kernel gives them one.
    cookie: Option<Vec<u8>>,
}

impl Ours {
    fn ask() -> Result<Self> {
        let inode = ProcDir::open(Pid::this())?.ns("net")?.inode;
        let ours = UnixDatagram::unbound().map_err(Error::io("socket"))?;
        let cookie = cookie(&ours)?;
        Ok(Self { inode, cookie })
    }
}

fn cookie(socket: impl AsFd) -> Result<Option<Vec<u8>>> {
    option_at(socket, (libc::SOL_SOCKET, SO_NETNS_COOKIE), 8)
}

/// The inode number of the network namespace we are in; a socket of another one is refused.
pub(crate) fn namespace(cx: &mut dyn DumpCx, file: &OpenFile) -> Result<u64> {
    let ours = cx.cached(Ours::ask)?;
    if ours.cookie.is_some() && cookie(&file.fd)? == ours.cookie {
        return Ok(ours.inode);
    }
    let ours = ours.inode;
    let mut program = Program::new();
    let got = program.ioctl(file.fd.as_raw_fd(), SIOCGSKNS, 0);
    program.tolerate();
    let theirs = match Local.run(&program)?.get(got) {
        Ok(fd) => {
            let fd = i32::try_from(fd).unwrap_or(-1);
            let stat = nix::sys::stat::stat(format!("/proc/self/fd/{fd}").as_str());
            nix::unistd::close(fd).map_err(Error::kernel("close"))?;
            stat.map_err(Error::kernel("stat"))?.st_ino
        }
        // Without the privilege, or before Linux 4.10: what is not ours is not in the kernel's list.
        Err(Errno::EPERM | Errno::ENOTTY) => return Ok(ours),
        Err(errno) => {
            return Err(Error::Kernel {
                call: "ioctl(SIOCGSKNS)",
                errno,
            });
        }
    };
    if u64::from(theirs) == ours {
        return Ok(ours);
    }
    Err(Error::unsupported(
        "a socket of another network namespace",
        "run criu inside that namespace (nsenter), or let the task close the socket",
    ))
}
