//! Unix sockets without connections: datagrams, whose senders have addresses.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::SockType::Datagram;
use nix::sys::socket::{
    MsgFlags, Shutdown, UnixAddr, bind, connect, getpeername, recvfrom, send, sendto, shutdown,
};
use zdtm::{Case, Child, Result, check, check_eq};

use super::unix_stream::{abstract_name, both, make, name_of, next, tell};

pub(crate) const CASES: &[Case] = &[
    Case::new("unix-dgram", clients),
    Case::new("unix-dgram-queues", queues),
    Case::new("unix-dgram-pair", pair),
    Case::new("unix-dgram-pair-full", pair_full),
    Case::new("unix-dgram-senders", senders),
    Case::new("unix-dgram-sender-gone", sender_gone),
    Case::new("unix-dgram-before-connect", before_connect),
    Case::new("unix-dgram-mutual", mutual),
    Case::new("unix-dgram-self", to_itself),
    Case::new("unix-dgram-chain", chain),
    Case::new("unix-dgram-reconnected", reconnected),
    Case::new("unix-dgram-orphan", orphan),
    Case::new("unix-dgram-deleted", deleted),
    Case::new("unix-dgram-shutdown", shut),
    Case::new("unix-dgram-empty-pair", half_pair),
    Case::new("unix-dgram-crossed", crossed),
];

fn bound(name: &UnixAddr) -> Result<OwnedFd> {
    let socket = make(Datagram)?;
    bind(socket.as_raw_fd(), name)?;
    Ok(socket)
}

fn file(name: &str) -> Result<UnixAddr> {
    Ok(UnixAddr::new(&zdtm::dir().join(name))?)
}

fn hidden(name: &str) -> Result<UnixAddr> {
    abstract_name(name.as_bytes())
}

/// The next message, and from where.
fn heard(socket: &OwnedFd) -> Result<(Vec<u8>, Option<UnixAddr>)> {
    let mut room = vec![0; 1 << 17];
    check!(
        nix::poll::poll(
            &mut [nix::poll::PollFd::new(
                std::os::fd::AsFd::as_fd(socket),
                nix::poll::PollFlags::POLLIN
            )],
            0u8
        )? == 1,
        "nothing waits"
    );
    let (length, from) = recvfrom::<UnixAddr>(socket.as_raw_fd(), &mut room)?;
    room.truncate(length);
    Ok((
        room,
        from.filter(|from| from.path().is_some() || from.as_abstract().is_some()),
    ))
}

/// A server, clients that are connected to it, one by a file and one by an abstract name.
fn clients() -> Result<()> {
    for name in [file("server")?, hidden("server")?] {
        check_eq!(
            getpeername::<UnixAddr>(bound(&name)?.as_raw_fd()),
            Err(Errno::ENOTCONN)
        );
        if let Some(path) = name.path() {
            std::fs::remove_file(path)?;
        }
    }
    let names = [file("server")?, hidden("server")?];
    let mut servers = Vec::new();
    for name in &names {
        let server = bound(name)?;
        let mut clients = Vec::new();
        for index in 0u8..3 {
            let client = make(Datagram)?;
            connect(client.as_raw_fd(), name)?;
            tell(&client, &[index])?;
            clients.push(client);
        }
        servers.push((name, server, clients));
    }
    zdtm::checkpoint()?;
    for (name, server, clients) in &servers {
        check_eq!(name_of(server)?, **name);
        for index in 0u8..3 {
            check_eq!(heard(server)?, (vec![index], None));
        }
        for client in clients {
            check_eq!(getpeername::<UnixAddr>(client.as_raw_fd())?, **name);
            tell(client, b"again")?;
            check_eq!(heard(server)?, (b"again".to_vec(), None));
        }
    }
    Ok(())
}

/// Messages keep their ends.
fn queues() -> Result<()> {
    let (one, other) = both(Datagram)?;
    let large = vec![7; 100_000];
    let parts = [&b"one"[..], b"", &large, b"four"];
    for part in parts {
        tell(&one, part)?;
        tell(&other, part)?;
    }
    zdtm::checkpoint()?;
    for socket in [&one, &other] {
        for part in parts {
            check!(next(socket)? == part);
        }
        check_eq!(next(socket), Err(Errno::EAGAIN));
    }
    Ok(())
}

fn pair() -> Result<()> {
    let (one, other) = both(Datagram)?;
    tell(&one, b"there")?;
    tell(&other, b"back")?;
    zdtm::checkpoint()?;
    check_eq!(next(&other)?, b"there");
    check_eq!(next(&one)?, b"back");
    tell(&one, b"more")?;
    check_eq!(next(&other)?, b"more");
    Ok(())
}

/// More messages than a socket takes from strangers.
fn pair_full() -> Result<()> {
    let (one, other) = both(Datagram)?;
    let mut count = 0u32;
    while send(
        one.as_raw_fd(),
        &count.to_ne_bytes(),
        MsgFlags::MSG_DONTWAIT,
    )
    .is_ok()
    {
        count += 1;
    }
    check!(count > 20, "{count}");
    zdtm::checkpoint()?;
    for index in 0..count {
        check_eq!(next(&other)?, index.to_ne_bytes());
    }
    Ok(())
}

/// Each message says who sent it.
fn senders() -> Result<()> {
    let server = bound(&file("server")?)?;
    let names = [file("one")?, hidden("two")?, file("three")?];
    let clients = names.iter().map(bound).collect::<Result<Vec<_>>>()?;
    for round in 0u8..2 {
        for client in &clients {
            sendto(
                client.as_raw_fd(),
                &[round],
                &file("server")?,
                MsgFlags::empty(),
            )?;
        }
    }
    zdtm::checkpoint()?;
    for round in 0u8..2 {
        for name in &names {
            check_eq!(heard(&server)?, (vec![round], Some(*name)));
        }
    }
    for (client, name) in clients.iter().zip(&names) {
        sendto(server.as_raw_fd(), b"reply", name, MsgFlags::empty())?;
        check_eq!(heard(client)?, (b"reply".to_vec(), Some(file("server")?)));
    }
    Ok(())
}

/// Who sent it has closed the socket, and removed the name.
fn sender_gone() -> Result<()> {
    let server = bound(&file("server")?)?;
    let names = [file("gone")?, hidden("gone")?];
    for name in &names {
        let client = bound(name)?;
        sendto(
            client.as_raw_fd(),
            b"bye",
            &file("server")?,
            MsgFlags::empty(),
        )?;
        if let Some(path) = name.path() {
            std::fs::remove_file(path)?;
        }
    }
    let nobody = make(Datagram)?;
    sendto(
        nobody.as_raw_fd(),
        b"from nobody",
        &file("server")?,
        MsgFlags::empty(),
    )?;
    drop(nobody);
    zdtm::checkpoint()?;
    for name in &names {
        check_eq!(heard(&server)?, (b"bye".to_vec(), Some(*name)));
        check!(name.path().is_none_or(|path| !path.exists()));
    }
    check_eq!(heard(&server)?, (b"from nobody".to_vec(), None));
    bind(make(Datagram)?.as_raw_fd(), &names[1])?;
    Ok(())
}

/// What came from others before it was connected to one waits still; later nobody else may send.
fn before_connect() -> Result<()> {
    let (one, two, three) = (
        bound(&file("one")?)?,
        bound(&file("two")?)?,
        bound(&file("three")?)?,
    );
    sendto(
        three.as_raw_fd(),
        b"early",
        &file("one")?,
        MsgFlags::empty(),
    )?;
    connect(one.as_raw_fd(), &file("two")?)?;
    sendto(
        two.as_raw_fd(),
        b"of the peer",
        &file("one")?,
        MsgFlags::empty(),
    )?;
    zdtm::checkpoint()?;
    check_eq!(heard(&one)?, (b"early".to_vec(), Some(file("three")?)));
    check_eq!(heard(&one)?, (b"of the peer".to_vec(), Some(file("two")?)));
    let sent = sendto(three.as_raw_fd(), b"x", &file("one")?, MsgFlags::empty());
    check_eq!(sent, Err(Errno::EPERM));
    tell(&one, b"out")?;
    check_eq!(heard(&two)?, (b"out".to_vec(), Some(file("one")?)));
    Ok(())
}

/// Two that have names and are connected to each other.
fn mutual() -> Result<()> {
    let (one, two) = (bound(&file("one")?)?, bound(&hidden("two")?)?);
    connect(one.as_raw_fd(), &hidden("two")?)?;
    connect(two.as_raw_fd(), &file("one")?)?;
    for index in 0u8..20 {
        tell(&one, &[index])?;
    }
    zdtm::checkpoint()?;
    for index in 0u8..20 {
        check_eq!(heard(&two)?, (vec![index], Some(file("one")?)));
    }
    tell(&two, b"back")?;
    check_eq!(heard(&one)?, (b"back".to_vec(), Some(hidden("two")?)));
    Ok(())
}

fn to_itself() -> Result<()> {
    let one = bound(&file("one")?)?;
    connect(one.as_raw_fd(), &file("one")?)?;
    tell(&one, b"note")?;
    zdtm::checkpoint()?;
    check_eq!(heard(&one)?, (b"note".to_vec(), Some(file("one")?)));
    tell(&one, b"another")?;
    check_eq!(next(&one)?, b"another");
    Ok(())
}

/// One to two, two to three.
fn chain() -> Result<()> {
    let (one, two, three) = (
        make(Datagram)?,
        bound(&file("two")?)?,
        bound(&file("three")?)?,
    );
    connect(two.as_raw_fd(), &file("three")?)?;
    // Only its peer may send to a socket that has one.
    check_eq!(connect(one.as_raw_fd(), &file("two")?), Err(Errno::EPERM));
    connect(one.as_raw_fd(), &file("three")?)?;
    tell(&one, b"1")?;
    tell(&two, b"2")?;
    zdtm::checkpoint()?;
    check_eq!(heard(&three)?, (b"1".to_vec(), None));
    check_eq!(heard(&three)?, (b"2".to_vec(), Some(file("two")?)));
    check_eq!(getpeername::<UnixAddr>(two.as_raw_fd())?, file("three")?);
    Ok(())
}

/// A pair of which one end has turned to somebody else: the other still is connected to it.
fn reconnected() -> Result<()> {
    let (one, two) = both(Datagram)?;
    let three = bound(&file("three")?)?;
    connect(two.as_raw_fd(), &file("three")?)?;
    tell(&two, b"new friend")?;
    zdtm::checkpoint()?;
    check_eq!(heard(&three)?, (b"new friend".to_vec(), None));
    check!(getpeername::<UnixAddr>(one.as_raw_fd()).is_ok());
    check_eq!(getpeername::<UnixAddr>(two.as_raw_fd())?, file("three")?);
    Ok(())
}

/// Connected to a socket that has gone.
fn orphan() -> Result<()> {
    let server = bound(&file("server")?)?;
    let client = bound(&file("client")?)?;
    connect(client.as_raw_fd(), &file("server")?)?;
    tell(&server, b"").err(); // It has no peer.
    sendto(
        server.as_raw_fd(),
        b"last",
        &file("client")?,
        MsgFlags::empty(),
    )?;
    drop(server);
    std::fs::remove_file(zdtm::dir().join("server"))?;
    zdtm::checkpoint()?;
    check_eq!(heard(&client)?.0, b"last");
    let sent = send(client.as_raw_fd(), b"x", MsgFlags::MSG_NOSIGNAL);
    check_eq!(sent, Err(Errno::ECONNREFUSED));
    // And another one can take its place.
    let server = bound(&file("server")?)?;
    connect(client.as_raw_fd(), &file("server")?)?;
    tell(&client, b"hello")?;
    check_eq!(heard(&server)?, (b"hello".to_vec(), Some(file("client")?)));
    Ok(())
}

/// The name has gone; what waits is there, and who is connected still reaches it.
fn deleted() -> Result<()> {
    let server = bound(&file("server")?)?;
    let client = make(Datagram)?;
    connect(client.as_raw_fd(), &file("server")?)?;
    tell(&client, b"before")?;
    std::fs::remove_file(zdtm::dir().join("server"))?;
    zdtm::checkpoint()?;
    check!(!zdtm::dir().join("server").exists());
    check_eq!(name_of(&server)?, file("server")?);
    check_eq!(next(&server)?, b"before");
    tell(&client, b"after")?;
    check_eq!(next(&server)?, b"after");
    Ok(())
}

fn shut() -> Result<()> {
    let (one, other) = both(Datagram)?;
    tell(&one, b"before")?;
    shutdown(one.as_raw_fd(), Shutdown::Write)?;
    zdtm::checkpoint()?;
    check_eq!(
        send(one.as_raw_fd(), b"x", MsgFlags::MSG_NOSIGNAL),
        Err(Errno::EPIPE)
    );
    check_eq!(next(&other)?, b"before");
    tell(&other, b"this way")?;
    check_eq!(next(&one)?, b"this way");
    Ok(())
}

/// The other end of a pair is closed.
fn half_pair() -> Result<()> {
    let (one, other) = both(Datagram)?;
    tell(&other, b"the last words")?;
    drop(other);
    zdtm::checkpoint()?;
    check_eq!(next(&one)?, b"the last words");
    check!(send(one.as_raw_fd(), b"x", MsgFlags::MSG_NOSIGNAL).is_err());
    Ok(())
}

/// A server and its clients are different processes.
fn crossed() -> Result<()> {
    let server = bound(&file("server")?)?;
    let children = (0u8..3)
        .map(|index| {
            let ours = server.as_raw_fd();
            Child::spawn(format!("client {index}"), move || {
                nix::unistd::close(ours)?;
                let own = bound(&file(&format!("client{index}"))?)?;
                connect(own.as_raw_fd(), &file("server")?)?;
                tell(&own, &[index])?;
                Child::checkpoint();
                tell(&own, &[10 + index])?;
                Ok(())
            })
        })
        .collect::<Result<Vec<_>>>()?;
    zdtm::checkpoint()?;
    let from = |index: u8| file(&format!("client{index}"));
    for index in 0u8..3 {
        check_eq!(heard(&server)?, (vec![index], Some(from(index)?)));
    }
    for (index, child) in (0u8..).zip(children) {
        child.finish()?;
        check_eq!(heard(&server)?, (vec![10 + index], Some(from(index)?)));
    }
    Ok(())
}
