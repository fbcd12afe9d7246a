//! What becomes of TCP connections: `--tcp-established`, `--tcp-close`, `--skip-in-flight`, `--network-lock`.

use crate::error::Failure;
use crate::typed::{Typed, bad_value};

/// What is done about TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// They are kept.
    pub established: bool,
    /// They are closed; written in the inventory, where both must agree.
    pub close: bool,
    /// Those that nobody has accepted are forgotten.
    pub skip_in_flight: bool,
    /// Packets of theirs are kept away meanwhile.
    pub lock: NetworkLock,
}

/// How packets are kept away. There is one way: the older name means it, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkLock {
    /// By a table of nf_tables.
    Nftables,
    /// Not at all.
    Skip,
}

impl Tcp {
    pub(crate) fn read(typed: &Typed) -> Result<Self, Failure> {
        let lock = match typed.value("network-lock") {
            None => NetworkLock::Nftables,
            Some(how) => match how.to_str() {
                Some("iptables" | "nftables") => NetworkLock::Nftables,
                Some("skip" | "none") => NetworkLock::Skip,
                _ => return Err(bad_value("network-lock", how)),
            },
        };
        Ok(Self {
            established: typed.switch("tcp-established", false),
            close: typed.switch("tcp-close", false),
            skip_in_flight: typed.switch("skip-in-flight", false),
            lock,
        })
    }
}
