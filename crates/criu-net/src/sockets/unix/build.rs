//! All unix sockets of a dump, made.
//!
//! In this order: those that are made alone, with their names; pairs; connections of datagram sockets and those
//! that nobody has accepted; what waits; options; shutdown. What waits in a datagram socket from
//! others than its peer must be sent before it has that peer.

use std::collections::{HashMap, HashSet};

use criu_image::id::{FileId, VPid};
use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{Error, Opened, RestoreCx, Result, Subject, Within};
use criu_tracee::{Arg, Outcome, Program, Ret};
use nix::unistd::{getegid, geteuid};

use crate::sockets::diag::{ESTABLISHED, LISTEN};
use crate::sockets::unix::kind::EXTERN;
use crate::sockets::unix::name::{self, Reach, Scratch};
use crate::sockets::unix::pairs::Pair;
use crate::sockets::unix::refill::Queues;

pub(super) const NEW: i32 = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

/// Makes them, in the order of the entries.
pub(crate) fn build(cx: &mut dyn RestoreCx, entries: &[&pb::UnixSkEntry]) -> Result<Vec<Opened>> {
    let facts = cx.cached(Facts::load)?;
    let mut all = Builder {
        inodes: entries
            .iter()
            .enumerate()
            .map(|(index, entry)| (entry.ino, index))
            .collect(),
        sockets: Vec::with_capacity(entries.len()),
        scratch: Scratch::default(),
        makeshift: HashMap::new(),
        foreign: facts.0.is_empty(),
        pairs: HashMap::new(),
        wide: HashSet::new(),
        sizes: None,
    };
    for entry in entries {
        let fact = facts.0.get(&entry.id);
        all.sockets.push(Socket {
            entry,
            fact: fact.cloned().unwrap_or_default(),
            made: None,
            planned: false,
            here: None,
            given: false,
            reach: None,
            other: None,
        });
    }
    for index in 0..all.sockets.len() {
        all.take_given(cx, index)?;
    }
    for stage in [Builder::alone, Builder::pair, Builder::half] {
        for index in 0..all.sockets.len() {
            stage(&mut all, cx, index).within(|| all.subject(index))?;
        }
        all.make_pairs(cx)?;
    }
    let queues = cx.cached(Queues::load)?;
    for index in 0..all.sockets.len() {
        all.fill_early(cx, index, &queues)
            .within(|| all.subject(index))?;
    }
    for index in all.in_order_of_arrival() {
        all.connect(cx, index).within(|| all.subject(index))?;
    }
    for index in 0..all.sockets.len() {
        all.fill_late(cx, index, &queues)
            .within(|| all.subject(index))?;
    }
    for index in 0..all.sockets.len() {
        all.finish(cx, index).within(|| all.subject(index))?;
    }
    all.close_others(cx)?;
    all.scratch.end(cx.names())?;
    let opened = all.sockets.iter().map(|socket| match socket.here {
        Some(fd) if socket.given => Opened::Given(fd),
        Some(fd) => Opened::Here(fd),
        None => Opened::There, // Of somebody else; nobody has it.
    });
    Ok(opened.collect())
}

/// What entries lack.
#[derive(Debug, Default)]
struct Facts(HashMap<u32, pb::UnixExtEntry>);

impl Facts {
    fn load(store: &dyn Store) -> Result<Self> {
        let all = store.entries::<pb::FilesExtEntry>(desc::FILES_EXT, ())?;
        let all = all.unwrap_or_default().into_iter();
        let all = all.filter_map(|entry| entry.message.unix);
        Ok(Self(all.map(|unix| (unix.unix_id, unix)).collect()))
    }
}

pub(super) struct Socket<'e> {
    pub(super) entry: &'e pb::UnixSkEntry,
    pub(super) fact: pb::UnixExtEntry,
    /// By whom it was made, and its number there.
    pub(super) made: Option<(VPid, i32)>,
    /// It is one of a pair that is about to be made.
    pub(super) planned: bool,
    /// Its number here.
    pub(super) here: Option<i32>,
    pub(super) given: bool,
    pub(super) reach: Option<Reach>,
    /// The other end, if that is nobody's: closed at the end.
    pub(super) other: Option<i32>,
}

impl Socket<'_> {
    pub(super) fn is_dgram(&self) -> bool {
        u32::try_from(libc::SOCK_DGRAM) == Ok(self.entry.r#type)
    }

    pub(super) fn is_extern(&self) -> bool {
        self.entry.uflags & EXTERN != 0
    }

    /// A stream or packets in sequence, connected.
    pub(super) fn is_connection(&self) -> bool {
        self.entry.state == ESTABLISHED && !self.is_dgram() && !self.is_extern()
    }
}

pub(super) struct Builder<'e> {
    pub(super) sockets: Vec<Socket<'e>>,
    inodes: HashMap<u32, usize>,
    pub(super) scratch: Scratch,
    /// Listening sockets that are nobody's, by name, directory and maker: what was accepted at them has
    /// their name.
    pub(super) makeshift: HashMap<Accepted, Listener>,
    /// The images are CRIU's: who sent what waits is not known, and whoever is connected will do.
    pub(super) foreign: bool,
    /// Pairs that are to be made, by their makers.
    pub(super) pairs: HashMap<VPid, Vec<Pair>>,
    /// Descriptors here through which messages of any size and number can be sent.
    pub(super) wide: HashSet<i32>,
    /// The sizes of the buffers of a new socket.
    pub(super) sizes: Option<(u32, u32)>,
}

/// Name, directory and maker of a listening socket.
type Accepted = (Vec<u8>, Option<Vec<u8>>, u32);

#[derive(Clone, Debug)]
pub(super) struct Listener {
    pub(super) here: i32,
    reach: Reach,
}

impl Builder<'_> {
    pub(super) fn subject(&self, index: usize) -> Subject {
        let entry = self.sockets[index].entry;
        let name = entry.name.strip_suffix(&[0]).unwrap_or(&entry.name);
        let (at, name) = match name.split_first() {
            Some((0, rest)) => ("@", rest),
            _ => ("", name),
        };
        Subject::Object(format!(
            "unix socket {} {at}{}",
            entry.ino,
            name.escape_ascii()
        ))
    }

    /// The socket that this one is connected to.
    pub(super) fn peer(&self, index: usize) -> Option<usize> {
        let peer = self.sockets[index].entry.peer;
        (peer != 0).then(|| self.inodes.get(&peer).copied())?
    }

    pub(super) fn is_mutual(&self, index: usize) -> bool {
        let peer = self.peer(index);
        peer.is_some_and(|peer| peer != index && self.peer(peer) == Some(index))
    }

    /// The datagram sockets that are made as pairs: only so can one be connected to another that has no name.
    pub(super) fn paired(&self, index: usize) -> Option<usize> {
        let socket = &self.sockets[index];
        let known = |other: usize| self.sockets[other].fact.peer.is_some();
        if !socket.is_dgram() || socket.is_extern() {
            return None;
        }
        let nameless = |other: usize| {
            let socket = &self.sockets[other];
            socket.entry.name.is_empty() && !socket.is_extern() && socket.is_dgram()
        };
        let to = self.peer(index).filter(|peer| *peer != index);
        if let Some(peer) = to
            && (nameless(peer) || self.is_mutual(index) && (known(index) || nameless(index)))
        {
            return Some(peer);
        }
        let mut all = 0..self.sockets.len();
        let from = all.find(|other| {
            self.peer(*other) == Some(index)
                && *other != index
                && self.sockets[*other].is_dgram()
                && (nameless(index) || self.is_mutual(index) && (known(*other) || nameless(*other)))
        });
        from.filter(|_| nameless(index))
    }

    /// The process that makes a socket: the one that is remembered for it if that is there, else who has it.
    pub(super) fn maker(
        &self,
        cx: &mut dyn RestoreCx,
        index: usize,
        creds: Option<pb::UcredEntry>,
    ) -> VPid {
        let said = creds.map(|creds| VPid::new(creds.pid));
        let home = cx.home(FileId::new(self.sockets[index].entry.id));
        let root = cx.root();
        let candidates = [said, home];
        let found = candidates
            .into_iter()
            .flatten()
            .find(|pid| cx.at(*pid).is_some());
        found.unwrap_or(root)
    }

    fn take_given(&mut self, cx: &mut dyn RestoreCx, index: usize) -> Result<()> {
        let socket = &mut self.sockets[index];
        if socket.is_extern() {
            socket.reach = (!socket.entry.name.is_empty()).then(|| reach_by_name(socket.entry));
            return Ok(());
        }
        let key = format!("socket:[{}]", socket.entry.ino);
        if let Some(given) = cx.inherited(key.as_bytes()) {
            let mut program = Program::new();
            let fd = program.fcntl(given, libc::F_DUPFD_CLOEXEC, 0);
            socket.here = Some(cx.here().run(&program)?.fd(fd));
            socket.given = true;
        }
        Ok(())
    }

    /// Makes a socket that no other is made with.
    fn alone(&mut self, cx: &mut dyn RestoreCx, index: usize) -> Result<()> {
        let socket = &self.sockets[index];
        let waits = socket.is_connection()
            && self
                .peer(index)
                .map(|peer| &self.sockets[peer])
                .is_some_and(|peer| peer.entry.state == LISTEN && !peer.is_extern());
        if socket.given || socket.is_extern() || socket.is_connection() && !waits {
            return Ok(());
        }
        if self.paired(index).is_some() {
            return Ok(());
        }
        let is_lonely = socket.is_dgram() && socket.entry.name.is_empty();
        if is_lonely && !cx.cached(Queues::load)?.of(socket.entry.id).is_empty() {
            // Somebody has to send what waits: the other end of a pair can, also if it is not its peer.
            self.make_half(cx, index)?;
            return match self.sockets[index].fact.orphan() {
                true => Ok(()),
                false => self.disconnect(cx, index),
            };
        }
        let creds = match (waits, socket.entry.state) {
            (true, _) => socket.fact.connected,
            (false, LISTEN) => socket.fact.peer,
            _ => None,
        };
        let maker = self.maker(cx, index, creds);
        self.make(cx, index, maker, creds)
    }

    /// Makes a socket, binds it and lets it listen, in this process.
    pub(super) fn make(
        &mut self,
        cx: &mut dyn RestoreCx,
        index: usize,
        maker: VPid,
        creds: Option<pb::UcredEntry>,
    ) -> Result<()> {
        let socket = &mut self.sockets[index];
        let entry = socket.entry;
        let mut program = Program::new();
        let fd = program.socket(libc::AF_UNIX, entry.r#type | NEW.unsigned_abs(), 0);
        let listen = |fd: Arg, program: &mut Program| {
            if entry.state == LISTEN {
                as_who(creds, program, |program| {
                    program.listen(fd, entry.backlog);
                });
            }
        };
        if name::is_seen(entry) {
            let (made, here) = fetched(cx, maker, &program, fd)?;
            socket.made = Some((maker, made));
            socket.here = Some(here);
            socket.reach = Some(name::bind_here(cx, here, entry)?);
            let mut program = Program::new();
            listen(made.into(), &mut program);
            if !program.is_empty() {
                run(cx, maker, &program)?;
            }
            return Ok(());
        }
        if !entry.name.is_empty() {
            let names = cx.names();
            let reach = name::bind(fd, entry, &mut self.scratch, names, &mut program)?;
            socket.reach = Some(reach);
        }
        listen(fd.into(), &mut program);
        let (made, here) = fetched(cx, maker, &program, fd)?;
        socket.made = Some((maker, made));
        socket.here = Some(here);
        Ok(())
    }

    /// Makes both ends of a connection, or of a pair.
    fn pair(&mut self, cx: &mut dyn RestoreCx, index: usize) -> Result<()> {
        let socket = &self.sockets[index];
        if socket.here.is_some() || socket.is_extern() || socket.planned {
            return Ok(());
        }
        if let Some(other) = self.paired(index) {
            self.plan_pair(cx, index, other);
            return Ok(());
        }
        let Some(peer) = self
            .peer(index)
            .filter(|_| self.sockets[index].is_connection())
        else {
            return Ok(());
        };
        if self.sockets[peer].is_extern() {
            return self.reconnect(cx, index, peer);
        }
        if !self.is_mutual(index) {
            return Err(Error::corrupt(
                "files.img",
                format!(
                    "socket {} is connected to {}, which is not connected to it",
                    self.sockets[index].entry.ino, self.sockets[peer].entry.ino
                ),
            ));
        }
        if self.sockets[peer].given {
            return Err(Error::unsupported(
                "its other end is given, and belongs to a connection of its own",
                format!(
                    "give this end too: --inherit-fd fd[N]:socket:[{}]",
                    self.sockets[index].entry.ino
                ),
            ));
        }
        match self.server_end(index, peer) {
            None => {
                self.plan_pair(cx, index, peer);
                Ok(())
            }
            Some(server) => {
                let client = if server == index { peer } else { index };
                self.accept(cx, server, Some(client))
            }
        }
    }

    /// The end that was accepted at a listening socket, whose name it has.
    fn server_end(&self, one: usize, other: usize) -> Option<usize> {
        let named = |index: usize| !self.sockets[index].entry.name.is_empty();
        let heard = |index: usize| {
            let entry = self.sockets[index].entry;
            let mut all = self.sockets.iter();
            all.any(|socket| socket.entry.state == LISTEN && is_same_name(socket.entry, entry))
        };
        match (named(one), named(other)) {
            (false, false) => None,
            (true, false) => Some(one),
            (false, true) => Some(other),
            (true, true) if heard(other) && !heard(one) => Some(other),
            (true, true) => Some(one),
        }
    }

    /// Binds a socket that was made without its name.
    pub(super) fn bind_made(&mut self, cx: &mut dyn RestoreCx, index: usize) -> Result<()> {
        let socket = &mut self.sockets[index];
        let (Some((maker, fd)), false) = (socket.made, socket.entry.name.is_empty()) else {
            return Ok(());
        };
        if let (true, Some(here)) = (name::is_seen(socket.entry), socket.here) {
            socket.reach = Some(name::bind_here(cx, here, socket.entry)?);
            return Ok(());
        }
        let mut program = Program::new();
        let names = cx.names();
        let reach = name::bind(fd, socket.entry, &mut self.scratch, names, &mut program)?;
        socket.reach = Some(reach);
        run(cx, maker, &program)?;
        Ok(())
    }

    /// Connects a client, or a socket that is nobody's, and accepts it.
    fn accept(
        &mut self,
        cx: &mut dyn RestoreCx,
        server: usize,
        client: Option<usize>,
    ) -> Result<()> {
        let connector = self.sockets[server].fact.peer;
        let listener = client.and_then(|client| self.sockets[client].fact.peer);
        let listener = self.listener(cx, server, listener)?;
        let maker = self.maker(cx, client.unwrap_or(server), connector);
        let mut program = Program::new();
        let kind = self.sockets[server].entry.r#type | NEW.unsigned_abs();
        let fd = program.socket(libc::AF_UNIX, kind, 0);
        let connect = |fd: Arg, program: &mut Program| {
            as_who(connector, program, |program| {
                listener.reach.connect(fd, program);
            });
        };
        let entry = client.map(|client| self.sockets[client].entry);
        let mut reach = None;
        let (made, here) = match entry.filter(|entry| !entry.name.is_empty()) {
            Some(entry) if name::is_seen(entry) => {
                let (made, here) = fetched(cx, maker, &program, fd)?;
                reach = Some(name::bind_here(cx, here, entry)?);
                let mut program = Program::new();
                connect(made.into(), &mut program);
                run(cx, maker, &program)?;
                (made, here)
            }
            entry => {
                if let Some(entry) = entry {
                    let names = cx.names();
                    let bound = name::bind(fd, entry, &mut self.scratch, names, &mut program)?;
                    reach = Some(bound);
                }
                connect(fd.into(), &mut program);
                fetched(cx, maker, &program, fd)?
            }
        };
        if let (Some(client), true) = (client, reach.is_some()) {
            self.sockets[client].reach = reach;
        }
        match client {
            Some(client) => {
                self.sockets[client].made = Some((maker, made));
                self.sockets[client].here = Some(here);
            }
            None => self.sockets[server].other = Some(here),
        }
        let mut program = Program::new();
        let accepted = program.accept4(listener.here, 0, 0, NEW);
        self.sockets[server].here = Some(cx.here().run(&program)?.fd(accepted));
        Ok(())
    }

    /// The listening socket at which a connection is to be accepted: one of the dump, or one for the while.
    fn listener(
        &mut self,
        cx: &mut dyn RestoreCx,
        server: usize,
        creds: Option<pb::UcredEntry>,
    ) -> Result<Listener> {
        let entry = self.sockets[server].entry;
        let real = self.sockets.iter().find(|socket| {
            socket.entry.state == LISTEN
                && !socket.given
                && !socket.is_extern()
                && socket.entry.r#type == entry.r#type
                && is_same_name(socket.entry, entry)
                && (creds.is_none() || socket.fact.peer.is_none() || socket.fact.peer == creds)
        });
        if let Some(socket) = real
            && let (Some(here), Some(reach)) = (socket.here, &socket.reach)
        {
            let reach = reach.clone();
            return Ok(Listener { here, reach });
        }
        let maker = self.maker(cx, server, creds);
        let key = (entry.name.clone(), entry.name_dir.clone(), maker.get());
        if let Some(known) = self.makeshift.get(&key) {
            return Ok(known.clone());
        }
        let mut program = Program::new();
        let kind = entry.r#type | NEW.unsigned_abs();
        let fd = program.socket(libc::AF_UNIX, kind, 0);
        let names = cx.names();
        let reach = name::bind(fd, entry, &mut self.scratch, names, &mut program)?;
        as_who(creds, &mut program, |program| {
            program.listen(fd, 1);
        });
        let made = run(cx, maker, &program)?.fd(fd);
        let listener = Listener {
            here: cx.fetch(maker, made)?,
            reach,
        };
        self.makeshift.insert(key, listener.clone());
        Ok(listener)
    }

    /// A connection whose other end is closed.
    fn half(&mut self, cx: &mut dyn RestoreCx, index: usize) -> Result<()> {
        let socket = &self.sockets[index];
        if socket.here.is_some() || !socket.is_connection() {
            return Ok(());
        }
        if socket.entry.peer != 0 {
            return Err(Error::corrupt(
                "files.img",
                format!("its peer {} is not there", socket.entry.peer),
            ));
        }
        match socket.entry.name.is_empty() {
            true => self.make_half(cx, index),
            false => self.accept(cx, index, None),
        }
    }

    /// A connection to somebody outside: made anew.
    fn reconnect(&mut self, cx: &mut dyn RestoreCx, index: usize, peer: usize) -> Result<()> {
        let creds = self.sockets[index].fact.connected;
        let maker = self.maker(cx, index, creds);
        self.make(cx, index, maker, None)?;
        self.connect_to(cx, index, peer, creds)
    }
}

/// Whether two sockets are bound to one file, or have one name.
fn is_same_name(one: &pb::UnixSkEntry, other: &pb::UnixSkEntry) -> bool {
    one.name == other.name && one.name_dir == other.name_dir && one.deleted() == other.deleted()
}

/// A name of the world outside.
fn reach_by_name(entry: &pb::UnixSkEntry) -> Reach {
    Reach::Name(entry.name.clone())
}

/// Lets calls be made as this user and group: the kernel remembers the effective ones. The process is
/// what we are before and after.
pub(super) fn as_who(
    creds: Option<pb::UcredEntry>,
    program: &mut Program,
    calls: impl FnOnce(&mut Program),
) {
    const SAME: i32 = -1;
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let Some(creds) = creds.filter(|creds| (creds.uid, creds.gid) != (uid, gid)) else {
        return calls(program);
    };
    program.setresgid(SAME, creds.gid, SAME);
    program.setresuid(SAME, creds.uid, SAME);
    // Permissions stay those of before.
    program.setfsuid(uid);
    program.setfsgid(gid);
    calls(program);
    program.setresuid(SAME, uid, SAME);
    program.setresgid(SAME, gid, SAME);
}

/// Runs a program there, and fetches the descriptor that it makes: the number there, and here.
fn fetched(cx: &mut dyn RestoreCx, at: VPid, program: &Program, fd: Ret) -> Result<(i32, i32)> {
    let made = run(cx, at, program)?.fd(fd);
    Ok((made, cx.fetch(at, made)?))
}

pub(super) fn run(cx: &mut dyn RestoreCx, at: VPid, program: &Program) -> Result<Outcome> {
    let gone = || Error::Gone(nix::unistd::Pid::from_raw(at.get().cast_signed()));
    Ok(cx.at(at).ok_or_else(gone)?.run(program)?)
}
