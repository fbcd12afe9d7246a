//! Connections: when they are looked for, locked and let go. How is the business of `criu-net`.

use std::rc::Rc;

use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{Error, Result};
use criu_net::{
    Arrival, ArrivalOptions, Departure, DepartureOptions, Fate, Policies, Policy, Side,
};
use nix::unistd::Pid;

use crate::options::{NetworkLock, Tcp, TcpFate, TcpPolicy, TcpSide};
use crate::remap::Remap;

/// How inventories count the ways; the RPC counts from 1.
const BY_IPTABLES: u32 = 0;
const BY_NFTABLES: u32 = 1;
const SKIPPED: u32 = 2;

/// Lets us have as many descriptors as we may: a copy of every socket is kept until all are known.
pub(crate) fn make_room() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let room = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = room {
        tracing::debug!(%errno, "the limit of descriptors stays");
    }
}

/// Whether we may have so many descriptors.
pub(crate) fn has_room(count: u64) -> bool {
    use nix::sys::resource::{Resource, getrlimit};
    #[allow(
        clippy::useless_conversion,
        reason = "limits have 32 bits on 32-bit machines"
    )]
    getrlimit(Resource::RLIMIT_NOFILE).is_ok_and(|(soft, _)| u64::from(soft) >= count)
}

/// Refuses connections that are neither to be kept nor to be closed, before anybody is stopped.
pub(crate) fn preflight(root: Pid, tcp: &Tcp) -> Result<()> {
    if tcp.established || tcp.close {
        return Ok(());
    }
    criu_net::refuse_connections(&criu_task::family(root), &policies(tcp))
}

/// The connections of a dump, none of them known yet.
pub(crate) fn departure(tcp: &Tcp) -> Rc<Departure> {
    Rc::new(Departure::new(DepartureOptions {
        policies: policies(tcp),
        skip_in_flight: tcp.skip_in_flight,
        unlocked: tcp.lock == NetworkLock::Skip,
    }))
}

/// What is said of connections, in the words of `criu-net`.
fn policies(tcp: &Tcp) -> Policies {
    let policy = |one: &TcpPolicy| Policy {
        side: match one.side {
            TcpSide::Either => Side::Either,
            TcpSide::Local => Side::Local,
            TcpSide::Remote => Side::Remote,
        },
        end: (one.end.address, one.end.port),
        fate: match one.fate {
            TcpFate::Keep => Fate::Keep,
            TcpFate::Close => Fate::Close,
            TcpFate::Reset => Fate::Reset,
            TcpFate::ListenOnly => Fate::ListenOnly,
        },
    };
    Policies {
        each: tcp.policies.iter().map(policy).collect(),
        established: tcp.established,
        close: tcp.close,
    }
}

/// How packets are kept away, as the inventory has it.
pub(crate) fn method(tcp: &Tcp) -> u32 {
    match tcp.lock {
        NetworkLock::Nftables => BY_NFTABLES,
        NetworkLock::Skip => SKIPPED,
    }
}

/// The connections of the images.
pub(crate) fn arrival(tcp: &Tcp, remaps: &[Remap], store: &dyn Store) -> Result<Rc<Arrival>> {
    let inventory = store
        .entry::<pb::InventoryEntry>(desc::INVENTORY, ())?
        .message;
    if inventory.tcp_close() && !tcp.close {
        return Err(Error::unsupported(
            "the dump has closed connections (--tcp-close)",
            "restore with --tcp-close",
        ));
    }
    let options = ArrivalOptions {
        policies: policies(tcp),
        unlocked: tcp.lock == NetworkLock::Skip,
        by_iptables: inventory.network_lock_method.unwrap_or(BY_IPTABLES) == BY_IPTABLES,
        remaps: remaps
            .iter()
            .map(|one| criu_net::Remap {
                old: (one.old.address, one.old.port),
                new: (one.new.address, one.new.port),
            })
            .collect(),
    };
    let arrival = Arrival::load(options, store, inventory.dump_criu_run_id.clone())?;
    Ok(Rc::new(arrival))
}
