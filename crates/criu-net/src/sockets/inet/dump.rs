//! An internet socket, described.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use criu_image::{desc, pb};
use criu_kind::{DumpCx, Error, OpenFile, Result};

use crate::connections::departure::{Departure, Ending};
use crate::connections::doors::Listener;
use crate::connections::policy::{Fate, REMEDY};
use crate::lock::Connection;
use crate::sockets::inet::diag::{InetInfo, InetSockets};
use crate::sockets::inet::sort::{self, Sort};
use crate::sockets::inet::{address, datagrams, ip, more};
use crate::sockets::message::{number_at, option_at};
use crate::sockets::options;
use crate::sockets::tcp::state::{self, CLOSE, LISTEN};
use crate::sockets::tcp::{options as tcp_options, save};

/// `TCP_ULP` of `include/uapi/linux/tcp.h`.
const TCP_ULP: i32 = 31;

/// Everything that does not change while the task is stopped.
pub(crate) fn describe(cx: &mut dyn DumpCx, file: &OpenFile) -> Result<pb::InetSkEntry> {
    let sort = Sort::of(&file.fd)?;
    sort.check()?;
    let netns = sort::namespace(cx, file)?;
    let inode = u32::try_from(file.inode.ino).unwrap_or(0);
    let all = cx.cached(InetSockets::ask)?;
    let known = all.get(inode);
    let mut entry = pb::InetSkEntry {
        id: file.number(),
        ino: inode,
        family: sort.family,
        r#type: sort.kind.cast_unsigned(),
        proto: sort.protocol.cast_unsigned(),
        state: known.map_or(CLOSE, |info| info.state),
        flags: file.flags(),
        fown: file.owner,
        opts: options::read(&file.fd)?,
        ip_opts: Some(ip::read(&file.fd, &sort)?),
        ns_id: cx.namespace("net", netns),
        shutdown: known
            .map(|info| info.shutdown.into())
            .filter(|how| *how != 0),
        ..pb::InetSkEntry::default()
    };
    if sort.is_v6() {
        let only = number_at(&file.fd, libc::SOL_IPV6, libc::IPV6_V6ONLY)?;
        entry.v6only = Some(only.is_some_and(|only| only != 0));
    }
    let local = address::local(&file.fd)?.unwrap_or_else(|| nowhere(&sort));
    let remote = address::remote(&file.fd, sort.family)?.unwrap_or_else(|| nowhere(&sort));
    entry.src_port = local.port().into();
    entry.dst_port = remote.port().into();
    entry.src_addr = address::words(local.ip());
    entry.dst_addr = address::words(remote.ip());
    if needs_device(&local) {
        entry.ifname.clone_from(&entry.opts.so_bound_dev);
    }
    if sort.is_udp() || sort.is_raw() {
        datagrams::refuse_gathered(&file.fd)?;
    }
    if sort.is_tcp() {
        entry.state = state::info(&file.fd)?.state;
        entry.tcp_opts = Some(tcp_options::read(&file.fd)?);
        tcp(cx, file, known, &mut entry, &local, &remote)?;
    }
    let keys = known.map(|info| info.keys.clone()).unwrap_or_default();
    more::keep(cx, file, sort, entry.id, keys)?;
    Ok(entry)
}

fn nowhere(sort: &Sort) -> SocketAddr {
    let address = match sort.is_v6() {
        true => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    SocketAddr::new(address, 0)
}

/// An address that is one only on a device.
fn needs_device(address: &SocketAddr) -> bool {
    match address.ip() {
        IpAddr::V6(address) => address.is_unicast_link_local(),
        IpAddr::V4(_) => false,
    }
}

/// What a TCP socket is refused for, and what is to be locked.
fn tcp(
    cx: &mut dyn DumpCx,
    file: &OpenFile,
    known: Option<&InetInfo>,
    entry: &mut pb::InetSkEntry,
    local: &SocketAddr,
    remote: &SocketAddr,
) -> Result<()> {
    let departure = departure(cx)?;
    let policies = departure.policies();
    if entry.state == LISTEN {
        let info = known.ok_or_else(|| {
            Error::unsupported(
                "a listening socket that the kernel does not list",
                "load the module: modprobe tcp_diag",
            )
        })?;
        entry.backlog = info.sent;
        if policies.listens_only(local) {
            return Ok(());
        }
        departure.listens(Listener {
            local: *local,
            both: entry.v6only == Some(false),
            socket: file.fd.try_clone().map_err(Error::io("dup"))?,
        });
        return Ok(());
    }
    if remote.port() == 0 {
        return Ok(());
    }
    match policies.own(local, remote) {
        None | Some(Fate::Keep) => {}
        Some(fate) => {
            match fate {
                Fate::Close => departure.ends(entry.ino, Ending::Silent),
                Fate::Reset => departure.ends(entry.ino, Ending::Reset),
                Fate::Keep | Fate::ListenOnly => {}
            }
            closed(entry);
            return Ok(());
        }
    }
    if !policies.is_known(local, remote) {
        return Err(Error::unsupported(
            format!(
                "a TCP connection, {local} - {remote} ({})",
                state::name(entry.state)
            ),
            REMEDY,
        ));
    }
    let ulp = option_at(&file.fd, (libc::SOL_TCP, TCP_ULP), 16)?.unwrap_or_default();
    if let Some(name) = ulp
        .split(|byte| *byte == 0)
        .next()
        .filter(|name| !name.is_empty())
    {
        return Err(Error::unsupported(
            format!(
                "a TCP connection that the kernel runs {} on",
                name.escape_ascii()
            ),
            "close it before the dump",
        ));
    }
    if policies.keeps(local, remote) {
        departure.add(Connection::new(local, remote));
        departure.ends(entry.ino, Ending::Kept);
    }
    Ok(())
}

/// What is left of a connection that ends: whoever reads the images finds a socket that has never had one, and is shut.
fn closed(entry: &mut pb::InetSkEntry) {
    let nothing = |address: &[u32]| vec![0; address.len()];
    entry.state = CLOSE;
    (entry.src_port, entry.dst_port) = (0, 0);
    entry.src_addr = nothing(&entry.src_addr);
    entry.dst_addr = nothing(&entry.dst_addr);
    entry.ifname = None;
    entry.shutdown = Some(pb::SkShutdown::Both.into());
}

fn departure(cx: &mut dyn DumpCx) -> Result<std::rc::Rc<Departure>> {
    cx.cached(|| Ok(Departure::default()))
}

/// What is under way: nothing more can come.
pub(crate) fn finish(
    cx: &mut dyn DumpCx,
    file: &OpenFile,
    entry: &mut pb::InetSkEntry,
) -> Result<()> {
    let sort = Sort::of_entry(entry);
    if sort.is_udp() {
        return datagrams::keep(cx, file, entry);
    }
    let departure = departure(cx)?;
    let copy = || file.fd.try_clone().map_err(Error::io("dup"));
    match departure.ending(entry.ino) {
        Some(Ending::Kept) => {}
        Some(Ending::Silent) => {
            departure.keep(copy()?);
            return Ok(());
        }
        Some(Ending::Reset) => {
            departure.reset(copy()?);
            return Ok(());
        }
        None => return Ok(()),
    }
    let saved = save::save(&file.fd)?;
    entry.state = saved.state;
    cx.put(desc::TCP_STREAM, entry.ino, &saved.entry, &saved.queues)?;
    departure.keep(copy()?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_is_a_socket_that_never_was_connected() {
        let mut entry = pb::InetSkEntry {
            ino: 7,
            state: state::ESTABLISHED,
            src_port: 1,
            dst_port: 2,
            src_addr: vec![1, 2, 3, 4],
            dst_addr: vec![5, 6, 7, 8],
            ifname: Some(b"lo".to_vec()),
            ..pb::InetSkEntry::default()
        };
        closed(&mut entry);
        let wanted = pb::InetSkEntry {
            ino: 7,
            state: CLOSE,
            src_addr: vec![0; 4],
            dst_addr: vec![0; 4],
            shutdown: Some(3),
            ..pb::InetSkEntry::default()
        };
        assert_eq!(entry, wanted);
    }
}
