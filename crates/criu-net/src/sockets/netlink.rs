//! Netlink sockets: netlink(7) of every protocol, with the groups they listen to.
//!
//! Not preserved: messages that wait; a number that somebody else has by now is replaced by another.

use std::os::fd::AsRawFd;

use criu_image::pb;
use criu_kind::{DumpCx, Error, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result};
use criu_tracee::Program;
use nix::errno::Errno;
use nix::sys::socket::{NetlinkAddr, getpeername, getsockname};

use crate::sockets::inet::{more, sort};
use crate::sockets::message::{number, option_at, set_at};
use crate::sockets::options;

const NEW: i32 = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
// `include/uapi/linux/netlink.h`.
const SOL_NETLINK: i32 = 270;
const ADD_MEMBERSHIP: i32 = 1;
const LIST_MEMBERSHIPS: i32 = 9;
/// More groups than any protocol has, in bytes of a bit map.
const ROOM: usize = 512;
/// `NETLINK_UNCONNECTED`, `NETLINK_CONNECTED`.
const UNCONNECTED: u32 = 0;
const CONNECTED: u32 = 1;

/// A netlink socket.
#[derive(Debug)]
pub struct Netlink;

impl FileKind for Netlink {
    type Entry = pb::NetlinkSkEntry;
    const NAME: &'static str = "netlink";
    const SINCE: Kernel = Kernel::new(4, 2, 0);

    fn claims(&self, file: &OpenFile) -> bool {
        file.family == Some(libc::AF_NETLINK)
    }

    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        let netns = sort::namespace(cx, file)?;
        let sort = sort::Sort::of(&file.fd)?;
        let fd = file.fd.as_raw_fd();
        let name: NetlinkAddr = getsockname(fd).map_err(Error::kernel("getsockname"))?;
        let peer: NetlinkAddr = getpeername(fd).map_err(Error::kernel("getpeername"))?;
        let groups = option_at(&file.fd, (SOL_NETLINK, LIST_MEMBERSHIPS), ROOM)?;
        // The kernel says how many bytes there are, which may be more than it has written.
        let groups = groups.unwrap_or_default();
        let mut words: Vec<u32> = groups
            .chunks_exact(4)
            .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
            .collect();
        let used = words
            .iter()
            .rposition(|word| *word != 0)
            .map_or(0, |at| at + 1);
        words.truncate(used);
        let is_connected = peer.pid() != 0 || peer.groups() != 0;
        if number(&file.fd, libc::SO_MEMINFO, "getsockopt(SO_MEMINFO)")
            .ok()
            .flatten()
            .is_some_and(|waiting| waiting != 0)
        {
            tracing::warn!(
                socket = file.inode.ino,
                "messages that wait in a netlink socket are lost"
            );
        }
        more::keep(cx, file, sort, file.number(), Vec::new())?;
        Ok(pb::NetlinkSkEntry {
            id: file.number(),
            ino: u32::try_from(file.inode.ino).unwrap_or(0),
            protocol: sort.protocol.cast_unsigned(),
            state: if is_connected { CONNECTED } else { UNCONNECTED },
            flags: file.flags(),
            portid: name.pid(),
            groups: words,
            dst_portid: peer.pid(),
            // A number, of which the kernel shows the bit.
            dst_group: u32::BITS - peer.groups().leading_zeros(),
            fown: file.owner,
            opts: options::read(&file.fd)?,
            ns_id: cx.namespace("net", netns),
        })
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let more = more::Facts::of(cx, entry.id)?;
        let mut program = Program::new();
        let kind = libc::SOCK_RAW | NEW;
        let fd = program.socket(libc::AF_NETLINK, kind, entry.protocol);
        let fd = cx.here().run(&program)?.fd(fd);
        if entry.portid != 0 {
            bind(cx, fd, entry)?;
        }
        let mut program = Program::new();
        for (word, groups) in (0u32..).zip(&entry.groups) {
            let bits = (0..u32::BITS).filter(|bit| groups & 1 << bit != 0);
            for bit in bits {
                set_at(
                    &mut program,
                    fd,
                    (SOL_NETLINK, ADD_MEMBERSHIP),
                    word * 32 + bit + 1,
                );
            }
        }
        if entry.state == CONNECTED {
            let group = match entry.dst_group {
                0 => 0,
                group => 1u32.checked_shl(group - 1).unwrap_or(0),
            };
            let address = program.bytes(address(entry.dst_portid, group));
            program.connect(fd, address, 12);
        }
        options::write(&mut program, fd, &entry.opts);
        cx.here().run(&program)?;
        more::write(cx, fd, &more, false)?;
        Ok(Opened::Here(fd))
    }
}

/// `struct sockaddr_nl`.
fn address(port: u32, groups: u32) -> Vec<u8> {
    let family = u16::try_from(libc::AF_NETLINK).unwrap_or(0);
    [
        &family.to_ne_bytes()[..],
        &[0; 2],
        &port.to_ne_bytes(),
        &groups.to_ne_bytes(),
    ]
    .concat()
}

/// Gives it its number, or one that the kernel chooses.
fn bind(cx: &mut dyn RestoreCx, fd: i32, entry: &pb::NetlinkSkEntry) -> Result<()> {
    for port in [entry.portid, 0] {
        let mut program = Program::new();
        let address = program.bytes(address(port, 0));
        let bound = program.bind(fd, address, 12);
        program.tolerate();
        match cx.here().run(&program)?.get(bound) {
            Err(Errno::EADDRINUSE) if port != 0 => {
                tracing::warn!(
                    port,
                    "the number of a netlink socket is taken; it gets another one"
                );
            }
            Err(errno) => {
                return Err(Error::Kernel {
                    call: "bind",
                    errno,
                });
            }
            Ok(_) => return Ok(()),
        }
    }
    Ok(())
}
