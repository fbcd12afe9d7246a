//! Unix sockets that are made, joined: what waits is sent, connections, options, shutdown.

use std::collections::HashMap;

use criu_image::id::FileId;
use criu_image::pb;
use criu_kind::{Error, RestoreCx, Result};
use criu_tracee::Program;

use crate::sockets::diag::LISTEN;
use crate::sockets::message::{address, set};
use crate::sockets::options;
use crate::sockets::queue::SO_PASSPIDFD;
use crate::sockets::unix::build::{Builder, NEW, as_who, run};
use crate::sockets::unix::dump::{SIOCUNIXFILE, SO_PASSRIGHTS};
use crate::sockets::unix::name::{self, Reach};
use crate::sockets::unix::refill::{Queues, Saved, Sender, widen};

impl Builder<'_> {
    /// How many packets of a datagram socket come before the last one that is not of its peer.
    fn early(&self, index: usize, packets: &[Saved]) -> usize {
        let socket = &self.sockets[index];
        if !socket.is_dgram() || self.paired(index).is_some() {
            return 0;
        }
        let Some(peer) = self.peer(index) else {
            return packets.len();
        };
        let returns = self.is_mutual(index) || peer == index;
        let of_peer = |packet: &Saved| {
            let known = packet.sender == self.sockets[peer].entry.name;
            known || self.foreign && returns
        };
        let last = packets.iter().rposition(|packet| !of_peer(packet));
        last.map_or(0, |last| last + 1)
    }

    pub(super) fn fill_early(
        &mut self,
        cx: &mut dyn RestoreCx,
        index: usize,
        queues: &Queues,
    ) -> Result<()> {
        let packets = queues.of(self.sockets[index].entry.id);
        let count = self.early(index, packets);
        self.send(cx, index, &packets[..count])
    }

    pub(super) fn fill_late(
        &mut self,
        cx: &mut dyn RestoreCx,
        index: usize,
        queues: &Queues,
    ) -> Result<()> {
        let packets = queues.of(self.sockets[index].entry.id);
        let count = self.early(index, packets);
        self.send(cx, index, &packets[count..])
    }

    fn send(&mut self, cx: &mut dyn RestoreCx, index: usize, packets: &[Saved]) -> Result<()> {
        if packets.is_empty() || self.sockets[index].given {
            return Ok(());
        }
        let ours: HashMap<FileId, i32> = self
            .sockets
            .iter()
            .filter_map(|socket| Some((FileId::new(socket.entry.id), socket.here?)))
            .collect();
        let sender = Sender { ours: &ours };
        let mut strangers: HashMap<&[u8], i32> = HashMap::new();
        let mut doors = Vec::new();
        for packet in packets {
            let (from, to) = match self.known_sender(index, &packet.sender) {
                Some((from, true)) => (from, Vec::new()),
                Some((from, false)) => (from, self.address(cx, index, &mut doors)?),
                None => {
                    let to = self.address(cx, index, &mut doors)?;
                    let known = strangers.get(&packet.sender[..]);
                    let from = match known {
                        Some(fd) => *fd,
                        None => self.stranger(cx, index, &packet.sender)?,
                    };
                    strangers.insert(&packet.sender, from);
                    (from, to)
                }
            };
            if self.wide.insert(from) {
                widen(cx, from)?;
            }
            sender.send(cx, from, &to, packet)?;
        }
        let mut program = Program::new();
        for fd in strangers.into_values().chain(doors) {
            self.wide.remove(&fd);
            program.close(fd);
        }
        cx.here().run(&program)?;
        Ok(())
    }

    /// Who sends to a socket what it has from this address: its descriptor here, and whether it is connected
    /// by now.
    fn known_sender(&self, index: usize, sender: &[u8]) -> Option<(i32, bool)> {
        let socket = &self.sockets[index];
        if let Some(other) = socket.other {
            return Some((other, true));
        }
        if !socket.is_dgram() {
            let peer = self.peer(index)?;
            return Some((self.sockets[peer].here?, true));
        }
        let paired = self.paired(index);
        let may = |other: usize| {
            let other = &self.sockets[other];
            let fits = other.entry.name == sender || self.foreign;
            other.is_dgram() && !other.is_extern() && !other.given && fits
        };
        if let Some(other) = paired.filter(|other| may(*other) || socket.entry.name.is_empty()) {
            return Some((self.sockets[other].here?, true));
        }
        let mut connected = 0..self.sockets.len();
        let found = connected.find(|other| {
            let connected = self.peer(*other) == Some(index);
            may(*other) && (connected || !sender.is_empty() && !self.foreign)
        });
        Some((self.sockets[found?].here?, false))
    }

    /// The address to send to; a door is a descriptor through which it leads.
    fn address(
        &self,
        cx: &mut dyn RestoreCx,
        index: usize,
        doors: &mut Vec<i32>,
    ) -> Result<Vec<u8>> {
        let socket = &self.sockets[index];
        let reach = socket.reach.as_ref();
        let mut name = reach.and_then(Reach::name);
        if let (None, Some(_), Some(fd)) = (&name, reach, socket.here) {
            let mut program = Program::new();
            let door = program.ioctl(fd, SIOCUNIXFILE, 0);
            let door = cx.here().run(&program)?.fd(door);
            doors.push(door);
            name = Some(format!("/proc/self/fd/{door}\0").into_bytes());
        }
        name.ok_or_else(|| {
            Error::unsupported(
                "messages wait in it, and it has no name by which they could be sent again",
                "let the task read them before the dump",
            )
        })
    }

    /// A socket of this address, for the while: who sent from it is gone.
    fn stranger(&mut self, cx: &mut dyn RestoreCx, index: usize, sender: &[u8]) -> Result<i32> {
        let entry = pb::UnixSkEntry {
            name: sender.to_vec(),
            ..pb::UnixSkEntry::default()
        };
        let mut program = Program::new();
        let kind = self.sockets[index].entry.r#type | NEW.unsigned_abs();
        let fd = program.socket(libc::AF_UNIX, kind, 0);
        if !sender.is_empty() {
            name::bind(fd, &entry, &mut self.scratch, cx.names(), &mut program)?;
        }
        let maker = cx.root();
        let made = run(cx, maker, &program)?.fd(fd);
        cx.fetch(maker, made)
    }

    /// Sockets that connect now: those that nobody has accepted yet in the order in which they came.
    pub(super) fn in_order_of_arrival(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.sockets.len()).collect();
        let place = |index: &usize| {
            let listener = self.peer(*index).map(|peer| &self.sockets[peer]);
            let pending = listener.map(|listener| &listener.fact.pending);
            let ino = self.sockets[*index].entry.ino;
            pending.and_then(|pending| pending.iter().position(|one| *one == ino))
        };
        order.sort_by_key(|index| place(index));
        order
    }

    pub(super) fn connect(&mut self, cx: &mut dyn RestoreCx, index: usize) -> Result<()> {
        let socket = &self.sockets[index];
        if socket.given || socket.is_extern() || socket.here.is_none() {
            return Ok(());
        }
        if socket.fact.orphan() && socket.is_dgram() && socket.other.is_none() {
            return self.orphan(cx, index);
        }
        let Some(peer) = self.peer(index) else {
            if self.paired(index).is_some() && socket.is_dgram() {
                return self.disconnect(cx, index);
            }
            return Ok(());
        };
        let waits = self.sockets[peer].entry.state == LISTEN && socket.is_connection();
        let waits = waits && !self.sockets[peer].is_extern();
        if waits {
            return self.connect_to(cx, index, peer, socket.fact.connected);
        }
        if socket.is_dgram() && self.paired(index) != Some(peer) {
            return self.connect_to(cx, index, peer, None);
        }
        Ok(())
    }

    pub(super) fn connect_to(
        &self,
        cx: &mut dyn RestoreCx,
        index: usize,
        peer: usize,
        creds: Option<pb::UcredEntry>,
    ) -> Result<()> {
        let (socket, to) = (&self.sockets[index], &self.sockets[peer]);
        if to.is_extern() && !cx.is_external("unix[*]") {
            return Err(Error::unsupported(
                "it was connected to a socket outside of the tree",
                format!(
                    "allow it to connect there again with --ext-unix-sk, \
                     or give another one with --inherit-fd fd[N]:socket:[{}]",
                    socket.entry.ino
                ),
            ));
        }
        let reach = to.reach.as_ref().ok_or_else(|| {
            Error::unsupported(
                format!(
                    "socket {}, which it was connected to, has no name",
                    to.entry.ino
                ),
                format!(
                    "give another one with --inherit-fd fd[N]:socket:[{}]",
                    socket.entry.ino
                ),
            )
        })?;
        let Some((maker, fd)) = socket.made else {
            return Ok(());
        };
        let mut program = Program::new();
        as_who(creds, &mut program, |program| reach.connect(fd, program));
        run(cx, maker, &program)?;
        Ok(())
    }

    /// Lets a datagram socket have had a peer that is gone.
    pub(super) fn orphan(&self, cx: &mut dyn RestoreCx, index: usize) -> Result<()> {
        let socket = &self.sockets[index];
        let Some((maker, fd)) = socket.made else {
            return Ok(());
        };
        let mut program = Program::new();
        let gone = program.socket(libc::AF_UNIX, socket.entry.r#type | NEW.unsigned_abs(), 0);
        // An address without a name: the kernel finds one.
        let family = address(&[]);
        let length = family.len();
        let family = program.bytes(family);
        program.bind(gone, family, length);
        let name = program.in_out(vec![0; 110]);
        let size = program.in_out(110u32.to_ne_bytes());
        program.getsockname(gone, name, size);
        let outcome = run(cx, maker, &program)?;
        let mut size_now = [0; 4];
        size_now.copy_from_slice(outcome.bytes(size));
        let size = u32::from_ne_bytes(size_now).min(110) as usize;
        let name = outcome.bytes(name)[..size].to_vec();
        let gone = outcome.fd(gone);
        let mut program = Program::new();
        let name = program.bytes(name);
        program.connect(fd, name, size);
        program.close(gone);
        run(cx, maker, &program)?;
        Ok(())
    }

    /// Takes the peer away that a datagram socket has only because it was made with it.
    pub(super) fn disconnect(&self, cx: &mut dyn RestoreCx, index: usize) -> Result<()> {
        let Some((maker, fd)) = self.sockets[index].made else {
            return Ok(());
        };
        let mut program = Program::new();
        let family = u16::try_from(libc::AF_UNSPEC).unwrap_or(0);
        let nowhere = program.bytes(family.to_ne_bytes());
        program.connect(fd, nowhere, 2);
        run(cx, maker, &program)?;
        Ok(())
    }

    /// Options and shutdown.
    pub(super) fn finish(&mut self, cx: &mut dyn RestoreCx, index: usize) -> Result<()> {
        let (Some(fd), false) = (self.sockets[index].here, self.sockets[index].given) else {
            return Ok(());
        };
        let sizes = match self.sizes {
            Some(sizes) => sizes,
            None => *self.sizes.insert(options::sizes(cx)?),
        };
        let socket = &self.sockets[index];
        let mut program = Program::new();
        let wanted = &socket.entry.opts;
        let is_new = (wanted.so_sndbuf, wanted.so_rcvbuf) == sizes && wanted.so_buf_lock() == 0;
        if !is_new || self.wide.contains(&fd) {
            options::buffers(&mut program, fd, wanted.so_sndbuf, wanted.so_rcvbuf);
            options::lock(&mut program, fd, wanted);
        }
        options::others(&mut program, fd, wanted);
        if socket.entry.opts.reuseaddr() {
            set(&mut program, fd, libc::SO_REUSEADDR, 1);
        }
        if socket.fact.pass_pidfd() {
            set(&mut program, fd, SO_PASSPIDFD, 1);
        }
        if socket.fact.no_rights() {
            set(&mut program, fd, SO_PASSRIGHTS, 0);
        }
        if let (Some(uid), Some(gid)) = (socket.fact.uid, socket.fact.gid) {
            let itself = program.cstr("");
            program.fchownat(fd, itself, uid, gid, libc::AT_EMPTY_PATH);
        }
        if let Some(offset) = socket.fact.peek_off {
            set(&mut program, fd, libc::SO_PEEK_OFF, offset.cast_unsigned());
        }
        let half_closed = socket.other.is_none() || socket.is_dgram();
        if let Some(how @ 1..=3) = socket.entry.shutdown
            && half_closed
        {
            program.shutdown(fd, how - 1);
        }
        if !program.is_empty() {
            cx.here().run(&program)?;
        }
        Ok(())
    }

    /// Closes what is nobody's.
    pub(super) fn close_others(&mut self, cx: &mut dyn RestoreCx) -> Result<()> {
        let mut program = Program::new();
        for socket in &mut self.sockets {
            if let Some(fd) = socket.other.take() {
                program.close(fd);
            }
        }
        for (_, listener) in self.makeshift.drain() {
            program.close(listener.here);
        }
        cx.here().run(&program)?;
        Ok(())
    }
}
