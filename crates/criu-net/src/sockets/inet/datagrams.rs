//! Datagrams that wait in a UDP socket: looked at, and brought in again as packets from who had sent them.

use std::collections::HashMap;
use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{DumpCx, Error, OpenFile, RestoreCx, Result};
use criu_tracee::Program;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};

use crate::sockets::inet::address::of_words;
use crate::sockets::inet::packet::{datagram, inject};
use crate::sockets::inet::sort::Sort;
use crate::sockets::message::{number_at, set_at};
use crate::sockets::queue::Borrowed;

/// The largest that there can be.
const MOST: usize = 65_536;
const LOOKS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(1);

/// The option by which the kernel says where a datagram was sent to.
fn destination(sort: &Sort) -> (i32, i32) {
    if sort.is_v6() {
        (libc::SOL_IPV6, libc::IPV6_RECVORIGDSTADDR)
    } else {
        (libc::SOL_IP, libc::IP_RECVORIGDSTADDR)
    }
}

/// What a task has not said all of, nobody else can read: `UDP_CORK`, `MSG_MORE`. The kernel only tells that there is
/// something, as it does for a moment of what was sent.
pub(crate) fn refuse_gathered(fd: &OwnedFd) -> Result<()> {
    #[allow(
        clippy::unnecessary_cast,
        reason = "requests have the width of a long, which differs"
    )]
    let request = libc::TIOCOUTQ as u64;
    for _ in 0..LOOKS {
        let mut program = Program::new();
        let count = program.room(4);
        let asked = program.ioctl(fd.as_raw_fd(), request, count);
        program.tolerate();
        let outcome = criu_tracee::Site::run(&mut criu_tracee::Local, &program)?;
        if outcome.get(asked).is_err() || outcome.bytes(count) == [0; 4] {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
    Err(Error::unsupported(
        "a datagram is being gathered in it (UDP_CORK, MSG_MORE), or a device does not send one",
        "let the task send it before the dump",
    ))
}

/// Writes what waits.
pub(crate) fn keep(cx: &mut dyn DumpCx, file: &OpenFile, entry: &pb::InetSkEntry) -> Result<()> {
    let sort = Sort::of_entry(entry);
    for packet in peek(&file.fd, &sort)? {
        let ext = pb::FilesExtEntry {
            datagram: Some(pb::DatagramEntry {
                socket_id: entry.id,
                ..packet
            }),
            ..pb::FilesExtEntry::default()
        };
        cx.append(desc::FILES_EXT, (), &ext, &[])?;
    }
    Ok(())
}

/// Looks at all of them.
fn peek(fd: &OwnedFd, sort: &Sort) -> Result<Vec<pb::DatagramEntry>> {
    // Without it each look would see the first.
    let _offset = Borrowed::set(fd, &[(libc::SO_PEEK_OFF, 0, "getsockopt(SO_PEEK_OFF)")])?;
    let (level, name) = destination(sort);
    let told = number_at(fd, level, name)?.unwrap_or(0);
    let switch = |value| {
        let mut program = Program::new();
        set_at(&mut program, fd.as_raw_fd(), (level, name), value);
        criu_tracee::Site::run(&mut criu_tracee::Local, &program)
    };
    switch(1)?;
    let mut all = Vec::new();
    let mut failed = None;
    loop {
        match look(fd) {
            Ok(Some(packet)) => all.push(packet),
            Ok(None) => break,
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    switch(told)?;
    failed.map_or(Ok(all), Err)
}

fn look(fd: &OwnedFd) -> Result<Option<pb::DatagramEntry>> {
    let mut room = vec![0; MOST];
    let mut control = vec![0; 1024];
    let mut vector = [IoSliceMut::new(&mut room)];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let got = recvmsg::<SockaddrStorage>(fd.as_raw_fd(), &mut vector, Some(&mut control), flags);
    let message = match got {
        Ok(message) => message,
        // An error that waits is taken by the look; so it goes on to the next.
        Err(Errno::ECONNREFUSED) => return look(fd),
        Err(Errno::EAGAIN) => return Ok(None),
        Err(errno) => {
            return Err(Error::Kernel {
                call: "recvmsg(MSG_PEEK)",
                errno,
            });
        }
    };
    let length = message.bytes;
    let from = message.address.as_ref().and_then(plain);
    let mut to = None;
    for one in message
        .cmsgs()
        .map_err(Error::kernel("recvmsg(MSG_PEEK)"))?
    {
        match one {
            ControlMessageOwned::Ipv4OrigDstAddr(address) => {
                to = Some(SocketAddr::V4(
                    nix::sys::socket::SockaddrIn::from(address).into(),
                ));
            }
            ControlMessageOwned::Ipv6OrigDstAddr(address) => {
                to = Some(SocketAddr::V6(
                    nix::sys::socket::SockaddrIn6::from(address).into(),
                ));
            }
            _ => {}
        }
    }
    let bytes = |address: &SocketAddr| match address {
        SocketAddr::V4(address) => address.ip().octets().to_vec(),
        SocketAddr::V6(address) => address.ip().octets().to_vec(),
    };
    let (Some(from), Some(to)) = (from, to) else {
        return Err(Error::unsupported(
            "a datagram waits in it, and the kernel does not say where it came from",
            "let the task read it before the dump",
        ));
    };
    Ok(Some(pb::DatagramEntry {
        socket_id: 0,
        from_port: from.port().into(),
        from: bytes(&from),
        to_port: to.port().into(),
        to: bytes(&to),
        data: room[..length].to_vec(),
    }))
}

fn plain(address: &SockaddrStorage) -> Option<SocketAddr> {
    let four = address
        .as_sockaddr_in()
        .map(|one| SocketAddr::V4((*one).into()));
    four.or_else(|| {
        address
            .as_sockaddr_in6()
            .map(|one| SocketAddr::V6((*one).into()))
    })
}

/// All of the images, by the socket they wait in.
#[derive(Debug, Default)]
struct Waiting(HashMap<u32, Vec<pb::DatagramEntry>>);

impl Waiting {
    fn load(store: &dyn Store) -> Result<Self> {
        let all = store.entries::<pb::FilesExtEntry>(desc::FILES_EXT, ())?;
        let mut waiting = Self::default();
        for one in all
            .unwrap_or_default()
            .into_iter()
            .filter_map(|ext| ext.message.datagram)
        {
            waiting.0.entry(one.socket_id).or_default().push(one);
        }
        Ok(waiting)
    }
}

/// Whether something waits for a socket.
pub(crate) fn waits(cx: &mut dyn RestoreCx, id: u32) -> Result<bool> {
    Ok(cx.cached(Waiting::load)?.0.contains_key(&id))
}

/// Brings in what waited in a socket that is open here as `fd`, and waits until it is there.
pub(crate) fn refill(cx: &mut dyn RestoreCx, fd: i32, id: u32) -> Result<()> {
    let waiting = cx.cached(Waiting::load)?;
    let Some(all) = waiting.0.get(&id) else {
        return Ok(());
    };
    for one in all {
        let from = end(&one.from, one.from_port)?;
        let to = end(&one.to, one.to_port)?;
        let packet = datagram(&from, &to, &one.data);
        let before = filled(cx, fd)?;
        if let Err(error) = inject(cx, &to, &[packet]) {
            tracing::warn!(socket = id, %from, %error, "a datagram that waited is lost");
            continue;
        }
        let mut arrived = false;
        for _ in 0..LOOKS {
            arrived = filled(cx, fd)? > before;
            if arrived {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        if !arrived {
            tracing::warn!(socket = id, %from, "a datagram that waited is lost");
        }
    }
    Ok(())
}

/// Memory that what waits takes: it grows with each datagram, also with an empty one.
fn filled(cx: &mut dyn RestoreCx, fd: i32) -> Result<u32> {
    /// `SO_MEMINFO` of `include/uapi/asm-generic/socket.h`; its first word is what is received.
    const SO_MEMINFO: i32 = 55;
    let mut program = Program::new();
    let words = program.room(36);
    let length = program.in_out(36u32.to_ne_bytes());
    program.getsockopt(fd, libc::SOL_SOCKET, SO_MEMINFO, words, length);
    let outcome = cx.here().run(&program)?;
    let mut word = [0; 4];
    word.copy_from_slice(&outcome.bytes(words)[..4]);
    Ok(u32::from_ne_bytes(word))
}

fn end(bytes: &[u8], port: u32) -> Result<SocketAddr> {
    let family = if bytes.len() == 4 {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let words: Vec<u32> = bytes
        .chunks_exact(4)
        .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
        .collect();
    of_words(family.unsigned_abs(), &words, port)
}
