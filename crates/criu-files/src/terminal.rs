//! What ioctl(2) says of a terminal and sets: termios, size, locks.

use criu_image::pb;
use criu_kind::{Error, Result};
use criu_tracee::{Local, Program, Site, Sysno};
use nix::errno::Errno;

/// `NCCS` of the kernel: MIPS has more control characters, and other numbers of requests.
const NCC: usize = if libc::TCGETS == 0x5401 { 19 } else { 23 };
/// Four words, the line discipline, control characters.
pub(crate) const TERMIOS: usize = 4 * 4 + 1 + NCC;

/// A request of ioctl(2) as programs take it.
#[allow(
    clippy::unnecessary_cast,
    reason = "requests have the width of a long, which differs"
)]
pub(crate) const fn request(number: libc::Ioctl) -> u64 {
    number as u64
}

/// What a request gives, in this many bytes; `None` of a terminal that has hung up, or does not know it.
pub(crate) fn get(fd: i32, number: libc::Ioctl, size: usize) -> Result<Option<Vec<u8>>> {
    let mut program = Program::new();
    let room = program.room(size);
    let got = program.ioctl(fd, request(number), room);
    program.tolerate();
    let outcome = Local.run(&program)?;
    match outcome.get(got) {
        Ok(_) => Ok(Some(outcome.bytes(room).to_vec())),
        Err(Errno::EIO | Errno::ENOTTY | Errno::EINVAL) => Ok(None),
        Err(errno) => Err(Error::Kernel {
            call: "ioctl",
            errno,
        }),
    }
}

/// An answer that is an int.
pub(crate) fn number(fd: i32, request: libc::Ioctl) -> Result<Option<u32>> {
    let bytes = get(fd, request, 4)?;
    Ok(bytes.map(|bytes| word(&bytes, 0)))
}

/// Whether something can be read; else the kernel passes on first what is on its way.
pub(crate) fn readable(fd: i32) -> Result<bool> {
    let mut program = Program::new();
    let events = [libc::POLLIN.to_ne_bytes(), [0; 2]].concat();
    let asked = [&fd.to_ne_bytes()[..], &events].concat();
    let asked = program.in_out(asked);
    let now = program.bytes(vec![0; 16]);
    let count = program.call(
        Sysno::ppoll,
        [asked.into(), 1.into(), now.into(), 0.into(), 0.into()],
    );
    Ok(Local.run(&program)?.value(count) > 0)
}

pub(crate) fn word(bytes: &[u8], index: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[index * 4..index * 4 + 4]);
    u32::from_ne_bytes(word)
}

fn short(bytes: &[u8], index: usize) -> u32 {
    u16::from_ne_bytes([bytes[index * 2], bytes[index * 2 + 1]]).into()
}

/// Settings as images have them.
pub(crate) fn termios(bytes: &[u8]) -> pb::TermiosEntry {
    pb::TermiosEntry {
        c_iflag: word(bytes, 0),
        c_oflag: word(bytes, 1),
        c_cflag: word(bytes, 2),
        c_lflag: word(bytes, 3),
        c_line: bytes[16].into(),
        c_ispeed: 0,
        c_ospeed: 0,
        c_cc: bytes[17..17 + NCC]
            .iter()
            .map(|one| u32::from(*one))
            .collect(),
    }
}

/// `struct termios` of the kernel.
pub(crate) fn termios_bytes(entry: &pb::TermiosEntry) -> Vec<u8> {
    let low = |value: u32| value.to_le_bytes()[0];
    let words = [entry.c_iflag, entry.c_oflag, entry.c_cflag, entry.c_lflag];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.push(low(entry.c_line));
    bytes.extend(entry.c_cc.iter().take(NCC).map(|one| low(*one)));
    bytes.resize(TERMIOS.next_multiple_of(4), 0);
    bytes
}

/// The size of a window.
pub(crate) fn winsize(bytes: &[u8]) -> pb::WinsizeEntry {
    pb::WinsizeEntry {
        ws_row: short(bytes, 0),
        ws_col: short(bytes, 1),
        ws_xpixel: short(bytes, 2),
        ws_ypixel: short(bytes, 3),
    }
}

/// Adds what all descriptors of a terminal have in common. Locked settings come first: setting them is what a
/// lock prevents.
pub(crate) fn set(program: &mut Program, fd: i32, info: &pb::TtyInfoEntry) {
    if let Some(termios) = &info.termios {
        let bytes = program.bytes(termios_bytes(termios));
        program.ioctl(fd, request(libc::TCSETS), bytes);
    }
    if let Some(locked) = &info.termios_locked
        && termios_bytes(locked).iter().any(|byte| *byte != 0)
    {
        let bytes = program.bytes(termios_bytes(locked));
        program.ioctl(fd, request(libc::TIOCSLCKTRMIOS), bytes);
    }
    if let Some(size) = &info.winsize {
        let words = [size.ws_row, size.ws_col, size.ws_xpixel, size.ws_ypixel];
        let words = words.iter().flat_map(|word| {
            let [low, high, ..] = word.to_le_bytes();
            u16::from_le_bytes([low, high]).to_ne_bytes()
        });
        let bytes = program.bytes(words.collect::<Vec<u8>>());
        program.ioctl(fd, request(libc::TIOCSWINSZ), bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back() {
        let bytes: Vec<u8> = (0..40).collect();
        let entry = termios(&bytes);
        assert_eq!(entry.c_line, 16);
        assert_eq!(termios_bytes(&entry)[..TERMIOS], bytes[..TERMIOS]);
    }
}
