//! Messages of nf_tables over netlink: just what a table that drops packets needs.

use std::os::fd::AsRawFd;

use criu_kind::{Error, Result};
use criu_tracee::{Local, Program, Site};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

// `include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h`.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
pub(crate) const NEW_TABLE: u16 = 0;
pub(crate) const DEL_TABLE: u16 = 2;
pub(crate) const NEW_CHAIN: u16 = 3;
pub(crate) const NEW_RULE: u16 = 6;
pub(crate) const GET_RULE: u16 = 7;
pub(crate) const DEL_RULE: u16 = 8;
pub(crate) const NEW_SET: u16 = 9;
pub(crate) const NEW_ELEMENTS: u16 = 12;
/// `NFPROTO_INET`: both families.
const INET: u8 = 1;
const NESTED: u16 = 0x8000;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
/// `NLM_F_DUMP`: all of them.
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;

/// An attribute, padded.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(value.len() + 8);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

pub(crate) fn nested(kind: u16, value: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &value.concat())
}

pub(crate) fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

pub(crate) fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

/// Messages that take effect together, or not at all.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    count: u32,
}

impl Batch {
    /// Starts one.
    pub(crate) fn new() -> Self {
        let mut batch = Self::default();
        batch.message(BATCH_BEGIN, 0, 0, SUBSYSTEM, &[]);
        batch
    }

    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]) {
        let length = u32::try_from(HEADER + 4 + body.len()).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | REQUEST).to_ne_bytes());
        self.bytes.extend(self.count.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(body);
        self.count += 1;
    }

    /// Adds a message about something of both families.
    pub(crate) fn add(&mut self, kind: u16, attributes: &[Vec<u8>]) {
        self.add_in(INET, kind, attributes);
    }

    /// Adds a message.
    pub(crate) fn add_in(&mut self, family: u8, kind: u16, attributes: &[Vec<u8>]) {
        let flags = if [DEL_TABLE, DEL_RULE].contains(&kind) {
            ACK
        } else {
            ACK | CREATE | APPEND
        };
        let kind = SUBSYSTEM << 8 | kind;
        self.message(kind, flags, family, 0, &attributes.concat());
    }

    /// Sends all, and waits for the answers.
    pub(crate) fn commit(mut self, socket: &Socket) -> Result<Result<(), Errno>> {
        let wanted = self.count - 1;
        self.message(BATCH_END, 0, 0, SUBSYSTEM, &[]);
        socket
            .send(&self.bytes, 0)
            .map_err(Error::io("send(NETLINK_NETFILTER)"))?;
        let mut answered = 0;
        let mut result = Ok(());
        while answered < wanted {
            let (answer, _) = socket
                .recv_from_full()
                .map_err(Error::io("recv(NETLINK_NETFILTER)"))?;
            let mut rest = &answer[..];
            while let Some((kind, errno, length)) = header(rest) {
                if kind == ERROR {
                    answered += 1;
                    if errno != 0 {
                        // What follows it in the batch is looked at, too.
                        result = result.and(Err(Errno::from_raw(errno)));
                    }
                }
                rest = rest.get(length..).unwrap_or_default();
            }
            if result.is_err() {
                break;
            }
        }
        Ok(result)
    }
}

/// Asks for all of a kind in a family; `each` is given the attributes of one.
pub(crate) fn dump(
    socket: &Socket,
    family: u8,
    kind: u16,
    attributes: &[Vec<u8>],
    mut each: impl FnMut(&[u8]),
) -> Result<Result<(), Errno>> {
    let mut question = Batch::default();
    let kind = SUBSYSTEM << 8 | kind;
    question.message(kind, DUMP, family, 0, &attributes.concat());
    socket
        .send(&question.bytes, 0)
        .map_err(Error::io("send(NETLINK_NETFILTER)"))?;
    loop {
        let (answer, _) = socket
            .recv_from_full()
            .map_err(Error::io("recv(NETLINK_NETFILTER)"))?;
        let mut rest = &answer[..];
        while let Some((kind, errno, length)) = header(rest) {
            match kind {
                DONE => return Ok(Ok(())),
                ERROR if errno != 0 => return Ok(Err(Errno::from_raw(errno))),
                ERROR => return Ok(Ok(())),
                _ => each(rest.get(HEADER + 4..length).unwrap_or_default()),
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

/// Type, error and length of an answer.
fn header(bytes: &[u8]) -> Option<(u16, i32, usize)> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let error = bytes.get(HEADER..HEADER + 4).map_or(0, |word| {
        i32::from_ne_bytes(word.try_into().unwrap_or([0; 4]))
    });
    Some((kind, -error, length.max(HEADER).next_multiple_of(4)))
}

/// A connection with nf_tables, with room for large batches.
pub(crate) fn open() -> Result<Socket> {
    const ROOM: u32 = 64 << 20;
    let missing = |error: std::io::Error| match error.raw_os_error() {
        Some(libc::EPROTONOSUPPORT) => unavailable(),
        _ => Error::io("socket(NETLINK_NETFILTER)")(error),
    };
    let socket = Socket::new(NETLINK_NETFILTER).map_err(missing)?;
    socket
        .connect(&SocketAddr::new(0, 0))
        .map_err(Error::io("connect(NETLINK_NETFILTER)"))?;
    let mut program = Program::new();
    for name in [libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE] {
        crate::sockets::message::set(&mut program, socket.as_raw_fd(), name, ROOM);
        program.tolerate();
    }
    Local.run(&program)?;
    Ok(socket)
}

/// What to say of a kernel without.
pub(crate) fn unavailable() -> Error {
    Error::unsupported(
        "connections cannot be kept undisturbed: this kernel has no nf_tables",
        "load the module (modprobe nf_tables), or risk it with --network-lock skip",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        assert_eq!(
            text(1, "ab"),
            [&7u16.to_ne_bytes()[..], &1u16.to_ne_bytes(), b"ab\0\0"].concat()
        );
        assert_eq!(number(2, 1).len(), 8);
        let mut batch = Batch::new();
        batch.add(NEW_TABLE, &[text(1, "t")]);
        assert_eq!(batch.bytes.len(), 20 + 20 + 8);
        assert_eq!(batch.count, 2);
        let answer = [
            &36u32.to_ne_bytes()[..],
            &ERROR.to_ne_bytes(),
            &[0; 10],
            &(-2i32).to_ne_bytes(),
        ]
        .concat();
        assert_eq!(header(&answer), Some((ERROR, 2, 36)));
    }
}
