//! An internet socket, described.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use criu_image::{desc, pb};
use criu_kind::{DumpCx, Error, OpenFile, Result};

use crate::connections::departure::Departure;
use crate::connections::doors::Listener;
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
    let netns = sort::namespace(file)?;
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
    if sort.is_tcp() {
        entry.state = state::info(&file.fd)?.state;
        entry.tcp_opts = Some(tcp_options::read(&file.fd)?);
        tcp(cx, file, known, &mut entry, &local, &remote)?;
    }
    more::keep(cx, file, sort, entry.id)?;
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
    let chosen = departure.options();
    if entry.state == LISTEN {
        let info = known.ok_or_else(|| {
            Error::unsupported(
                "a listening socket that the kernel does not list",
                "load the module: modprobe tcp_diag",
            )
        })?;
        entry.backlog = info.sent;
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
    if !chosen.established && !chosen.close {
        return Err(Error::unsupported(
            format!(
                "a TCP connection, {local} - {remote} ({})",
                state::name(entry.state)
            ),
            "keep it with --tcp-established, or close it with --tcp-close",
        ));
    }
    if known.is_some_and(|info| info.signed) {
        return Err(Error::unsupported(
            "a TCP connection whose segments are signed (TCP-MD5)",
            "close it before the dump",
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
    if chosen.established && !chosen.close {
        departure.add(Connection::new(local, remote));
    }
    Ok(())
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
    let chosen = departure.options();
    if !sort.is_tcp() || entry.state == LISTEN || entry.dst_port == 0 || chosen.close {
        return Ok(());
    }
    let saved = save::save(&file.fd)?;
    entry.state = saved.state;
    cx.append(desc::TCP_STREAM, entry.ino, &saved.entry, &saved.queues)?;
    cx.close_image(desc::TCP_STREAM, entry.ino.into())?;
    departure.keep(file.fd.try_clone().map_err(Error::io("dup"))?);
    Ok(())
}
