//! A connection, read in repair mode.
//!
//! Sequence numbers in images are those behind the queues: what is received next (`rcv_nxt`), what is written next
//! (`write_seq`). A FIN has a number of its own, and is not counted among the bytes.

use std::os::fd::{AsRawFd, OwnedFd};

use criu_image::pb;
use criu_kind::{Error, Result};
use criu_tracee::{Local, Program, Site};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use crate::sockets::message::{number_at, option_at, set_at};
use crate::sockets::queue::Borrowed;
use crate::sockets::tcp::repair::{NO_QUEUE, QUEUE, RECEIVED, Repair, SENT};
use crate::sockets::tcp::state::{self, TcpInfo, info};

/// `SIOCOUTQNSD` of `include/uapi/linux/sockios.h`.
const SIOCOUTQNSD: u64 = 0x894b;
/// `TCP_REPAIR_WINDOW` of `include/uapi/linux/tcp.h`.
pub(crate) const WINDOW: (i32, i32) = (libc::SOL_TCP, 29);
pub(crate) const HAS_TIMESTAMPS: u32 = 1;
pub(crate) const HAS_SACK: u32 = 2;
pub(crate) const HAS_WSCALE: u32 = 4;

/// A connection as images have it: state, entry, and what waits in both queues.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) state: u32,
    pub(crate) entry: pb::TcpStreamEntry,
    pub(crate) queues: Vec<u8>,
}

/// Reads it. The socket is as before afterwards.
pub(crate) fn save(fd: &OwnedFd) -> Result<Saved> {
    refuse_urgent(fd)?;
    let _off = Borrowed::set(
        fd,
        &[(libc::SO_PEEK_OFF, u32::MAX, "getsockopt(SO_PEEK_OFF)")],
    )?;
    let _repair = Repair::enter(fd)?;
    let info = info(fd)?;
    let lengths = Lengths::ask(fd, info.state)?;
    let mut entry = options(fd, &info)?;
    (entry.inq_len, entry.outq_len) = (lengths.received, lengths.sent);
    entry.unsq_len = Some(lengths.unsent);
    window(fd, &mut entry)?;
    let mut queues = Vec::new();
    entry.inq_seq = queue(fd, RECEIVED, lengths.received, &mut queues)?;
    entry.outq_seq = queue(fd, SENT, lengths.sent, &mut queues)?;
    let mut program = Program::new();
    set_at(&mut program, fd.as_raw_fd(), QUEUE, NO_QUEUE);
    Local.run(&program)?;
    Ok(Saved {
        state: info.state,
        entry,
        queues,
    })
}

/// Bytes that wait in each direction.
struct Lengths {
    received: u32,
    sent: u32,
    unsent: u32,
}

impl Lengths {
    fn ask(fd: &OwnedFd, state: u32) -> Result<Self> {
        let ask = |request: u64| {
            let mut program = Program::new();
            let count = program.room(4);
            program.ioctl(fd.as_raw_fd(), request, count);
            let mut word = [0; 4];
            word.copy_from_slice(Local.run(&program)?.bytes(count));
            Ok::<_, Error>(u32::from_ne_bytes(word))
        };
        #[allow(
            clippy::unnecessary_cast,
            reason = "requests have the width of a long, which differs"
        )]
        let (inq, outq) = (libc::FIONREAD as u64, libc::TIOCOUTQ as u64);
        let mut lengths = Self {
            received: ask(inq)?,
            sent: ask(outq)?,
            unsent: ask(SIOCOUTQNSD)?,
        };
        if state == state::CLOSE {
            // What it had to send nobody will get.
            (lengths.sent, lengths.unsent) = (0, 0);
        }
        if state::has_sent_fin(state) {
            lengths.sent = lengths.sent.saturating_sub(1);
            lengths.unsent = lengths.unsent.saturating_sub(1);
        }
        Ok(lengths)
    }
}

fn options(fd: &OwnedFd, info: &TcpInfo) -> Result<pb::TcpStreamEntry> {
    let must = |name| {
        number_at(fd, libc::SOL_TCP, name)?.ok_or(Error::Kernel {
            call: "getsockopt(SOL_TCP)",
            errno: Errno::ENOPROTOOPT,
        })
    };
    let mut entry = pb::TcpStreamEntry {
        opt_mask: info.options,
        mss_clamp: must(libc::TCP_MAXSEG)?,
        ..pb::TcpStreamEntry::default()
    };
    if info.options & HAS_WSCALE != 0 {
        entry.snd_wscale = info.snd_wscale;
        entry.rcv_wscale = Some(info.rcv_wscale);
    }
    if info.options & HAS_TIMESTAMPS != 0 {
        entry.timestamp = Some(must(libc::TCP_TIMESTAMP)?);
    }
    Ok(entry)
}

fn window(fd: &OwnedFd, entry: &mut pb::TcpStreamEntry) -> Result<()> {
    // Linux 4.8.
    let Some(bytes) = option_at(fd, WINDOW, 20)?.filter(|bytes| bytes.len() == 20) else {
        return Ok(());
    };
    let mut words = bytes
        .chunks_exact(4)
        .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    entry.snd_wl1 = words.next();
    entry.snd_wnd = words.next();
    entry.max_window = words.next();
    entry.rcv_wnd = words.next();
    entry.rcv_wup = words.next();
    Ok(())
}

/// Appends what is in a queue; its sequence number.
fn queue(fd: &OwnedFd, which: u32, length: u32, all: &mut Vec<u8>) -> Result<u32> {
    let mut program = Program::new();
    set_at(&mut program, fd.as_raw_fd(), QUEUE, which);
    Local.run(&program)?;
    let sequence = number_at(fd, libc::SOL_TCP, libc::TCP_QUEUE_SEQ)?.ok_or(Error::Kernel {
        call: "getsockopt(TCP_QUEUE_SEQ)",
        errno: Errno::ENOPROTOOPT,
    })?;
    if length > 0 {
        let start = all.len();
        // A byte more, to see that there is none.
        all.resize(start + length as usize + 1, 0);
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let got = recv(fd.as_raw_fd(), &mut all[start..], flags);
        let got = got.map_err(Error::kernel("recv(MSG_PEEK)"))?;
        if got != length as usize {
            return Err(Error::unsupported(
                format!(
                    "a queue of a connection has {got} bytes, not {length}: urgent data, perhaps"
                ),
                "let the task read it before the dump",
            ));
        }
        all.truncate(start + got);
    }
    Ok(sequence)
}

/// An urgent byte can be found, but not put back where it was.
fn refuse_urgent(fd: &OwnedFd) -> Result<()> {
    let flags = MsgFlags::MSG_OOB | MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(fd.as_raw_fd(), &mut [0; 1], flags) {
        Ok(1) => Err(Error::unsupported(
            "urgent data (MSG_OOB) waits in the connection",
            "let the task read it before the dump",
        )),
        _ => Ok(()),
    }
}
