//! What waits in a pair of terminals.
//!
//! Nothing can be looked at there: what waits is read and written again at once, with settings that keep the
//! kernel from changing it on the way. A line that is not yet complete stays one.
//! Not preserved: where a line ended by an end-of-file character, if data follows it.

use criu_image::pb;
use criu_kind::{Error, Result};
use criu_tracee::{Local, Program, Site};
use nix::errno::Errno;

use crate::terminal::{self, request};

const ICANON: u32 = libc::ICANON;
const VEOF: usize = libc::VEOF;
/// `_POSIX_VDISABLE`.
const NONE: u32 = 0;
const O_NONBLOCK: i32 = libc::O_NONBLOCK;

/// A master and a slave, open here, and how they are set.
pub(crate) struct Pair<'a> {
    pub(crate) master: i32,
    pub(crate) slave: i32,
    pub(crate) termios: &'a pb::TermiosEntry,
    pub(crate) packets: bool,
}

impl Pair<'_> {
    /// What waits to be read from the master, and from the slave. Both are back in place afterwards.
    pub(crate) fn borrow(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        self.quietly(|| {
            let out = drain(self.master)?;
            let mut lines = drain(self.slave)?;
            if self.is_canonical() {
                // What is left is a line without an end; other settings let it be read.
                self.set(false)?;
                lines.extend(drain(self.slave)?);
                self.set(true)?;
            }
            self.give_raw(&out, &lines)?;
            Ok((out, lines))
        })
    }

    /// Lets this wait there.
    pub(crate) fn give(&self, out: &[u8], lines: &[u8]) -> Result<()> {
        self.quietly(|| self.give_raw(out, lines))
    }

    fn is_canonical(&self) -> bool {
        self.termios.c_lflag & ICANON != 0
    }

    fn give_raw(&self, out: &[u8], lines: &[u8]) -> Result<()> {
        put(self.slave, out)?;
        arrive(self.master, out.len())?;
        put(self.master, lines)?;
        let whole = match self.is_canonical() {
            true => lines
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |last| last + 1),
            false => lines.len(),
        };
        arrive(self.slave, whole)
    }

    /// Does something while the kernel changes nothing.
    fn quietly<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let mode = |fd| {
            let flags = fcntl(fd, libc::F_GETFL, 0)?;
            fcntl(fd, libc::F_SETFL, flags | O_NONBLOCK)?;
            Ok::<_, Error>(flags)
        };
        let flags = (mode(self.master)?, mode(self.slave)?);
        self.packet_mode(0)?;
        self.set(self.is_canonical())?;
        let done = act();
        let mut program = Program::new();
        let bytes = program.bytes(terminal::termios_bytes(self.termios));
        program.ioctl(self.slave, request(libc::TCSETS), bytes);
        Local.run(&program)?;
        self.packet_mode(1)?;
        fcntl(self.master, libc::F_SETFL, flags.0)?;
        fcntl(self.slave, libc::F_SETFL, flags.1)?;
        done
    }

    fn packet_mode(&self, on: u32) -> Result<()> {
        if self.packets {
            let mut program = Program::new();
            let on = program.bytes(on.to_ne_bytes());
            program.ioctl(self.master, request(libc::TIOCPKT), on);
            Local.run(&program)?;
        }
        Ok(())
    }

    /// Settings under which bytes pass as they are, and lines end where they end.
    fn set(&self, canonical: bool) -> Result<()> {
        let mut quiet = self.termios.clone();
        quiet.c_iflag = 0;
        quiet.c_oflag = 0;
        quiet.c_lflag = if canonical { ICANON } else { 0 };
        for (index, one) in quiet.c_cc.iter_mut().enumerate() {
            if index != VEOF || !canonical {
                *one = NONE;
            }
        }
        let mut program = Program::new();
        let bytes = program.bytes(terminal::termios_bytes(&quiet));
        program.ioctl(self.slave, request(libc::TCSETS), bytes);
        Local.run(&program)?;
        Ok(())
    }
}

/// Everything that can be read.
fn drain(fd: i32) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let mut program = Program::new();
        let room = program.room(4096);
        let got = program.read(fd, room, 4096);
        program.tolerate();
        let outcome = Local.run(&program)?;
        match outcome.get(got) {
            Ok(0) | Err(Errno::EAGAIN | Errno::EIO) => return Ok(all),
            Ok(count) => {
                let count = usize::try_from(count).unwrap_or(0);
                all.extend(&outcome.bytes(room)[..count]);
            }
            Err(errno) => {
                return Err(Error::Kernel {
                    call: "read",
                    errno,
                });
            }
        }
    }
}

/// Waits until bytes that were written at the other end are there: they come by a work queue, and are changed
/// as the settings say by then.
fn arrive(fd: i32, count: usize) -> Result<()> {
    for _ in 0..500 {
        let waiting = terminal::number(fd, libc::FIONREAD)?.unwrap_or(0);
        if waiting as usize >= count {
            break;
        }
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
    // Who finds nothing to read lets the queue work first; a line without an end may be behind one.
    terminal::readable(fd)?;
    std::thread::sleep(std::time::Duration::from_millis(1));
    Ok(())
}

fn put(fd: i32, bytes: &[u8]) -> Result<()> {
    let mut rest = bytes;
    let mut tries = 0;
    while !rest.is_empty() {
        let mut program = Program::new();
        let data = program.bytes(rest);
        let put = program.write(fd, data, rest.len());
        program.tolerate();
        match Local.run(&program)?.get(put) {
            Ok(count) => rest = &rest[usize::try_from(count).unwrap_or(0).min(rest.len())..],
            // The kernel passes it on in its own time.
            Err(Errno::EAGAIN) if tries < 100 => {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            Err(errno) => {
                return Err(Error::Kernel {
                    call: "write",
                    errno,
                });
            }
        }
    }
    Ok(())
}

fn fcntl(fd: i32, command: i32, value: i32) -> Result<i32> {
    let mut program = Program::new();
    let got = program.fcntl(fd, command, value);
    let outcome = Local.run(&program)?;
    Ok(i32::try_from(outcome.value(got)).unwrap_or(0))
}
