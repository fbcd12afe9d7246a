//! Connections of a restore: locked before the first socket is made, free when every process is ready to go on.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{Error, Result};
use criu_tracee::{Local, Program, Site};

use crate::connections::policy::{Fate, Policies, REMEDY};
use crate::connections::remap::{Remap, remapped};
use crate::iptables;
use crate::lock::{self, Connection, Lock};
use crate::sockets::inet::address::{of_words, on_the_wire};
use crate::sockets::inet::sort::Sort;
use crate::sockets::message::set_at;
use crate::sockets::tcp::abort::reset;
use crate::sockets::tcp::repair::{OFF, OFF_QUIETLY, enter, leave};

/// What a restore does about connections.
#[derive(Clone, Debug, Default)]
pub struct ArrivalOptions {
    /// What becomes of them; their ends as the images have them.
    pub policies: Policies,
    /// No packet is kept away (`--network-lock skip`).
    pub unlocked: bool,
    /// The dump has had iptables(8) keep packets away.
    pub by_iptables: bool,
    /// Where sockets are to be instead (`--tcp-remap`).
    pub remaps: Vec<Remap>,
}

/// A socket that is ready, but still in repair mode.
#[derive(Debug)]
struct Ready {
    socket: OwnedFd,
    reuse: bool,
    cork: bool,
}

/// The connections of a restore: made by the driver, known to the kinds.
#[derive(Debug, Default)]
pub struct Arrival {
    options: ArrivalOptions,
    /// Those of the images, as the dump had them.
    all: Vec<Connection>,
    /// Those that there are again, be it only to end.
    connections: Vec<Connection>,
    /// Those of which nobody has said what becomes of them.
    unknown: Vec<Connection>,
    /// Ends of connections that are in the images: those who have the other end have to follow them.
    ours: HashSet<SocketAddr>,
    /// Protocol and port of sockets that others may share a port with.
    shared: HashSet<(u32, u32)>,
    /// The id of the dump, under which they may be parked.
    run: Option<String>,
    lock: RefCell<Option<Lock>>,
    ready: RefCell<Vec<Ready>>,
    /// Those that end as soon as the other ends can hear of it.
    doomed: RefCell<Vec<OwnedFd>>,
}

impl Arrival {
    /// Reads which there are.
    pub fn load(options: ArrivalOptions, store: &dyn Store, run: Option<String>) -> Result<Self> {
        let mut entries: Vec<pb::InetSkEntry> = Vec::new();
        if let Some(mut files) = store.reader(desc::FILES, ())? {
            while let Some(file) = files.read::<pb::FileEntry>()? {
                entries.extend(file.message.isk.map(|socket| *socket));
            }
        }
        // Before 3.4.
        let old = store.entries::<pb::InetSkEntry>(desc::INETSK, ())?;
        entries.extend(
            old.unwrap_or_default()
                .into_iter()
                .map(|entry| entry.message),
        );
        let mut arrival = Self {
            options,
            run,
            ..Self::default()
        };
        for entry in &entries {
            let (local, _) = ends(entry)?;
            arrival.ours.insert(on_the_wire(&local));
            if entry.opts.so_reuseport() {
                arrival.shared.insert((entry.proto, entry.src_port));
            }
        }
        for entry in entries.iter().filter(|entry| is_connection(entry)) {
            let (local, remote) = ends(entry)?;
            arrival.all.push(Connection::new(&local, &remote));
            if !arrival.options.policies.is_known(&local, &remote) {
                arrival.unknown.push(Connection::new(&local, &remote));
            } else if matches!(arrival.fate(entry)?, Fate::Keep | Fate::Reset) {
                let (local, remote) = arrival.ends(entry)?;
                arrival.connections.push(Connection::new(&local, &remote));
            }
        }
        Ok(arrival)
    }

    /// Both ends of an entry, where they are to be.
    pub(crate) fn ends(&self, entry: &pb::InetSkEntry) -> Result<(SocketAddr, SocketAddr)> {
        let (local, remote) = ends(entry)?;
        let is_ours = self.ours.contains(&on_the_wire(&remote));
        let remote = if is_ours {
            remapped(&self.options.remaps, remote)
        } else {
            remote
        };
        Ok((remapped(&self.options.remaps, local), remote))
    }

    /// Whether somebody had the same port, by `SO_REUSEPORT`. Once it is there a socket may give the option up.
    pub(crate) fn shares_port(&self, entry: &pb::InetSkEntry) -> bool {
        !is_connection(entry) && self.shared.contains(&(entry.proto, entry.src_port))
    }

    /// How many the images have.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// What becomes of the connection of an entry.
    pub(crate) fn fate(&self, entry: &pb::InetSkEntry) -> Result<Fate> {
        let (local, remote) = ends(entry)?;
        let policies = &self.options.policies;
        if !policies.is_known(&local, &remote) {
            let fact = format!("a TCP connection, {local} - {remote}");
            return Err(Error::unsupported(fact, REMEDY));
        }
        let of_all = if policies.close {
            Fate::Close
        } else {
            Fate::Keep
        };
        Ok(policies.own(&local, &remote).unwrap_or(of_all))
    }

    /// Whether it is said of all connections what becomes of them.
    pub fn check(&self) -> Result<()> {
        if self.unknown.is_empty() {
            return Ok(());
        }
        let list: Vec<String> = self.unknown.iter().map(Connection::to_string).collect();
        Err(Error::unsupported(
            format!("the images have TCP connections: {}", list.join(", ")),
            REMEDY,
        ))
    }

    /// Whether their addresses are here. A script may bring them when the connections are locked: whoever answers
    /// before their sockets are there, breaks them.
    pub fn check_addresses(&self) -> Result<()> {
        let mut addresses: Vec<_> = self.connections.iter().map(|one| one.local.ip()).collect();
        addresses.sort();
        addresses.dedup();
        let absent = |address: &std::net::IpAddr| {
            let bound = std::net::UdpSocket::bind((*address, 0));
            bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrNotAvailable)
        };
        let absent: Vec<String> = addresses
            .iter()
            .filter(|address| absent(address))
            .map(ToString::to_string)
            .collect();
        if absent.is_empty() {
            return Ok(());
        }
        Err(Error::unsupported(
            format!(
                "connections have addresses that are not here: {}",
                absent.join(", ")
            ),
            "give a device these addresses (ip address add; for connections that move here, in an action script at \
             pre-restore: they are locked by then), or close the connections with --tcp-close",
        ))
    }

    /// Locks them. Where the dump has parked them, they stay so until all has gone well: whoever tries again after a
    /// failure finds them as they were.
    pub fn lock(&self) -> Result<()> {
        if !self.goes_unlocked() {
            let run = self.run.as_deref().unwrap_or_default();
            let name = format!("criu-rs-restore-{}-{run}", std::process::id());
            let lock = Lock::new(&name, &self.connections)?;
            self.lock.replace(Some(lock));
        }
        Ok(())
    }

    fn goes_unlocked(&self) -> bool {
        self.options.unlocked || self.connections.is_empty()
    }

    /// Takes them from where the dump has parked them. Also those who restore without a lock, or without connections,
    /// do not want that.
    fn unpark(&self) -> Result<()> {
        if self.all.is_empty() {
            return Ok(());
        }
        let unparked = lock::unpark(self.run.as_deref().unwrap_or_default());
        match unparked.and_then(|_| self.remove_rules()) {
            Err(error) if self.goes_unlocked() => {
                tracing::debug!(%error, "nothing is parked");
                Ok(())
            }
            other => other,
        }
    }

    /// Those of iptables, if the dump has left some.
    fn remove_rules(&self) -> Result<()> {
        if !self.options.by_iptables {
            return Ok(());
        }
        let count = iptables::remove(&self.all)?;
        tracing::debug!(count, "rules of iptables were removed");
        if count == 0 && iptables::has_hidden() {
            tracing::warn!(
                "the dump may have left rules of iptables that block its connections and that only iptables-legacy sees; \
                 remove those with the mark 0xc114 (iptables-legacy -S), or dump with --network-lock nftables"
            );
        }
        Ok(())
    }

    /// A socket that only waits to be let go.
    pub(crate) fn add(&self, socket: OwnedFd, entry: &pb::InetSkEntry) {
        self.ready.borrow_mut().push(Ready {
            socket,
            reuse: entry.opts.reuseaddr(),
            cork: entry.tcp_opts.as_ref().is_some_and(pb::TcpOptsEntry::cork),
        });
    }

    /// A socket that nobody has but us, in repair mode: it only tells the other end that there is none any more.
    pub(crate) fn doom(&self, socket: OwnedFd) {
        self.doomed.borrow_mut().push(socket);
    }

    /// Takes them out of repair mode, still locked: their tasks may go on at any moment.
    pub fn ready(&self) -> Result<()> {
        let ready = self.ready.borrow();
        let mut all = ready.iter();
        all.try_for_each(|one| leave(&one.socket, OFF_QUIETLY, one.reuse.into()))
    }

    /// Takes that back: their tasks end, and the other ends are not to be told.
    pub fn recall(&self) -> Result<()> {
        let ready = self.ready.borrow();
        let mut all = ready.iter();
        all.try_for_each(|one| enter(&one.socket))
    }

    /// Lets them go, also while tasks run: from here on the other ends hear of us again.
    pub fn go(&self) -> Result<()> {
        self.unlock()?;
        for socket in self.doomed.borrow_mut().drain(..) {
            leave(&socket, OFF_QUIETLY, 0)?;
            reset(&socket)?;
        }
        for one in self.ready.borrow_mut().drain(..) {
            // They have left repair mode, but only this asks the other end for news.
            leave(&one.socket, OFF, one.reuse.into())?;
            if !one.cork {
                // What could not be sent while the lock was there is tried again at once.
                let mut program = Program::new();
                let cork = (libc::SOL_TCP, libc::TCP_CORK);
                set_at(&mut program, one.socket.as_raw_fd(), cork, 0);
                Local.run(&program)?;
            }
        }
        Ok(())
    }

    fn unlock(&self) -> Result<()> {
        self.unpark()?;
        self.lock.take();
        Ok(())
    }
}

/// Whether an entry is of a TCP socket that is or was connected.
pub(crate) fn is_connection(entry: &pb::InetSkEntry) -> bool {
    Sort::of_entry(entry).is_tcp() && entry.dst_port != 0
}

/// Both ends of an entry.
pub(crate) fn ends(entry: &pb::InetSkEntry) -> Result<(SocketAddr, SocketAddr)> {
    Ok((
        of_words(entry.family, &entry.src_addr, entry.src_port)?,
        of_words(entry.family, &entry.dst_addr, entry.dst_port)?,
    ))
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::connections::policy::{Policy, Side};
    use crate::sockets::inet::address::words;

    fn arrival(run: &str, connection: Connection) -> Arrival {
        Arrival {
            all: vec![connection],
            connections: vec![connection],
            run: Some(run.to_owned()),
            ..Arrival::default()
        }
    }

    fn parked_stays_until_all_is_well() -> Result<()> {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let connection = Connection::new(&address(1), &address(2));
        lock::park("a-run", &[connection])?;
        let failed = arrival("a-run", connection);
        failed.lock()?;
        drop(failed);
        assert!(lock::unpark("a-run")?, "a failed restore leaves it");
        lock::park("a-run", &[connection])?;
        let good = arrival("a-run", connection);
        good.lock()?;
        good.go()?;
        assert!(!lock::unpark("a-run")?, "a good one takes it away");
        Ok(())
    }

    /// Entries of connections from 10.0.0.1 to these.
    fn images(remotes: &[&str]) -> criu_image::Memory {
        let store = criu_image::Memory::new();
        let mut files = Vec::new();
        for (id, remote) in (1..).zip(remotes) {
            let remote: SocketAddr = remote.parse().expect("an address");
            let socket = pb::InetSkEntry {
                id,
                family: libc::AF_INET.cast_unsigned(),
                r#type: libc::SOCK_STREAM.cast_unsigned(),
                proto: libc::IPPROTO_TCP.cast_unsigned(),
                state: 1,
                src_port: 1000 + id,
                dst_port: remote.port().into(),
                src_addr: words("10.0.0.1".parse().expect("an address")),
                dst_addr: words(remote.ip()),
                ..pb::InetSkEntry::default()
            };
            files.push(pb::FileEntry {
                r#type: pb::FdTypes::Inetsk.into(),
                id,
                isk: Some(Box::new(socket)),
                ..pb::FileEntry::default()
            });
        }
        let written = store.write_entries(desc::FILES, (), &files);
        written.and_then(|()| store.finish()).expect("memory");
        store
    }

    #[test]
    fn each_connection_is_what_is_said_of_it() {
        let store = images(&["10.0.0.5:1", "10.0.0.6:1", "10.0.0.7:1", "10.0.0.8:1"]);
        let policy = |address: &str, fate| Policy {
            side: Side::Remote,
            end: (Some(address.parse().expect("an address")), None),
            fate,
        };
        let mut options = ArrivalOptions::default();
        options.policies.each = vec![
            policy("10.0.0.5", Fate::Keep),
            policy("10.0.0.6", Fate::Close),
            policy("10.0.0.7", Fate::Reset),
        ];
        let arrival = Arrival::load(options.clone(), &store, None).expect("well formed");
        let refusal = arrival.check().expect_err("one too many").to_string();
        assert!(
            refusal.ends_with("connections: 10.0.0.1:1004 - 10.0.0.8:1"),
            "{refusal}"
        );
        let kept = |options: &ArrivalOptions| {
            let arrival = Arrival::load(options.clone(), &store, None).expect("well formed");
            arrival.check().expect("all is said");
            assert_eq!(arrival.count(), 4);
            let remotes = arrival.connections.iter().map(|one| one.remote.to_string());
            remotes.collect::<Vec<_>>()
        };
        // What is reset must be there first.
        options.policies.established = true;
        assert_eq!(kept(&options), ["10.0.0.5:1", "10.0.0.7:1", "10.0.0.8:1"]);
        options.policies.close = true;
        assert_eq!(kept(&options), ["10.0.0.5:1", "10.0.0.7:1"]);
    }

    #[test]
    fn a_failed_restore_leaves_what_the_dump_has_parked() {
        // A network namespace of this thread.
        let test = std::thread::spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => parked_stays_until_all_is_well().expect("nf_tables"),
            Err(error) => eprintln!("not tried: {error}"),
        });
        test.join().expect("it does not panic");
    }
}
