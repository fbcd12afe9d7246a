//! An internet socket, made again.

use std::net::SocketAddr;
use std::rc::Rc;

use criu_image::{StoreExt, desc, pb};
use criu_kind::{Error, Opened, RestoreCx, Result};
use criu_tracee::{Program, copy_fd};
use nix::errno::Errno;

use crate::connections::arrival::{Arrival, ends, is_connection};
use crate::connections::policy::Fate;
use crate::sockets::inet::address::encode;
use crate::sockets::inet::sort::Sort;
use crate::sockets::inet::{datagrams, ip, more, multicast};
use crate::sockets::message::{set, set_at};
use crate::sockets::options;
use crate::sockets::tcp::options as tcp_options;
use crate::sockets::tcp::rebuild::Rebuild;
use crate::sockets::tcp::repair::{ON, REPAIR};
use crate::sockets::tcp::signature::Keys;
use crate::sockets::tcp::state::LISTEN;

const NEW: i32 = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

fn arrival(cx: &mut dyn RestoreCx) -> Result<Rc<Arrival>> {
    cx.cached(|_| Ok(Arrival::default()))
}

/// Makes it.
pub(crate) fn build(cx: &mut dyn RestoreCx, entry: &pb::InetSkEntry) -> Result<Opened> {
    let key = format!("socket:[{}]", entry.ino);
    if let Some(given) = cx.inherited(key.as_bytes()) {
        let mut program = Program::new();
        let fd = program.fcntl(given, libc::F_DUPFD_CLOEXEC, 0);
        return Ok(Opened::Given(cx.here().run(&program)?.fd(fd)));
    }
    let sort = Sort::of_entry(entry);
    sort.check()?;
    let arrival = arrival(cx)?;
    let (local, remote) = arrival.ends(entry)?;
    let fate = is_connection(entry)
        .then(|| arrival.fate(entry))
        .transpose()?;
    let more = more::Facts::of(cx, entry.id)?;
    if fate == Some(Fate::Reset) {
        // The program has a socket that never was connected, and this one ends as the connection.
        let doomed = make(cx, &sort)?;
        place(cx, doomed, entry, &sort, &more, (local, remote))?;
        arrival.doom(copy_fd(doomed)?);
        let mut program = Program::new();
        program.close(doomed);
        cx.here().run(&program)?;
    }
    let fd = make(cx, &sort)?;
    if matches!(fate, None | Some(Fate::Keep)) {
        place(cx, fd, entry, &sort, &more, (local, remote))?;
    } else {
        let mut program = Program::new();
        program.shutdown(fd, libc::SHUT_RDWR);
        program.tolerate();
        cx.here().run(&program)?;
    }
    let mut program = Program::new();
    if datagrams::waits(cx, entry.id)? {
        datagrams::refill(cx, fd, entry.id)?;
    }
    options::write(&mut program, fd, &entry.opts);
    if let Some(options) = &entry.ip_opts {
        ip::write(&mut program, fd, &sort, options);
    }
    if let Some(options) = &entry.tcp_opts {
        tcp_options::write(&mut program, fd, options);
    }
    if let Some(how @ 1..=3) = entry.shutdown
        && fate.is_none()
    {
        program.shutdown(fd, how - 1);
        // A socket that is not connected is shut all the same.
        program.tolerate();
    }
    cx.here().run(&program)?;
    more::write(cx, fd, &more, false)?;
    multicast::join(cx, fd, &sort, &more.groups)?;
    Ok(Opened::Here(fd))
}

/// Gives it its ends.
fn place(
    cx: &mut dyn RestoreCx,
    fd: i32,
    entry: &pb::InetSkEntry,
    sort: &Sort,
    more: &pb::SocketExtEntry,
    (local, remote): (SocketAddr, SocketAddr),
) -> Result<()> {
    let mut program = Program::new();
    before_bind(&mut program, fd, sort, entry);
    if entry.opts.so_reuseport() || arrival(cx)?.shares_port(entry) {
        set(&mut program, fd, libc::SO_REUSEPORT, 1);
    }
    if is_connection(entry) {
        // From here on the kernel lets it share an address with anybody: `SK_FORCE_REUSE`.
        set_at(&mut program, fd, REPAIR, ON);
    }
    cx.here().run(&program)?;
    more::write(cx, fd, more, true)?;
    let keys = Keys::new(&more.keys, sort.is_v6()).of(&ends(entry)?.1, &remote);
    // Before it listens: who does not sign is not heard.
    keys.give(cx, fd)?;
    bind(cx, fd, sort, entry, &local)?;
    if is_connection(entry) {
        connection(cx, fd, entry, (local, remote), &keys)
    } else {
        connect(cx, fd, entry, &remote)
    }
}

fn make(cx: &mut dyn RestoreCx, sort: &Sort) -> Result<i32> {
    let mut program = Program::new();
    let fd = program.socket(sort.family, sort.kind | NEW, sort.protocol);
    program.tolerate();
    let outcome = cx.here().run(&program)?;
    let failed = |errno| match errno {
        Errno::EACCES if !sort.is_raw() => Error::unsupported(
            "a ping socket, which this user may not make",
            "allow it: sysctl net.ipv4.ping_group_range=\"0 2147483647\"",
        ),
        errno => Error::Kernel {
            call: "socket",
            errno,
        },
    };
    outcome.get(fd).map_err(failed)?;
    Ok(outcome.fd(fd))
}

fn before_bind(program: &mut Program, fd: i32, sort: &Sort, entry: &pb::InetSkEntry) {
    // The number of a raw socket is its protocol: it cannot change any more (`do_ipv6_setsockopt`).
    if let Some(only) = entry.v6only.filter(|_| sort.is_v6() && !sort.is_raw()) {
        set_at(
            program,
            fd,
            (libc::SOL_IPV6, libc::IPV6_V6ONLY),
            only.into(),
        );
    }
    // Others may have the address too; the real value comes last.
    set(program, fd, libc::SO_REUSEADDR, 1);
    let device = entry.ifname.as_ref().or(entry.opts.so_bound_dev.as_ref());
    if let Some(device) = device {
        let length = device.len();
        let device = program.bytes(device.clone());
        program.setsockopt(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device, length);
    }
    ip::before_bind(program, fd, sort);
}

fn bind(
    cx: &mut dyn RestoreCx,
    fd: i32,
    sort: &Sort,
    entry: &pb::InetSkEntry,
    local: &SocketAddr,
) -> Result<()> {
    let is_bound = match sort.is_raw() {
        true => !local.ip().is_unspecified(),
        false => local.port() != 0,
    };
    if !is_bound {
        return Ok(());
    }
    let mut program = Program::new();
    let address = encode(local);
    let length = address.len();
    let address = program.bytes(address);
    let bound = program.bind(fd, address, length);
    program.tolerate();
    let failed = |errno| match errno {
        Errno::EADDRINUSE => Error::unsupported(
            format!("{local} is taken by another program"),
            "end that program, or restore in another network namespace",
        ),
        Errno::EADDRNOTAVAIL => Error::unsupported(
            format!("{} is not an address of this host", local.ip()),
            "give a device that address (ip address add)",
        ),
        errno => Error::Kernel {
            call: "bind",
            errno,
        },
    };
    cx.here().run(&program)?.get(bound).map_err(failed)?;
    if entry.state == LISTEN && sort.is_tcp() {
        let mut program = Program::new();
        let listens = program.listen(fd, entry.backlog);
        program.tolerate();
        cx.here().run(&program)?.get(listens).map_err(failed)?;
    }
    Ok(())
}

/// A datagram socket only remembers where it sends to.
fn connect(
    cx: &mut dyn RestoreCx,
    fd: i32,
    entry: &pb::InetSkEntry,
    remote: &SocketAddr,
) -> Result<()> {
    if entry.dst_port == 0 && remote.ip().is_unspecified() || entry.state == LISTEN {
        return Ok(());
    }
    let mut program = Program::new();
    let address = encode(remote);
    let length = address.len();
    let address = program.bytes(address);
    program.connect(fd, address, length);
    cx.here().run(&program)?;
    Ok(())
}

fn connection(
    cx: &mut dyn RestoreCx,
    fd: i32,
    entry: &pb::InetSkEntry,
    (local, remote): (SocketAddr, SocketAddr),
    keys: &Keys,
) -> Result<()> {
    let stream = cx
        .store()
        .entry::<pb::TcpStreamEntry>(desc::TCP_STREAM, entry.ino)?;
    let rebuild = Rebuild {
        fd,
        state: entry.state,
        local,
        remote,
        entry: &stream.message,
        queues: &stream.extra,
        keys,
    };
    rebuild.run(cx)?;
    // Before 4.0 they were there.
    let mut program = Program::new();
    let old = pb::TcpOptsEntry {
        cork: stream.message.cork,
        nodelay: stream.message.nodelay,
        ..pb::TcpOptsEntry::default()
    };
    tcp_options::write(&mut program, fd, &old);
    cx.here().run(&program)?;
    Ok(())
}

/// What had to wait until all sockets were there.
pub(crate) fn last(cx: &mut dyn RestoreCx, entry: &pb::InetSkEntry, fd: i32) -> Result<Program> {
    let mut program = Program::new();
    let arrival = arrival(cx)?;
    if is_connection(entry) && arrival.fate(entry)? == Fate::Keep {
        arrival.add(copy_fd(fd)?, entry);
        return Ok(program);
    }
    if !entry.opts.reuseaddr() {
        set(&mut program, fd, libc::SO_REUSEADDR, 0);
    }
    if arrival.shares_port(entry) && !entry.opts.so_reuseport() {
        set(&mut program, fd, libc::SO_REUSEPORT, 0);
    }
    Ok(program)
}
