//! Sockets, dumped and restored in CRIU's format.
//!
//! Knows no ptrace, no descriptor tables and no order of stages: a socket is a kind of file
//! ([`criu_kind::FileKind`]), and whoever walks the files calls it. Invariants:
//! * what the kernel knows of sockets is asked once for each network namespace, not once for each socket;
//! * a queue is looked into, never drained;
//! * every option that is changed to look is put back;
//! * a unix socket is made by the process that the kernel is to remember as its maker;
//! * no packet of a connection is sent or received between the moment it is read and the one in which it goes on.
//!
//! Start at [`kinds`]; connections are the driver's matter too: [`Departure`], [`Arrival`].
#![cfg_attr(doctest, doc = include_str!("../README.md"))]
#![forbid(unsafe_code)]

mod iptables;
mod lock;
mod nft;
mod preflight;
mod rules;

mod connections {
    pub(crate) mod arrival;
    pub(crate) mod departure;
    pub(crate) mod doors;
    pub(crate) mod policy;
    pub(crate) mod remap;
}

mod sockets {
    pub(crate) mod diag;
    pub(crate) mod message;
    pub(crate) mod netlink;
    pub(crate) mod options;
    pub(crate) mod queue;
    pub(crate) mod inet {
        pub(crate) mod address;
        pub(crate) mod build;
        pub(crate) mod datagrams;
        pub(crate) mod diag;
        pub(crate) mod dump;
        pub(crate) mod ip;
        pub(crate) mod kind;
        pub(crate) mod more;
        pub(crate) mod multicast;
        pub(crate) mod packet;
        pub(crate) mod sort;
    }
    pub(crate) mod packet {
        pub(crate) mod diag;
        pub(crate) mod kind;
        pub(crate) mod ring;
        pub(crate) mod send;
    }
    pub(crate) mod tcp {
        pub(crate) mod abort;
        pub(crate) mod options;
        pub(crate) mod rebuild;
        pub(crate) mod repair;
        pub(crate) mod save;
        pub(crate) mod signature;
        pub(crate) mod state;
    }
    pub(crate) mod unix {
        pub(crate) mod build;
        pub(crate) mod dump;
        mod join;
        pub(crate) mod kind;
        pub(crate) mod name;
        mod pairs;
        pub(crate) mod refill;
    }
}

pub use connections::arrival::{Arrival, ArrivalOptions};
pub use connections::departure::{Departure, DepartureOptions};
pub use connections::doors::Doors;
pub use connections::policy::{Fate, Policies, Policy, Side};
pub use connections::remap::{End, Remap};
pub use lock::{Connection, Lock, park, unpark};
pub use preflight::refuse_connections;

/// The kinds of sockets.
pub mod kinds {
    pub use crate::sockets::inet::kind::Inet;
    pub use crate::sockets::netlink::Netlink;
    pub use crate::sockets::packet::kind::Packet;
    pub use crate::sockets::unix::kind::Unix;
}

/// Every kind of this crate, by name.
pub const KINDS: &[&dyn criu_kind::AnyFileKind] =
    &[&kinds::Inet, &kinds::Netlink, &kinds::Packet, &kinds::Unix];
