//! A connection, made again in repair mode.
//!
//! What was sent and not confirmed goes back as sent, the rest is written as a program would, and the lock keeps it
//! here. A FIN of ours is made by shutdown(2); one of theirs, and the confirmation of ours, are brought in as
//! packets. The socket stays in repair mode.

use std::net::SocketAddr;
use std::time::Duration;

use criu_image::pb;
use criu_kind::{Error, RestoreCx, Result};
use criu_tracee::Program;
use nix::errno::Errno;

use crate::sockets::inet::address::encode;
use crate::sockets::inet::packet::{ACK, FIN, Segment, inject};
use crate::sockets::message::{set, set_at};
use crate::sockets::tcp::repair::{
    NO_QUEUE, OFF_QUIETLY, ON, QUEUE, RECEIVED, REPAIR, SENT, SEQUENCE,
};
use crate::sockets::tcp::save::{HAS_SACK, HAS_TIMESTAMPS, HAS_WSCALE, WINDOW};
use crate::sockets::tcp::signature::Keys;
use crate::sockets::tcp::state::{self, CLOSING, ESTABLISHED, FIN_WAIT2, SYN_SENT};

/// Room for any queue: the kernel doubles it.
const ROOM: u32 = 1 << 29;
/// Bytes in one call: the kernel takes one packet for what is received, in not too many pages.
const AT_ONCE: usize = 32 << 10;
/// What `TCP_MAXSEG` takes: `MAX_TCP_WINDOW` and `TCP_MIN_MSS` of `include/net/tcp.h`.
const LARGEST_SEGMENT: u32 = 32767;
const SMALLEST_SEGMENT: u32 = 88;
/// How often, and how long, to look whether a packet has arrived.
const LOOKS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(1);

/// A connection of the images, and the socket that becomes it, bound already and in repair mode.
pub(crate) struct Rebuild<'a> {
    pub(crate) fd: i32,
    pub(crate) state: u32,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) entry: &'a pb::TcpStreamEntry,
    pub(crate) queues: &'a [u8],
    /// With what segments are signed; the socket has them.
    pub(crate) keys: &'a Keys,
}

impl Rebuild<'_> {
    /// Makes it.
    pub(crate) fn run(&self, cx: &mut dyn RestoreCx) -> Result<()> {
        self.connect(cx)?;
        self.options(cx)?;
        let (received, sent) = self
            .queues
            .split_at_checked(self.entry.inq_len as usize)
            .ok_or_else(|| self.broken())?;
        let unsent = self.entry.unsq_len() as usize;
        let confirmed = sent
            .len()
            .checked_sub(unsent)
            .ok_or_else(|| self.broken())?;
        let (sent, unsent) = sent.split_at(confirmed);
        self.fill(cx, RECEIVED, received)?;
        self.fill(cx, SENT, sent)?;
        self.write(cx, unsent)?;
        if self.state != ESTABLISHED {
            self.window(cx, true)?;
            self.finish(cx, unsent.is_empty())?;
        }
        self.window(cx, false)
    }

    fn broken(&self) -> Error {
        Error::corrupt(
            "tcp-stream.img",
            format!("queues of {} bytes", self.queues.len()),
        )
    }

    /// What is received next, before the FIN of the other end.
    fn next_in(&self) -> u32 {
        self.entry
            .inq_seq
            .wrapping_sub(state::has_got_fin(self.state).into())
    }

    /// What is written next, before our FIN.
    fn next_out(&self) -> u32 {
        self.entry
            .outq_seq
            .wrapping_sub(state::has_sent_fin(self.state).into())
    }

    fn connect(&self, cx: &mut dyn RestoreCx) -> Result<()> {
        let is_asking = self.state == SYN_SENT;
        let first_in = self.next_in().wrapping_sub(self.entry.inq_len);
        let first_out = self.next_out().wrapping_sub(self.entry.outq_len);
        let mut program = Program::new();
        for (queue, first) in [
            (RECEIVED, first_in),
            (SENT, first_out.wrapping_sub(is_asking.into())),
        ] {
            set_at(&mut program, self.fd, QUEUE, queue);
            set_at(&mut program, self.fd, SEQUENCE, first);
        }
        set_at(&mut program, self.fd, QUEUE, NO_QUEUE);
        if is_asking {
            set_at(&mut program, self.fd, REPAIR, OFF_QUIETLY);
        }
        // The kernel computes here, once, how large segments are; without this it would be from the 536 bytes of those
        // who have not agreed upon anything yet (`tcp_connect_init`).
        let segments = (libc::SOL_TCP, libc::TCP_MAXSEG);
        let largest = self.entry.mss_clamp.min(LARGEST_SEGMENT);
        let is_known = !is_asking && largest >= SMALLEST_SEGMENT;
        if is_known {
            set_at(&mut program, self.fd, segments, largest);
        }
        let address = encode(&self.remote);
        let length = address.len();
        let address = program.bytes(address);
        let connected = program.connect(self.fd, address, length);
        program.tolerate();
        if is_known {
            set_at(&mut program, self.fd, segments, 0);
        }
        if is_asking {
            set_at(&mut program, self.fd, REPAIR, ON);
        }
        match cx.here().run(&program)?.get(connected) {
            Ok(_) => Ok(()),
            Err(Errno::EINPROGRESS) if is_asking => Ok(()),
            Err(Errno::EADDRNOTAVAIL) => Err(Error::unsupported(
                "such a connection is there already",
                "end the program that has it; a copy of one that was left running cannot have its connections",
            )),
            Err(errno) => Err(Error::Kernel {
                call: "connect",
                errno,
            }),
        }
    }

    /// What both ends have agreed upon.
    fn options(&self, cx: &mut dyn RestoreCx) -> Result<()> {
        let entry = self.entry;
        let mask = entry.opt_mask;
        // `TCPOPT_MSS` 2, `TCPOPT_WINDOW` 3, `TCPOPT_SACK_PERM` 4, `TCPOPT_TIMESTAMP` 8.
        let mut pairs: Vec<(u32, u32)> = Vec::new();
        if mask & HAS_SACK != 0 {
            pairs.push((4, 0));
        }
        if mask & HAS_WSCALE != 0 {
            pairs.push((3, entry.snd_wscale | entry.rcv_wscale() << 16));
        }
        if mask & HAS_TIMESTAMPS != 0 {
            pairs.push((8, 0));
        }
        pairs.push((2, entry.mss_clamp));
        let mut program = Program::new();
        if self.state != SYN_SENT {
            let words = pairs.iter().flat_map(|(code, value)| [*code, *value]);
            let bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
            let length = bytes.len();
            let bytes = program.bytes(bytes);
            program.setsockopt(
                self.fd,
                libc::SOL_TCP,
                libc::TCP_REPAIR_OPTIONS,
                bytes,
                length,
            );
        }
        if let Some(timestamp) = entry.timestamp.filter(|_| mask & HAS_TIMESTAMPS != 0) {
            set_at(
                &mut program,
                self.fd,
                (libc::SOL_TCP, libc::TCP_TIMESTAMP),
                timestamp,
            );
        }
        let names = [
            libc::SO_RCVBUF,
            libc::SO_RCVBUFFORCE,
            libc::SO_SNDBUF,
            libc::SO_SNDBUFFORCE,
        ];
        // Most have nothing under way.
        for name in names.into_iter().filter(|_| !self.queues.is_empty()) {
            set(&mut program, self.fd, name, ROOM);
            program.tolerate();
        }
        cx.here().run(&program)?;
        Ok(())
    }

    /// Fills a queue without a packet being sent.
    fn fill(&self, cx: &mut dyn RestoreCx, queue: u32, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let mut program = Program::new();
        set_at(&mut program, self.fd, QUEUE, queue);
        cx.here().run(&program)?;
        self.send(cx, data)?;
        let mut program = Program::new();
        set_at(&mut program, self.fd, QUEUE, NO_QUEUE);
        cx.here().run(&program)?;
        Ok(())
    }

    fn send(&self, cx: &mut dyn RestoreCx, data: &[u8]) -> Result<()> {
        let mut rest = data;
        let mut most = AT_ONCE;
        while !rest.is_empty() {
            let some = &rest[..rest.len().min(most)];
            let mut program = Program::new();
            let bytes = program.bytes(some);
            let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
            let sent = program.sendto(self.fd, bytes, some.len(), flags, 0, 0);
            program.tolerate();
            match cx.here().run(&program)?.get(sent) {
                Ok(count) => {
                    rest = rest
                        .get(usize::try_from(count).unwrap_or(0)..)
                        .unwrap_or_default()
                }
                // Memory in one piece may be rare.
                Err(Errno::ENOMEM | Errno::EAGAIN) if most > 1024 => most /= 2,
                Err(errno) => {
                    return Err(Error::Kernel {
                        call: "sendto",
                        errno,
                    });
                }
            }
        }
        Ok(())
    }

    /// Writes what was never sent. No packet leaves while the lock is there.
    fn write(&self, cx: &mut dyn RestoreCx, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.switch(cx, OFF_QUIETLY)?;
        self.send(cx, data)?;
        self.switch(cx, ON)
    }

    fn switch(&self, cx: &mut dyn RestoreCx, how: u32) -> Result<()> {
        let mut program = Program::new();
        set_at(&mut program, self.fd, REPAIR, how);
        cx.here().run(&program)?;
        Ok(())
    }

    /// How much each end may send. Before the FIN of the other end comes in there must be room for it.
    fn window(&self, cx: &mut dyn RestoreCx, before: bool) -> Result<()> {
        let entry = self.entry;
        let (Some(wl1), Some(wnd), Some(max), Some(rcv), Some(wup)) = (
            entry.snd_wl1,
            entry.snd_wnd,
            entry.max_window,
            entry.rcv_wnd,
            entry.rcv_wup,
        ) else {
            return Ok(());
        };
        let fin = u32::from(before && state::has_got_fin(self.state));
        if self.state == SYN_SENT || !before && self.state == state::CLOSE {
            return Ok(());
        }
        let words = [wl1, wnd, max, rcv.wrapping_add(fin), wup.wrapping_sub(fin)];
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut program = Program::new();
        let bytes = program.bytes(bytes);
        program.setsockopt(self.fd, WINDOW.0, WINDOW.1, bytes, 20);
        cx.here().run(&program)?;
        Ok(())
    }

    /// Half of it is closed, or all.
    fn finish(&self, cx: &mut dyn RestoreCx, all_was_sent: bool) -> Result<()> {
        let (ours, theirs) = (
            state::has_sent_fin(self.state),
            state::has_got_fin(self.state),
        );
        let ours_first = !theirs || self.state == CLOSING;
        let is_known = [FIN_WAIT2, state::CLOSE].contains(&self.state);
        if theirs || is_known {
            // What is brought in is not signed.
            self.keys.take(cx, self.fd)?;
        }
        if ours && ours_first {
            self.shut(cx, all_was_sent)?;
        }
        if theirs {
            self.bring(
                cx,
                FIN | ACK,
                self.next_in(),
                self.next_out().wrapping_sub(self.entry.outq_len),
            )?;
        }
        if ours && !ours_first {
            let now = state::CLOSE_WAIT;
            self.wait_for(cx, now)?;
            self.shut(cx, all_was_sent)?;
        }
        if is_known {
            self.bring(cx, ACK, self.entry.inq_seq, self.next_out().wrapping_add(1))?;
        }
        self.wait_for(cx, self.state)?;
        if theirs || is_known {
            self.keys.give(cx, self.fd)?;
        }
        Ok(())
    }

    /// Our FIN: as sent, or behind what was not sent yet.
    fn shut(&self, cx: &mut dyn RestoreCx, sent: bool) -> Result<()> {
        let mut program = Program::new();
        if sent {
            set_at(&mut program, self.fd, QUEUE, SENT);
        } else {
            set_at(&mut program, self.fd, REPAIR, OFF_QUIETLY);
        }
        program.shutdown(self.fd, libc::SHUT_WR);
        if sent {
            set_at(&mut program, self.fd, QUEUE, NO_QUEUE);
        } else {
            set_at(&mut program, self.fd, REPAIR, ON);
        }
        cx.here().run(&program)?;
        Ok(())
    }

    fn bring(
        &self,
        cx: &mut dyn RestoreCx,
        flags: u8,
        sequence: u32,
        acknowledged: u32,
    ) -> Result<()> {
        // The window they had told us of.
        let window = self.entry.snd_wnd() >> self.entry.snd_wscale.min(14);
        let segment = Segment {
            sequence,
            acknowledged,
            flags,
            window: u16::try_from(window).unwrap_or(u16::MAX),
        };
        let packet = segment.packet(&self.remote, &self.local);
        inject(cx, &self.local, &[packet])
    }

    fn wait_for(&self, cx: &mut dyn RestoreCx, wanted: u32) -> Result<()> {
        let mut found = 0;
        for _ in 0..LOOKS {
            let mut program = Program::new();
            let info = program.room(8);
            let length = program.in_out(8u32.to_ne_bytes());
            program.getsockopt(self.fd, libc::SOL_TCP, libc::TCP_INFO, info, length);
            found = cx.here().run(&program)?.bytes(info)[0].into();
            if found == wanted {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        Err(Error::unsupported(
            format!(
                "the connection should be {} and is {}: packets over the loopback do not arrive",
                state::name(wanted),
                state::name(found)
            ),
            "bring the device lo up, and let a packet filter accept what comes over it",
        ))
    }
}
