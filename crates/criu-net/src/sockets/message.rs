//! `struct msghdr` for a program, and options of sockets by number: words of the machine's width.

use std::os::fd::AsFd;

use criu_image::pb;
use criu_kind::{Error, Result};
use criu_tracee::{Arg, Program, Ret, socket_option};
use nix::errno::Errno;

const WORD: usize = size_of::<usize>();

/// A message to be sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message<'a> {
    /// The address after the family; empty for a connected socket.
    pub(crate) to: Vec<u8>,
    /// The bytes.
    pub(crate) data: &'a [u8],
    /// Descriptors that go with it.
    pub(crate) rights: Vec<i32>,
    /// Who says to have sent it.
    pub(crate) creds: Option<pb::UcredEntry>,
}

impl Message<'_> {
    /// Adds the call that sends it.
    pub(crate) fn send(&self, fd: i32, program: &mut Program) -> Ret {
        let mut control = Vec::new();
        if !self.rights.is_empty() {
            let rights = self.rights.iter().flat_map(|fd| fd.to_ne_bytes());
            header(libc::SCM_RIGHTS, &rights.collect::<Vec<u8>>(), &mut control);
        }
        if let Some(creds) = &self.creds {
            let words = [creds.pid, creds.uid, creds.gid];
            let words = words.iter().flat_map(|word| word.to_ne_bytes());
            header(
                libc::SCM_CREDENTIALS,
                &words.collect::<Vec<u8>>(),
                &mut control,
            );
        }
        let address = (!self.to.is_empty()).then(|| address(&self.to));
        let name_length = address.as_ref().map_or(0, Vec::len);
        let words = [0, name_length, 0, 1, 0, control.len(), 0];
        let words = words.iter().flat_map(|word: &usize| word.to_ne_bytes());
        let message = program.bytes(words.collect::<Vec<u8>>());
        if let Some(address) = address {
            let address = program.bytes(address);
            program.link(message, 0, address);
        }
        let data = program.bytes(self.data);
        let vector = program.bytes([[0; WORD], self.data.len().to_ne_bytes()].concat());
        program.link(vector, 0, data);
        program.link(message, 2 * WORD, vector);
        if !control.is_empty() {
            let control = program.bytes(control);
            program.link(message, 4 * WORD, control);
        }
        program.sendmsg(fd, message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    }
}

/// One control message, aligned.
fn header(kind: i32, data: &[u8], control: &mut Vec<u8>) {
    let length = WORD + 8 + data.len();
    control.extend((length).to_ne_bytes());
    control.extend(libc::SOL_SOCKET.to_ne_bytes());
    control.extend(kind.to_ne_bytes());
    control.extend(data);
    control.resize(control.len().next_multiple_of(WORD), 0);
}

/// `struct sockaddr_un` up to the end of the name.
pub(crate) fn address(name: &[u8]) -> Vec<u8> {
    let family = u16::try_from(libc::AF_UNIX).unwrap_or(1);
    [&family.to_ne_bytes(), name].concat()
}

/// An option of at most `room` bytes; `None` if the kernel does not know it, or the socket has none.
pub(crate) fn option(
    fd: impl AsFd,
    name: i32,
    call: &'static str,
    room: usize,
) -> Result<Option<Vec<u8>>> {
    let count = u32::try_from(room).unwrap_or(u32::MAX);
    match ask(fd, name, room, count)? {
        Ok((mut bytes, count)) => {
            bytes.truncate(count as usize);
            Ok(Some(bytes))
        }
        Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(None),
        Err(errno) => Err(Error::Kernel { call, errno }),
    }
}

/// getsockopt(2) with `room` bytes, of which the kernel is told as `count`: bytes, but of filters instructions.
pub(crate) fn ask(
    fd: impl AsFd,
    name: i32,
    room: usize,
    count: u32,
) -> Result<Result<(Vec<u8>, u32), Errno>> {
    ask_at(fd, libc::SOL_SOCKET, name, &vec![0; room], count)
}

/// The same for an option of any level; `bytes` is what the kernel finds where it writes.
pub(crate) fn ask_at(
    fd: impl AsFd,
    level: i32,
    name: i32,
    bytes: &[u8],
    count: u32,
) -> Result<Result<(Vec<u8>, u32), Errno>> {
    let mut value = bytes.to_vec();
    let got = socket_option(fd, (level, name), &mut value, count);
    Ok(got.map(|count| (value, count)))
}

/// An option of any level; `None` if the socket has none.
pub(crate) fn option_at(
    fd: impl AsFd,
    (level, name): (i32, i32),
    room: usize,
) -> Result<Option<Vec<u8>>> {
    let count = u32::try_from(room).unwrap_or(u32::MAX);
    let got = ask_at(fd, level, name, &vec![0; room], count)?;
    Ok(got.ok().map(|(mut bytes, count)| {
        bytes.truncate(count as usize);
        bytes
    }))
}

/// An option of any level that is an int; `None` if the socket has none.
pub(crate) fn number_at(fd: impl AsFd, level: i32, name: i32) -> Result<Option<u32>> {
    let bytes = option_at(fd, (level, name), 4)?;
    Ok(bytes.map(|bytes| word(&bytes)))
}

fn word(bytes: &[u8]) -> u32 {
    let mut number = [0; 4];
    let length = bytes.len().min(4);
    number[..length].copy_from_slice(&bytes[..length]);
    u32::from_ne_bytes(number)
}

/// An option that is an int.
pub(crate) fn number(fd: impl AsFd, name: i32, call: &'static str) -> Result<Option<u32>> {
    let mut value = [0; 4];
    match socket_option(fd, (libc::SOL_SOCKET, name), &mut value, 4) {
        Ok(count) => Ok(Some(word(&value[..count.min(4) as usize]))),
        Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(None),
        Err(errno) => Err(Error::Kernel { call, errno }),
    }
}

/// Adds the call that sets an option that is an int.
pub(crate) fn set(program: &mut Program, fd: i32, name: i32, value: u32) -> Ret {
    set_at(program, fd, (libc::SOL_SOCKET, name), value)
}

/// The same for an option of any level.
pub(crate) fn set_at(
    program: &mut Program,
    fd: impl Into<Arg>,
    (level, name): (i32, i32),
    value: u32,
) -> Ret {
    let value = program.bytes(value.to_ne_bytes());
    program.setsockopt(fd, level, name, value, 4)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_message_with_everything() {
        let mut program = Program::new();
        let message = Message {
            to: b"\0name".to_vec(),
            data: b"data",
            rights: vec![7],
            creds: Some(pb::UcredEntry {
                pid: 1,
                uid: 2,
                gid: 3,
            }),
        };
        message.send(5, &mut program);
        if WORD == 8 && cfg!(target_endian = "little") && libc::SOL_SOCKET == 1 {
            expect![[r#"
                $0 = sendmsg(5, <0000000000000000070000000000000000000000000000000100000000000000000000000000000038000000000000000000000000000000>, 0x4040)
            "#]]
            .assert_eq(&program.to_string());
        }
    }
}
