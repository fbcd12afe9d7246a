//! Unix sockets with connections: streams, and packets in sequence.
// tidy: long: one table of cases, which share their ways to connect

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::SockType::{SeqPacket, Stream};
use nix::sys::socket::sockopt::AcceptConn;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, accept, bind,
    connect, getpeername, getsockname, getsockopt, listen, recv, send, shutdown, socket,
    socketpair,
};
use zdtm::{Case, Child, Result, check, check_eq, fill, verify};

pub(crate) const CASES: &[Case] = &[
    Case::new("unix-pair", || pair(Stream)),
    Case::new("unix-pair-seqpacket", || pair(SeqPacket)),
    Case::new("unix-large-queue", large),
    Case::new("unix-boundaries", boundaries),
    Case::new("unix-shutdown", || half_closed(Stream)),
    Case::new("unix-shutdown-seqpacket", || half_closed(SeqPacket)),
    Case::new("unix-closed-end", || closed_end(Stream)),
    Case::new("unix-closed-end-seqpacket", || closed_end(SeqPacket)),
    Case::new("unix-shutdown-mismatch", mismatch),
    Case::new("unix-crossed", crossed),
    Case::new("unix-connected", || connected(Stream, false)),
    Case::new("unix-connected-seqpacket", || connected(SeqPacket, false)),
    Case::new("unix-connected-deleted", || connected(Stream, true)),
    Case::new("unix-accepted-names", accepted_names),
    Case::new("unix-listener-closed", listener_closed),
    Case::new("unix-accepted-client-closed", client_closed),
    Case::new("unix-abstract", abstract_names),
    Case::new("unix-unconnected", || unconnected(Stream)),
    Case::new("unix-unconnected-seqpacket", || unconnected(SeqPacket)),
    Case::new("unix-pending", || pending(Stream)),
    Case::new("unix-pending-seqpacket", || pending(SeqPacket)),
    Case::new("unix-pending-data", pending_data)
        .refused("nobody can look into a connection before it is accepted"),
    Case::new("unix-pending-closed", pending_closed)
        .refused("nobody can look into a connection before it is accepted"),
    Case::new("unix-relative", || relative(Stream)),
    Case::new("unix-relative-seqpacket", || relative(SeqPacket)),
    Case::new("unix-permissions", permissions),
    Case::new("unix-deleted-twins", || deleted_twins(Stream)),
    Case::new("unix-deleted-twins-seqpacket", || deleted_twins(SeqPacket)),
    Case::new("unix-directory-removed", directory_removed),
    Case::new("unix-out-of-band", urgent).refused("where the byte was cannot be found out"),
    Case::new("unix-ring", ring).restless(),
    Case::new("unix-server", server)
        .restless()
        .refused("nobody can look into a connection before it is accepted"),
    Case::new("unix-many", many),
];

pub(crate) fn make(kind: SockType) -> Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, kind, SockFlag::empty(), None)?)
}

/// A name that no other case has: all share the network namespace.
pub(crate) fn abstract_name(name: &[u8]) -> Result<UnixAddr> {
    use std::os::unix::fs::MetadataExt;
    let unique = format!("zdtm-{}-", zdtm::dir().metadata()?.ino());
    Ok(UnixAddr::new_abstract(&[unique.as_bytes(), name].concat())?)
}

pub(crate) fn both(kind: SockType) -> Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        kind,
        None,
        SockFlag::empty(),
    )?)
}

pub(crate) fn tell(socket: &impl AsRawFd, text: &[u8]) -> Result<()> {
    check_eq!(
        send(socket.as_raw_fd(), text, MsgFlags::MSG_NOSIGNAL)?,
        text.len()
    );
    Ok(())
}

/// What comes next, without waiting.
pub(crate) fn next(socket: &impl AsRawFd) -> Result<Vec<u8>, Errno> {
    let mut room = vec![0; 1 << 20];
    let length = recv(socket.as_raw_fd(), &mut room, MsgFlags::MSG_DONTWAIT)?;
    room.truncate(length);
    Ok(room)
}

pub(crate) fn listening(kind: SockType, name: &UnixAddr, backlog: i32) -> Result<OwnedFd> {
    let server = make(kind)?;
    bind(server.as_raw_fd(), name)?;
    listen(&server, Backlog::new(backlog)?)?;
    Ok(server)
}

pub(crate) fn client(kind: SockType, name: &UnixAddr) -> Result<OwnedFd> {
    let client = make(kind)?;
    connect(client.as_raw_fd(), name)?;
    Ok(client)
}

pub(crate) fn accepted(server: &OwnedFd) -> Result<OwnedFd> {
    // SAFETY: accept(2) has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(accept(server.as_raw_fd())?) })
}

pub(crate) fn name_of(socket: &OwnedFd) -> Result<UnixAddr> {
    Ok(getsockname(socket.as_raw_fd())?)
}

fn peer_of(socket: &OwnedFd) -> Result<UnixAddr> {
    Ok(getpeername(socket.as_raw_fd())?)
}

/// Whether a new client is served.
fn serves(server: &OwnedFd, kind: SockType, name: &UnixAddr) -> Result<()> {
    let client = client(kind, name)?;
    let served = accepted(server)?;
    tell(&client, b"new")?;
    check_eq!(next(&served)?, b"new");
    Ok(())
}

/// Data waits in both directions; more can follow.
fn pair(kind: SockType) -> Result<()> {
    let (one, other) = both(kind)?;
    fcntl(&other, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    tell(&one, b"there")?;
    tell(&other, b"and back")?;
    zdtm::checkpoint()?;
    check_eq!(next(&other)?, b"there");
    check_eq!(next(&one)?, b"and back");
    check_eq!(next(&one), Err(Errno::EAGAIN));
    check_eq!(
        recv(other.as_raw_fd(), &mut [0; 1], MsgFlags::empty()),
        Err(Errno::EAGAIN)
    );
    check_eq!(fcntl(&one, FcntlArg::F_GETFL)? & libc::O_NONBLOCK, 0);
    tell(&one, b"later")?;
    check_eq!(next(&other)?, b"later");
    drop(one);
    check_eq!(next(&other)?, b"");
    Ok(())
}

/// As much as fits.
fn large() -> Result<()> {
    let (one, other) = both(Stream)?;
    let mut bytes = vec![0; 1 << 20];
    fill(&mut bytes, 9);
    let mut sent = 0;
    loop {
        match send(
            one.as_raw_fd(),
            &bytes[sent..sent + 3000],
            MsgFlags::MSG_DONTWAIT,
        ) {
            Ok(count) => sent += count,
            Err(Errno::EAGAIN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    check!(sent > 100_000, "{sent}");
    zdtm::checkpoint()?;
    let mut found = Vec::new();
    loop {
        match next(&other) {
            Ok(some) => found.extend(some),
            Err(Errno::EAGAIN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    check_eq!(found.len(), sent);
    verify(&found[..sent & !7], 9)
}

/// Packets keep their ends, also those of no bytes.
fn boundaries() -> Result<()> {
    let (one, other) = both(SeqPacket)?;
    let parts = [&b"first"[..], b"", b"third, and longer", b"4"];
    for part in parts {
        tell(&one, part)?;
    }
    zdtm::checkpoint()?;
    for part in parts {
        check_eq!(next(&other)?, part);
    }
    check_eq!(next(&other), Err(Errno::EAGAIN));
    Ok(())
}

fn half_closed(kind: SockType) -> Result<()> {
    let mut pairs = Vec::new();
    for how in [Shutdown::Write, Shutdown::Read, Shutdown::Both] {
        let (one, other) = both(kind)?;
        tell(&one, b"before")?;
        tell(&other, b"before")?;
        shutdown(one.as_raw_fd(), how)?;
        pairs.push((one, other, how));
    }
    zdtm::checkpoint()?;
    for (one, other, how) in &pairs {
        let no_write = *how != Shutdown::Read;
        let no_read = *how != Shutdown::Write;
        check_eq!(next(other)?, b"before");
        check_eq!(next(one)?, b"before");
        let end = |closed| {
            if closed {
                Ok(Vec::new())
            } else {
                Err(Errno::EAGAIN)
            }
        };
        check_eq!(next(other), end(no_write), "{how:?}");
        check_eq!(next(one), end(no_read), "{how:?}");
        let result = |closed| if closed { Err(Errno::EPIPE) } else { Ok(1) };
        let flags = MsgFlags::MSG_NOSIGNAL;
        check_eq!(
            send(one.as_raw_fd(), b"x", flags),
            result(no_write),
            "{how:?}"
        );
        check_eq!(
            send(other.as_raw_fd(), b"x", flags),
            result(no_read),
            "{how:?}"
        );
    }
    Ok(())
}

/// The other end is closed, and had sent something.
fn closed_end(kind: SockType) -> Result<()> {
    let (one, other) = both(kind)?;
    tell(&other, b"the last words")?;
    drop(other);
    zdtm::checkpoint()?;
    check_eq!(next(&one)?, b"the last words");
    check_eq!(next(&one)?, b"");
    check_eq!(
        send(one.as_raw_fd(), b"x", MsgFlags::MSG_NOSIGNAL),
        Err(Errno::EPIPE)
    );
    Ok(())
}

/// Shut down before it was connected: the other end knows nothing of that, but sees it.
fn mismatch() -> Result<()> {
    let name = UnixAddr::new("mismatch")?;
    let server = listening(Stream, &name, 1)?;
    let one = make(Stream)?;
    shutdown(one.as_raw_fd(), Shutdown::Write)?;
    connect(one.as_raw_fd(), &name)?;
    let other = accepted(&server)?;
    zdtm::checkpoint()?;
    check_eq!(
        send(one.as_raw_fd(), b"x", MsgFlags::MSG_NOSIGNAL),
        Err(Errno::EPIPE)
    );
    tell(&other, b"this way")?;
    check_eq!(next(&one)?, b"this way");
    Ok(())
}

/// Each of two processes has one end.
fn crossed() -> Result<()> {
    let (one, other) = both(Stream)?;
    let ours = one.as_raw_fd();
    tell(&one, b"first ")?;
    let child = Child::spawn("child", move || {
        nix::unistd::close(ours)?;
        Child::checkpoint();
        let mut room = [0; 64];
        let length = recv(other.as_raw_fd(), &mut room, MsgFlags::MSG_WAITALL)?;
        check_eq!(&room[..length], b"first and second");
        tell(&other, b"understood")?;
        Ok(())
    })?;
    zdtm::checkpoint()?;
    tell(&one, b"and second")?;
    shutdown(one.as_raw_fd(), Shutdown::Write)?;
    nix::sys::signal::kill(child.pid(), nix::sys::signal::SIGTERM)?;
    let mut room = [0; 64];
    check_eq!(recv(one.as_raw_fd(), &mut room, MsgFlags::empty())?, 10);
    check_eq!(recv(one.as_raw_fd(), &mut room, MsgFlags::empty())?, 0);
    child.join()
}

/// A listening socket, a client, and what was accepted.
fn connected(kind: SockType, deleted: bool) -> Result<()> {
    let path = zdtm::dir().join("server");
    let name = UnixAddr::new(&path)?;
    let server = listening(kind, &name, 5)?;
    let one = client(kind, &name)?;
    let other = accepted(&server)?;
    tell(&one, b"to the server")?;
    tell(&other, b"to the client")?;
    if deleted {
        std::fs::remove_file(&path)?;
    }
    zdtm::checkpoint()?;
    check_eq!(path.exists(), !deleted);
    check_eq!(next(&other)?, b"to the server");
    check_eq!(next(&one)?, b"to the client");
    check_eq!(name_of(&server)?, name);
    if !deleted {
        serves(&server, kind, &name)?;
    }
    Ok(())
}

/// What was accepted has the name of the listening socket, and a client sees it.
fn accepted_names() -> Result<()> {
    let name = UnixAddr::new(&zdtm::dir().join("server"))?;
    let own = UnixAddr::new(&zdtm::dir().join("client"))?;
    let server = listening(Stream, &name, 5)?;
    let one = make(Stream)?;
    bind(one.as_raw_fd(), &own)?;
    connect(one.as_raw_fd(), &name)?;
    let other = accepted(&server)?;
    zdtm::checkpoint()?;
    for (socket, own, far) in [(&one, own, name), (&other, name, own)] {
        check_eq!(name_of(socket)?, own);
        check_eq!(peer_of(socket)?, far);
    }
    Ok(())
}

/// The listening socket is closed, the connection goes on and has its names; the file lies there.
fn listener_closed() -> Result<()> {
    let path = zdtm::dir().join("server");
    let name = UnixAddr::new(&path)?;
    let server = listening(Stream, &name, 5)?;
    let one = client(Stream, &name)?;
    let other = accepted(&server)?;
    drop(server);
    zdtm::checkpoint()?;
    check!(path.exists());
    check_eq!(name_of(&other)?, name);
    check_eq!(peer_of(&one)?, name);
    tell(&one, b"still")?;
    check_eq!(next(&other)?, b"still");
    check_eq!(client(Stream, &name).is_err(), true, "nobody listens");
    Ok(())
}

/// What was accepted is left alone.
fn client_closed() -> Result<()> {
    let name = UnixAddr::new(&zdtm::dir().join("server"))?;
    let server = listening(Stream, &name, 5)?;
    let one = client(Stream, &name)?;
    let other = accepted(&server)?;
    tell(&one, b"bye")?;
    drop(one);
    zdtm::checkpoint()?;
    check_eq!(name_of(&other)?, name);
    check_eq!(next(&other)?, b"bye");
    check_eq!(next(&other)?, b"");
    serves(&server, Stream, &name)
}

/// Names that no file has, with any bytes.
fn abstract_names() -> Result<()> {
    let mut servers = Vec::new();
    for name in [&b"plain"[..], b"with\0zeros\0", b"\xff\xfe\n", &[b'x'; 80]] {
        let name = abstract_name(name)?;
        let server = listening(Stream, &name, 3)?;
        let one = client(Stream, &name)?;
        let other = accepted(&server)?;
        tell(&one, b"hello")?;
        servers.push((name, server, one, other));
    }
    zdtm::checkpoint()?;
    for (name, server, one, other) in &servers {
        check_eq!(name_of(server)?, *name);
        check_eq!(name_of(other)?, *name);
        check_eq!(peer_of(one)?, *name);
        check_eq!(next(other)?, b"hello");
        serves(server, Stream, name)?;
    }
    Ok(())
}

/// Neither connected nor listening; bound, and not.
fn unconnected(kind: SockType) -> Result<()> {
    let name = UnixAddr::new(&zdtm::dir().join("bound"))?;
    let (bare, bound) = (make(kind)?, make(kind)?);
    bind(bound.as_raw_fd(), &name)?;
    zdtm::checkpoint()?;
    check_eq!(name_of(&bound)?, name);
    check_eq!(
        getpeername::<UnixAddr>(bare.as_raw_fd()),
        Err(Errno::ENOTCONN)
    );
    listen(&bound, Backlog::new(1)?)?;
    connect(bare.as_raw_fd(), &name)?;
    let other = accepted(&bound)?;
    tell(&bare, b"now")?;
    check_eq!(next(&other)?, b"now");
    Ok(())
}

/// Three connections that nobody has accepted, in their order; more may come.
fn pending(kind: SockType) -> Result<()> {
    let name = UnixAddr::new(&zdtm::dir().join("server"))?;
    let server = listening(kind, &name, 3)?;
    let clients = (0..3)
        .map(|_| client(kind, &name))
        .collect::<Result<Vec<_>>>()?;
    zdtm::checkpoint()?;
    for (index, client) in (0u8..).zip(&clients) {
        tell(client, &[index])?;
    }
    for index in 0u8..3 {
        let other = accepted(&server)?;
        check_eq!(next(&other)?, [index]);
        check_eq!(name_of(&other)?, name);
        tell(&other, b"welcome")?;
    }
    for client in &clients {
        check_eq!(next(client)?, b"welcome");
    }
    serves(&server, kind, &name)
}

fn pending_data() -> Result<()> {
    let name = UnixAddr::new(&zdtm::dir().join("server"))?;
    let server = listening(Stream, &name, 3)?;
    let one = client(Stream, &name)?;
    tell(&one, b"early")?;
    zdtm::checkpoint()?;
    let other = accepted(&server)?;
    check_eq!(next(&other)?, b"early");
    tell(&other, b"seen")?;
    check_eq!(next(&one)?, b"seen");
    Ok(())
}

fn pending_closed() -> Result<()> {
    let name = UnixAddr::new(&zdtm::dir().join("server"))?;
    let server = listening(Stream, &name, 3)?;
    let one = client(Stream, &name)?;
    tell(&one, b"and gone")?;
    drop(one);
    zdtm::checkpoint()?;
    let other = accepted(&server)?;
    check_eq!(next(&other)?, b"and gone");
    check_eq!(next(&other)?, b"");
    Ok(())
}

/// Names that depend on the working directory of then.
fn relative(kind: SockType) -> Result<()> {
    let (first, second) = (zdtm::dir().join("first"), zdtm::dir().join("second"));
    let name = UnixAddr::new("below/sock")?;
    let mut servers = Vec::new();
    for dir in [&first, &second] {
        std::fs::create_dir_all(dir.join("below"))?;
        std::env::set_current_dir(dir)?;
        let server = listening(kind, &name, 3)?;
        let one = client(kind, &name)?;
        let other = accepted(&server)?;
        tell(&one, dir.as_os_str().as_encoded_bytes())?;
        servers.push((dir, server, one, other));
    }
    std::env::set_current_dir("/")?;
    zdtm::checkpoint()?;
    for (dir, server, one, other) in &servers {
        check_eq!(name_of(server)?, name);
        check_eq!(peer_of(one)?, name);
        check_eq!(next(other)?, dir.as_os_str().as_encoded_bytes());
        std::env::set_current_dir(dir)?;
        serves(server, kind, &name)?;
    }
    Ok(())
}

/// Whose the file is, and who may connect.
fn permissions() -> Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let path = zdtm::dir().join("server");
    let server = listening(Stream, &UnixAddr::new(&path)?, 3)?;
    chown(&path, Some(12), Some(34))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o1640))?;
    zdtm::checkpoint()?;
    let file = path.metadata()?;
    check_eq!(
        (file.uid(), file.gid(), file.mode() & 0o7777),
        (12, 34, 0o1640)
    );
    drop(server);
    Ok(())
}

/// Sockets whose name has gone, and one that has the same name now.
fn deleted_twins(kind: SockType) -> Result<()> {
    let path = zdtm::dir().join("server");
    let name = UnixAddr::new(&path)?;
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(listening(kind, &name, 3)?);
        std::fs::remove_file(&path)?;
    }
    let last = listening(kind, &name, 3)?;
    zdtm::checkpoint()?;
    for server in &servers {
        check_eq!(name_of(server)?, name);
        // It listens: what does not, has no backlog to wait for.
        let mut asked = [PollFd::new(server.as_fd(), PollFlags::POLLIN)];
        check_eq!(poll(&mut asked, 0u8)?, 0);
        check_eq!(getsockopt(server, AcceptConn)?, true);
    }
    serves(&last, kind, &name)
}

/// The directory of the name has gone too, and nothing of it is there afterwards.
fn directory_removed() -> Result<()> {
    let dir = zdtm::dir().join("a/b");
    std::fs::create_dir_all(&dir)?;
    let path = dir.join("server");
    let name = UnixAddr::new(&path)?;
    let server = listening(Stream, &name, 3)?;
    let one = client(Stream, &name)?;
    let other = accepted(&server)?;
    let waits = client(Stream, &name)?;
    std::fs::remove_dir_all(zdtm::dir().join("a"))?;
    zdtm::checkpoint()?;
    check!(!Path::exists(&zdtm::dir().join("a")));
    check_eq!(name_of(&server)?, name);
    check_eq!(name_of(&other)?, name);
    tell(&one, b"on")?;
    check_eq!(next(&other)?, b"on");
    let accepted = accepted(&server)?;
    tell(&waits, b"at last")?;
    check_eq!(next(&accepted)?, b"at last");
    Ok(())
}

fn urgent() -> Result<()> {
    let (one, other) = both(Stream)?;
    tell(&one, b"be")?;
    if send(one.as_raw_fd(), b"!", MsgFlags::MSG_OOB).is_err() {
        return zdtm::skip("no CONFIG_AF_UNIX_OOB");
    }
    tell(&one, b"fore")?;
    zdtm::checkpoint()?;
    let mut byte = [0; 1];
    check_eq!(recv(other.as_raw_fd(), &mut byte, MsgFlags::MSG_OOB)?, 1);
    check_eq!(&byte, b"!");
    Ok(())
}

/// A token goes round ten processes all the while.
fn ring() -> Result<()> {
    const LENGTH: u64 = 10;
    let (first_in, first_out) = both(Stream)?;
    let mut previous = first_in;
    let mut children = Vec::new();
    for index in 1..LENGTH {
        let (next, out) = both(Stream)?;
        let mine = previous;
        let other = [first_out.as_raw_fd(), next.as_raw_fd()];
        children.push(Child::spawn(format!("member {index}"), || {
            for fd in other {
                nix::unistd::close(fd)?;
            }
            Child::set_up();
            let mut word = [0; 8];
            while recv(mine.as_raw_fd(), &mut word, MsgFlags::MSG_WAITALL)? == 8 {
                tell(&out, &(u64::from_ne_bytes(word) + 1).to_ne_bytes())?;
            }
            Ok(())
        })?);
        previous = next;
    }
    zdtm::ready()?;
    let (mut rounds, mut word) = (0u64, [0; 8]);
    while !zdtm::over() {
        tell(&first_out, &word)?;
        check_eq!(
            recv(previous.as_raw_fd(), &mut word, MsgFlags::MSG_WAITALL)?,
            8
        );
        rounds += 1;
        check_eq!(u64::from_ne_bytes(word), rounds * (LENGTH - 1));
    }
    drop(first_out);
    children.into_iter().try_for_each(Child::join)
}

/// A server, and clients that connect, ask and leave all the while.
fn server() -> Result<()> {
    let name = UnixAddr::new(&zdtm::dir().join("server"))?;
    let server = listening(Stream, &name, 16)?;
    let children = (0u8..4)
        .map(|index| {
            Child::spawn(format!("client {index}"), move || {
                Child::set_up();
                let mut bytes = vec![index; 3000];
                while !zdtm::over() {
                    let client = client(Stream, &name)?;
                    tell(&client, &bytes)?;
                    shutdown(client.as_raw_fd(), Shutdown::Write)?;
                    let mut room = [0; 8];
                    check_eq!(
                        recv(client.as_raw_fd(), &mut room, MsgFlags::MSG_WAITALL)?,
                        8
                    );
                    let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
                    check_eq!(u64::from_ne_bytes(room), sum);
                    bytes.rotate_left(1);
                    bytes[0] = bytes[0].wrapping_add(1);
                }
                Ok(())
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let serve = |server: &OwnedFd| {
        let one = accepted(server)?;
        let (mut sum, mut room) = (0u64, [0; 700]);
        loop {
            let length = recv(one.as_raw_fd(), &mut room, MsgFlags::empty())?;
            if length == 0 {
                break;
            }
            sum += room[..length]
                .iter()
                .map(|byte| u64::from(*byte))
                .sum::<u64>();
        }
        tell(&one, &sum.to_ne_bytes())
    };
    zdtm::ready()?;
    while !zdtm::over() {
        serve(&server)?;
    }
    for child in &children {
        nix::sys::signal::kill(child.pid(), nix::sys::signal::SIGTERM)?;
    }
    // They may still have a question.
    fcntl(&server, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    for child in children {
        use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        while waitid(Id::Pid(child.pid()), flags)? == WaitStatus::StillAlive {
            match serve(&server) {
                Err(error) if error.downcast_ref() == Some(&Errno::EAGAIN) => {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                other => other?,
            }
        }
        child.join()?;
    }
    Ok(())
}

fn many() -> Result<()> {
    let mut pairs = Vec::new();
    for index in 0..200u32 {
        let (one, other) = both(Stream)?;
        tell(&one, &index.to_ne_bytes())?;
        pairs.push((one, other));
    }
    zdtm::checkpoint()?;
    for (index, (_, other)) in (0u32..).zip(&pairs) {
        check_eq!(next(&other.as_fd())?, index.to_ne_bytes());
    }
    Ok(())
}
