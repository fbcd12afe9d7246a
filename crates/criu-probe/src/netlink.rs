//! One netlink message there and the first one back: all a question needs.

use criu_tracee::{Program, Sysno};
use nix::errno::Errno;

use crate::feature::Lack;
use crate::scratch::Scratch;

/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 1;
/// `NLM_F_ACK`.
pub(crate) const ACK: u16 = 4;
/// `NLM_F_DUMP`.
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;

const ERROR: u16 = 2;

/// A message with its header.
pub(crate) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 16).expect("a question has a few bytes");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | REQUEST).to_ne_bytes());
    bytes.extend([0; 8]); // Sequence number and port.
    bytes.extend(body);
    bytes
}

/// An attribute, padded.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).expect("a question has a few bytes");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Sends messages from a task and gives the type of the first answer, or the error it carries.
pub(crate) fn ask(
    task: &mut Scratch,
    protocol: i32,
    messages: Vec<u8>,
) -> Result<Result<u16, Errno>, Lack> {
    let length = messages.len();
    let mut program = Program::new();
    let out = program.bytes(messages);
    let back = program.room(8192);
    let fd = program.socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol);
    program.call(
        Sysno::sendto,
        [
            fd.into(),
            out.into(),
            length.into(),
            0.into(),
            0.into(),
            0.into(),
        ],
    );
    // The kernel has answered before sendto returns.
    let flags = libc::MSG_DONTWAIT;
    program.call(
        Sysno::recvfrom,
        [
            fd.into(),
            back.into(),
            8192.into(),
            flags.into(),
            0.into(),
            0.into(),
        ],
    );
    let outcome = task.run(&program)?;
    Ok(answer(outcome.bytes(back)))
}

fn answer(bytes: &[u8]) -> Result<u16, Errno> {
    let word = |at: usize| {
        bytes
            .get(at..at + 4)
            .and_then(|word| word.try_into().ok())
            .map_or(0, i32::from_ne_bytes)
    };
    let kind = bytes
        .get(4..6)
        .and_then(|kind| kind.try_into().ok())
        .map_or(0, u16::from_ne_bytes);
    match (kind, word(16)) {
        (ERROR, error) if error != 0 => Err(Errno::from_raw(-error)),
        _ => Ok(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let sent = message(18, DUMP, &attribute(3, b"lo\0"));
        assert_eq!(sent.len(), 16 + 8);
        assert_eq!(sent[16..], [7, 0, 3, 0, b'l', b'o', 0, 0]);
        let refused = message(ERROR, 0, &(-2i32).to_ne_bytes());
        assert_eq!(answer(&refused), Err(Errno::ENOENT));
        assert_eq!(answer(&message(ERROR, 0, &[0; 4])), Ok(ERROR));
        assert_eq!(answer(&message(20, 0, &[9; 4])), Ok(20));
    }
}
