//! What waits in a socket, without taking it: `SO_PEEK_OFF` and `MSG_PEEK`.
//!
//! The descriptor is a copy of the task's, so both act on the task's own socket: what is changed to look is put
//! back. Descriptors that wait come as copies too.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};

use criu_image::pb;
use criu_kind::{Error, Result};
use criu_tracee::{Local, Program, Site, fetch_fd, peek_whole, pidfd_open};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use nix::unistd::{Pid, close};

use crate::sockets::message::{number, set};

/// `include/uapi/asm-generic/socket.h`; the same on every machine.
pub(crate) const SO_PASSPIDFD: i32 = 76;
/// `SCM_MAX_FD` descriptors, credentials, and what else a socket may have asked for.
const CONTROL: usize = 4096;

/// One message, or a run of bytes.
#[derive(Debug, Default)]
pub(crate) struct Packet {
    pub(crate) data: Vec<u8>,
    pub(crate) rights: Vec<OwnedFd>,
    /// The ids as they are here.
    pub(crate) creds: Option<pb::UcredEntry>,
    /// The address of the sender after the family.
    pub(crate) sender: Vec<u8>,
    /// There was no room for all of it.
    cut: bool,
}

/// Options of a socket, put back when it is dropped.
#[derive(Debug)]
pub(crate) struct Borrowed<'a> {
    fd: &'a OwnedFd,
    was: Vec<(i32, u32)>,
}

impl<'a> Borrowed<'a> {
    /// Sets these options; those that the kernel does not know stay.
    pub(crate) fn set(fd: &'a OwnedFd, options: &[(i32, u32, &'static str)]) -> Result<Self> {
        let mut borrowed = Self {
            fd,
            was: Vec::new(),
        };
        for (name, value, call) in options {
            let Some(was) = number(fd, *name, call)? else {
                continue;
            };
            if was != *value {
                let mut program = Program::new();
                set(&mut program, fd.as_raw_fd(), *name, *value);
                Local.run(&program)?;
                borrowed.was.push((*name, was));
            }
        }
        Ok(borrowed)
    }

    fn give_back(&mut self) -> Result<()> {
        let mut program = Program::new();
        for (name, was) in self.was.drain(..).rev() {
            set(&mut program, self.fd.as_raw_fd(), name, was);
        }
        Local.run(&program)?;
        Ok(())
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.give_back() {
            tracing::error!(%error, "an option of a socket could not be put back");
        }
    }
}

/// All that waits. `stream`: bytes without boundaries; `most` bytes may come at once.
pub(crate) fn peek(fd: &OwnedFd, stream: bool, most: usize) -> Result<Vec<Packet>> {
    let mut options = Borrowed::set(
        fd,
        &[
            (libc::SO_PEEK_OFF, 0, "getsockopt(SO_PEEK_OFF)"),
            (libc::SO_PASSCRED, 1, "getsockopt(SO_PASSCRED)"),
            (SO_PASSPIDFD, 0, "getsockopt(SO_PASSPIDFD)"),
        ],
    )?;
    let mut packets: Vec<Packet> = Vec::new();
    let mut offset = 0u32;
    let mut room = vec![0; most.max(1)];
    loop {
        let Some(packet) = look(fd, &mut room)? else {
            break;
        };
        let length = packet.data.len();
        if stream && length == 0 {
            break;
        }
        if packet.cut {
            room.resize(room.len() * 2, 0);
            seek(fd, offset)?;
            continue;
        }
        if !stream || packet.rights.is_empty() || length == 1 {
            offset += u32::try_from(length).unwrap_or(0);
            packets.push(packet);
            continue;
        }
        // Bytes before those the descriptors came with were read along: descriptors belong to the first byte
        // that brings them.
        seek(fd, offset)?;
        let before = peek_whole(fd, &mut room[..length - 1])?;
        if before > 0 {
            seek(fd, offset)?;
            // The kernel glances at what comes next, and shows its descriptors.
            let plain = look(fd, &mut room[..before])?;
            packets.extend(plain.map(|packet| Packet {
                rights: Vec::new(),
                ..packet
            }));
            offset += u32::try_from(before).unwrap_or(0);
        }
        seek(fd, offset)?;
        let Some(packet) = look(fd, &mut room)? else {
            break;
        };
        offset += u32::try_from(packet.data.len()).unwrap_or(0);
        packets.push(packet);
    }
    options.give_back()?;
    Ok(packets)
}

fn seek(fd: &OwnedFd, offset: u32) -> Result<()> {
    let mut program = Program::new();
    set(&mut program, fd.as_raw_fd(), libc::SO_PEEK_OFF, offset);
    Local.run(&program)?;
    Ok(())
}

/// One peek, which moves the offset; `None` when nothing is left.
fn look(fd: &OwnedFd, room: &mut [u8]) -> Result<Option<Packet>> {
    let mut control = vec![0; CONTROL];
    let mut vector = [IoSliceMut::new(room)];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let got = recvmsg::<UnixAddr>(fd.as_raw_fd(), &mut vector, Some(&mut control), flags);
    let message = match got {
        Ok(message) => message,
        // Packets in sequence need a connection to be asked for.
        Err(Errno::EAGAIN | Errno::ENOTCONN) => return Ok(None),
        Err(errno) => {
            return Err(Error::Kernel {
                call: "recvmsg(MSG_PEEK)",
                errno,
            });
        }
    };
    let length = message.bytes;
    let mut packet = Packet {
        sender: message.address.as_ref().map(name).unwrap_or_default(),
        ..Packet::default()
    };
    let mut comes_from_somebody = false;
    let cut = message.flags;
    let mut raw = Vec::new();
    for one in message
        .cmsgs()
        .map_err(Error::kernel("recvmsg(MSG_PEEK)"))?
    {
        match one {
            ControlMessageOwned::ScmRights(fds) => raw.extend(fds),
            ControlMessageOwned::ScmCredentials(creds) => {
                comes_from_somebody = true;
                let pid = creds.pid().unsigned_abs();
                // Nobody has signed it.
                if pid != 0 {
                    packet.creds = Some(pb::UcredEntry {
                        pid,
                        uid: creds.uid(),
                        gid: creds.gid(),
                    });
                }
            }
            _ => {}
        }
    }
    packet.rights = own(raw)?;
    if cut.contains(MsgFlags::MSG_CTRUNC) {
        return Err(Error::unsupported(
            "descriptors wait in it that do not fit into this process",
            "raise the limit of descriptors: `ulimit -n`",
        ));
    }
    packet.cut = cut.contains(MsgFlags::MSG_TRUNC);
    // Every message has a sender; the end has none.
    if length == 0 && !comes_from_somebody {
        return Ok(None);
    }
    packet.data = room[..length].to_vec();
    Ok(Some(packet))
}

/// Takes descriptors in that came with a message.
fn own(raw: Vec<i32>) -> Result<Vec<OwnedFd>> {
    if raw.is_empty() {
        return Ok(Vec::new());
    }
    let me = pidfd_open(Pid::this())?;
    let mut owned = Vec::with_capacity(raw.len());
    for fd in raw {
        owned.extend(fetch_fd(&me, fd)?);
        close(fd).map_err(Error::kernel("close"))?;
    }
    Ok(owned)
}

/// An address after the family, as images have it.
fn name(address: &UnixAddr) -> Vec<u8> {
    use nix::sys::socket::SockaddrLike;
    use std::os::unix::ffi::OsStrExt;
    // Not even a family: who sent it has no address.
    if (address.len() as usize) < size_of::<libc::sa_family_t>() {
        return Vec::new();
    }
    match (address.path(), address.as_abstract()) {
        (Some(path), _) => [path.as_os_str().as_bytes(), &[0]].concat(),
        (None, Some(name)) => [&[0][..], name].concat(),
        (None, None) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read, Write};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    #[test]
    fn a_stream_is_looked_into_and_stays() {
        let (mut one, mut other) = UnixStream::pair().expect("a pair");
        one.write_all(b"plain").expect("room");
        let file = std::fs::File::open("/dev/null").expect("a device");
        let fds = [file.as_raw_fd()];
        sendmsg::<()>(
            one.as_raw_fd(),
            &[IoSlice::new(b"with")],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::empty(),
            None,
        )
        .expect("room");
        one.write_all(b"after").expect("room");
        let copy: OwnedFd = other.try_clone().expect("a copy").into();
        for _ in 0..2 {
            let packets = peek(&copy, true, 1000).expect("a queue");
            let parts: Vec<_> = packets
                .iter()
                .map(|packet| (&packet.data[..], packet.rights.len()))
                .collect();
            assert_eq!(parts, [(&b"plain"[..], 0), (b"with", 1), (b"after", 0)]);
        }
        let mut all = [0; 14];
        other.read_exact(&mut all).expect("still there");
        assert_eq!(&all, b"plainwithafter");
        let passes = number(&copy, libc::SO_PASSCRED, "getsockopt(SO_PASSCRED)");
        assert_eq!(passes.expect("an option"), Some(0));
    }

    #[test]
    fn datagrams_keep_their_ends() {
        let (one, other) = UnixDatagram::pair().expect("a pair");
        for text in [&b"one"[..], b"", b"three"] {
            one.send(text).expect("room");
        }
        let other: OwnedFd = other.into();
        let packets = peek(&other, false, 1).expect("a queue");
        let parts: Vec<_> = packets.iter().map(|packet| &packet.data[..]).collect();
        assert_eq!(parts, [&b"one"[..], b"", b"three"]);
    }
}
