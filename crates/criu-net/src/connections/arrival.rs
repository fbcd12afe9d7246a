//! Connections of a restore: locked before the first socket is made, free when every process is ready to go on.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{Error, Result};
use criu_tracee::{Local, Program, Site};

use crate::connections::remap::{Remap, remapped};
use crate::iptables;
use crate::lock::{self, Connection, Lock};
use crate::sockets::inet::address::{of_words, on_the_wire};
use crate::sockets::inet::sort::Sort;
use crate::sockets::message::set_at;
use crate::sockets::tcp::repair::{OFF, OFF_QUIETLY, enter, leave};

/// What a restore does about connections.
#[derive(Clone, Debug, Default)]
pub struct ArrivalOptions {
    /// They are kept (`--tcp-established`).
    pub established: bool,
    /// They are closed (`--tcp-close`).
    pub close: bool,
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
    connections: Vec<Connection>,
    /// Ends of connections that are in the images: those who have the other end have to follow them.
    ours: HashSet<SocketAddr>,
    /// Protocol and port of sockets that others may share a port with.
    shared: HashSet<(u32, u32)>,
    /// The id of the dump, under which they may be parked.
    run: Option<String>,
    lock: RefCell<Option<Lock>>,
    ready: RefCell<Vec<Ready>>,
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
            let (local, remote) = arrival.ends(entry)?;
            arrival.connections.push(Connection::new(&local, &remote));
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

    /// How many there are.
    pub fn count(&self) -> usize {
        self.connections.len()
    }

    pub(crate) fn options(&self) -> &ArrivalOptions {
        &self.options
    }

    /// Whether connections are wanted.
    pub fn check(&self) -> Result<()> {
        if self.options.close || self.options.established || self.connections.is_empty() {
            return Ok(());
        }
        let list: Vec<String> = self.connections.iter().map(Connection::to_string).collect();
        Err(Error::unsupported(
            format!("the images have TCP connections: {}", list.join(", ")),
            "keep them with --tcp-established, or close them with --tcp-close",
        ))
    }

    /// Whether their addresses are here. A script may bring them when the connections are locked: whoever answers
    /// before their sockets are there, breaks them.
    pub fn check_addresses(&self) -> Result<()> {
        if self.options.close || self.connections.is_empty() {
            return Ok(());
        }
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
        if !self.connections.is_empty() && !self.goes_unlocked() {
            let run = self.run.as_deref().unwrap_or_default();
            let name = format!("criu-rs-restore-{}-{run}", std::process::id());
            let lock = Lock::new(&name, &self.connections)?;
            self.lock.replace(Some(lock));
        }
        Ok(())
    }

    fn goes_unlocked(&self) -> bool {
        self.options.unlocked || self.options.close
    }

    /// Takes them from where the dump has parked them. Also those who restore without a lock, or without connections,
    /// do not want that.
    fn unpark(&self) -> Result<()> {
        if self.connections.is_empty() {
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
        let count = iptables::remove(&self.connections)?;
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
fn ends(entry: &pb::InetSkEntry) -> Result<(SocketAddr, SocketAddr)> {
    Ok((
        of_words(entry.family, &entry.src_addr, entry.src_port)?,
        of_words(entry.family, &entry.dst_addr, entry.dst_port)?,
    ))
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn arrival(run: &str, connection: Connection) -> Arrival {
        Arrival {
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
