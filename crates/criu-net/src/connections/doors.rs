//! Who listens while its tree is dumped: nobody new comes in.
//!
//! The kernel goes on to accept connections for a process that is stopped, and would reset them when it ends. So those
//! who ask are not heard from the survey on, and ask again a second later; and those who wait already must have been
//! accepted.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use criu_kind::{Error, Result};

use crate::lock::Lock;
use crate::sockets::inet::diag;
use crate::sockets::tcp::state;

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) local: SocketAddr,
    /// It takes IPv4 as well.
    pub(crate) both: bool,
    pub(crate) socket: OwnedFd,
}

/// The doors of a tree; shut until it is dropped, also while the tasks go on between two attempts.
#[derive(Debug, Default)]
pub struct Doors(RefCell<Option<(Vec<SocketAddr>, Lock)>>);

impl Doors {
    /// Open ones.
    pub fn new() -> Self {
        Self::default()
    }

    /// Shuts those of these sockets.
    pub(crate) fn shut(&self, run: &str, listeners: &[Listener]) -> Result<()> {
        let mut all: Vec<SocketAddr> = listeners.iter().map(|one| one.local).collect();
        all.sort();
        all.dedup();
        let mut shut = self.0.borrow_mut();
        if shut.as_ref().is_none_or(|(known, _)| *known != all) {
            *shut = None;
            *shut = Some((
                all.clone(),
                Lock::doors(&format!("criu-rs-doors-{run}"), &all)?,
            ));
        }
        Ok(())
    }
}

/// Refuses, for the moment, listeners at which somebody waits to be accepted, or is about to.
pub(crate) fn check(listeners: &[Listener]) -> Result<()> {
    if listeners.is_empty() {
        return Ok(());
    }
    let asking = diag::asking()?;
    let mut problems = Vec::new();
    for Listener {
        local,
        both,
        socket,
    } in listeners
    {
        let is_here = |to: &&SocketAddr| {
            to.port() == local.port()
                && (to.ip().to_canonical() == local.ip().to_canonical()
                    || local.ip().is_unspecified() && (*both || to.is_ipv4() == local.is_ipv4()))
        };
        let waiting = state::waiting(socket)? as usize + asking.iter().filter(is_here).count();
        if waiting != 0 {
            // A busy server accepts them in a moment.
            problems.push(Error::busy(
                format!("{waiting} connections to {local} wait to be accepted"),
                "let the task accept them before the dump, or forget them with --skip-in-flight",
            ));
        }
    }
    Error::all(problems)
}
