//! Connections of a dump: which there are, when they are locked, and how their sockets end.
//!
//! A socket is in repair mode while it is read, and from the moment on in which its process is killed: so nobody
//! is told. In between only the lock holds, which goes with this process: a dump that dies leaves the
//! connections alone.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

use criu_kind::Result;

use crate::connections::doors::{self, Doors, Listener};
use crate::connections::policy::Policies;
use crate::lock::{self, Connection, Lock};
use crate::sockets::tcp::abort::{Abrupt, abrupt, gentle};
use crate::sockets::tcp::repair::{OFF_QUIETLY, Repair, leave};

/// What a dump does about connections.
#[derive(Clone, Debug, Default)]
pub struct DepartureOptions {
    /// What becomes of them.
    pub policies: Policies,
    /// Those that nobody has accepted are forgotten (`--skip-in-flight`).
    pub skip_in_flight: bool,
    /// No packet is kept away (`--network-lock skip`).
    pub unlocked: bool,
}

/// How a connection ends here when its process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Without a word, to go on elsewhere.
    Kept,
    /// Without a word.
    Silent,
    /// By a RST.
    Reset,
}

/// The connections of a dump: made by the driver, known to the kinds.
#[derive(Debug, Default)]
pub struct Departure {
    options: DepartureOptions,
    connections: RefCell<Vec<Connection>>,
    listeners: RefCell<Vec<Listener>>,
    /// Of connections that this process has a hand in, by inode: how they end.
    ending: RefCell<HashMap<u32, Ending>>,
    /// Those that are to end without a word.
    sockets: RefCell<Vec<OwnedFd>>,
    /// Those whose other end is to be told.
    told: RefCell<Vec<OwnedFd>>,
    lock: RefCell<Option<Lock>>,
    /// Those in repair mode: `SO_REUSEADDR` of each.
    held: RefCell<Vec<(OwnedFd, u32)>>,
    /// Those that end by a RST.
    armed: RefCell<Vec<(OwnedFd, Abrupt)>>,
}

impl Departure {
    /// None yet.
    pub fn new(options: DepartureOptions) -> Self {
        let mut departure = Self::default();
        departure.options = options;
        departure
    }

    pub(crate) fn policies(&self) -> &Policies {
        &self.options.policies
    }

    pub(crate) fn add(&self, connection: Connection) {
        self.connections.borrow_mut().push(connection);
    }

    pub(crate) fn listens(&self, listener: Listener) {
        self.listeners.borrow_mut().push(listener);
    }

    /// How a connection ends here when its process does.
    pub(crate) fn ends(&self, inode: u32, how: Ending) {
        self.ending.borrow_mut().insert(inode, how);
    }

    /// The same, if it is not the kernel's business.
    pub(crate) fn ending(&self, inode: u32) -> Option<Ending> {
        self.ending.borrow().get(&inode).copied()
    }

    /// A socket whose other end is to be told nothing when its process ends.
    pub(crate) fn keep(&self, socket: OwnedFd) {
        self.sockets.borrow_mut().push(socket);
    }

    /// A socket that is to end by a RST.
    pub(crate) fn reset(&self, socket: OwnedFd) {
        self.told.borrow_mut().push(socket);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Lets nobody new come in; refuses, for the moment, if somebody waits to be accepted.
    pub fn shut(&self, doors: &Doors, run: &str) -> Result<()> {
        let listeners = self.listeners.borrow();
        let wanted = !listeners.is_empty() && !self.options.skip_in_flight;
        if wanted
            && !self.options.unlocked
            && let Err(error) = doors.shut(run, &listeners)
        {
            // Who has no connections needs no lock, and may have none.
            tracing::debug!(%error, "who connects during the dump may be reset");
        }
        drop(listeners);
        self.check()
    }

    /// Whether nobody waits to be accepted, or nobody minds.
    pub fn check(&self) -> Result<()> {
        if self.options.skip_in_flight {
            return Ok(());
        }
        doors::check(&self.listeners.borrow())
    }

    /// Locks them, if there are any.
    pub fn lock(&self, run: &str) -> Result<()> {
        let connections = self.connections.borrow();
        if !connections.is_empty() && !self.options.unlocked {
            let name = format!("criu-rs-dump-{run}");
            self.lock.replace(Some(Lock::new(&name, &connections)?));
        }
        Ok(())
    }

    /// Brings all into repair mode: what is killed now goes silently. And the others, those whose other end is told.
    pub fn hold(&self) -> Result<()> {
        for socket in self.told.borrow_mut().drain(..) {
            let former = abrupt(&socket)?;
            self.armed.borrow_mut().push((socket, former));
        }
        for socket in self.sockets.borrow_mut().drain(..) {
            let reuse = Repair::enter(&socket)?.stay();
            self.held.borrow_mut().push((socket, reuse));
        }
        Ok(())
    }

    /// The processes are dead: the sockets go, and packets for them find the lock until they are restored.
    pub fn depart(&self, run: &str) -> Result<()> {
        let connections = self.connections.borrow();
        if !connections.is_empty() && !self.options.unlocked {
            lock::park(run, &connections)?;
        }
        self.held.borrow_mut().clear();
        self.sockets.borrow_mut().clear();
        // Nobody else has them any more, and that is their end.
        self.armed.borrow_mut().clear();
        self.lock.take();
        Ok(())
    }
}

impl Drop for Departure {
    /// The processes live on, and so do their connections.
    fn drop(&mut self) {
        for (socket, reuse) in self.held.borrow_mut().drain(..) {
            if let Err(error) = leave(&socket, OFF_QUIETLY, reuse) {
                tracing::error!(%error, "a connection could not be let out of repair mode");
            }
        }
        for (socket, former) in self.armed.borrow_mut().drain(..) {
            if let Err(error) = gentle(&socket, &former) {
                tracing::error!(%error, "a connection has lost its SO_LINGER");
            }
        }
    }
}
