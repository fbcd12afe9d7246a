//! Descriptors on their way through a socket: `SCM_RIGHTS`.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::SockType::{Datagram, SeqPacket, Stream};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockType, recvmsg, sendmsg};
use zdtm::{Case, Child, Result, check, check_eq};

use super::unix_stream::{both, next, tell};

pub(crate) const CASES: &[Case] = &[
    Case::new("scm-pipe-end", || pipe_end(Stream)),
    Case::new("scm-pipe-end-dgram", || pipe_end(Datagram)),
    Case::new("scm-pipe-kept", pipe_kept),
    Case::new("scm-pipe-ends", pipe_ends),
    Case::new("scm-sender-closed", sender_closed),
    Case::new("scm-files", files),
    Case::new("scm-socket-in-socket", || nested(Stream)),
    Case::new("scm-socket-in-socket-seqpacket", || nested(SeqPacket)),
    Case::new("scm-messages", messages),
    Case::new("scm-epoll", epoll),
    Case::new("scm-looped", looped),
    Case::new("scm-own-end", own_end),
    Case::new("scm-bytes-before", bytes_before),
    Case::new("scm-many", many),
    Case::new("scm-crossed", crossed),
];

fn give(socket: &impl AsRawFd, text: &[u8], fds: &[i32]) -> Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let text = [IoSlice::new(text)];
    sendmsg::<()>(socket.as_raw_fd(), &text, &rights, MsgFlags::empty(), None)?;
    Ok(())
}

/// The next message of at most `length` bytes, and what came with it.
fn get(socket: &impl AsRawFd, length: usize) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; length];
    let mut room = [IoSliceMut::new(&mut bytes)];
    let mut control = vec![0; 4096];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut room, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for one in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(got) = one {
            // SAFETY: recvmsg(2) has just made them.
            fds.extend(
                got.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    let count = message.bytes;
    bytes.truncate(count);
    Ok((bytes, fds))
}

fn one(mut fds: Vec<OwnedFd>) -> Result<OwnedFd> {
    check_eq!(fds.len(), 1);
    Ok(fds.remove(0))
}

/// Says something at one end of a pipe, hears it at the other.
fn talk(reader: OwnedFd, writer: OwnedFd) -> Result<()> {
    let (mut reader, mut writer) = (File::from(reader), File::from(writer));
    writer.write_all(b"through the pipe")?;
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text)?;
    check_eq!(text, "through the pipe");
    Ok(())
}

/// The writing end is on its way, and nowhere else.
fn pipe_end(kind: SockType) -> Result<()> {
    let (here, there) = both(kind)?;
    let (reader, writer) = nix::unistd::pipe()?;
    give(&here, b"x", &[writer.as_raw_fd()])?;
    drop(writer);
    zdtm::checkpoint()?;
    let (text, fds) = get(&there, 10)?;
    check_eq!(text, b"x");
    talk(reader, one(fds)?)
}

/// It is still open here too.
fn pipe_kept() -> Result<()> {
    let (here, there) = both(Stream)?;
    let (reader, writer) = nix::unistd::pipe()?;
    give(&here, b"x", &[writer.as_raw_fd()])?;
    zdtm::checkpoint()?;
    let got = one(get(&there, 10)?.1)?;
    nix::unistd::write(&writer, b"both ")?;
    nix::unistd::write(&got, b"ways")?;
    drop(writer);
    let mut room = [0; 32];
    check_eq!(nix::unistd::read(&reader, &mut room)?, 9);
    check_eq!(&room[..9], b"both ways");
    drop(got);
    check_eq!(nix::unistd::read(&reader, &mut room)?, 0);
    Ok(())
}

/// Both ends, with something in the pipe; nobody has it open.
fn pipe_ends() -> Result<()> {
    let (here, there) = both(Stream)?;
    let (reader, writer) = nix::unistd::pipe()?;
    nix::unistd::write(&writer, b"(inside) ")?;
    give(&here, b"both", &[reader.as_raw_fd(), writer.as_raw_fd()])?;
    drop((reader, writer));
    zdtm::checkpoint()?;
    let (text, mut fds) = get(&there, 10)?;
    check_eq!((text, fds.len()), (b"both".to_vec(), 2));
    let (writer, reader) = (fds.remove(1), fds.remove(0));
    let mut room = [0; 9];
    check_eq!(nix::unistd::read(&reader, &mut room)?, 9);
    check_eq!(&room, b"(inside) ");
    talk(reader, writer)
}

fn sender_closed() -> Result<()> {
    let (here, there) = both(Stream)?;
    let (reader, writer) = nix::unistd::pipe()?;
    give(&here, b"x", &[writer.as_raw_fd()])?;
    drop((writer, here));
    zdtm::checkpoint()?;
    let (_, fds) = get(&there, 10)?;
    check_eq!(next(&there)?, b"");
    talk(reader, one(fds)?)
}

/// A regular file in its middle, a removed one, a memfd: opened by nobody else.
fn files() -> Result<()> {
    let (here, there) = both(SeqPacket)?;
    let mut named = File::create_new(zdtm::dir().join("named"))?;
    named.write_all(b"content")?;
    let mut removed = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(zdtm::dir().join("removed"))?;
    removed.write_all(b"kept")?;
    std::fs::remove_file(zdtm::dir().join("removed"))?;
    let flags = nix::sys::memfd::MFdFlags::empty();
    let mut memory = File::from(nix::sys::memfd::memfd_create("in flight", flags)?);
    memory.write_all(b"memory")?;
    for file in [&named, &removed, &memory] {
        give(&here, b"file", &[file.as_raw_fd()])?;
    }
    drop((named, removed, memory));
    zdtm::checkpoint()?;
    for (text, position) in [("", 7), ("kept", 4), ("memory", 6)] {
        let mut file = File::from(one(get(&there, 10)?.1)?);
        check_eq!(file.stream_position()?, position);
        if !text.is_empty() {
            file.rewind()?;
            let mut found = String::new();
            file.read_to_string(&mut found)?;
            check_eq!(found, text);
        }
    }
    Ok(())
}

/// A socket in which a socket waits, in which a pipe waits.
fn nested(kind: SockType) -> Result<()> {
    let (here, there) = both(kind)?;
    let (inner_here, inner_there) = both(kind)?;
    let (reader, writer) = nix::unistd::pipe()?;
    give(&inner_here, b"inner", &[writer.as_raw_fd()])?;
    give(&here, b"outer", &[inner_there.as_raw_fd()])?;
    drop((writer, inner_here, inner_there));
    zdtm::checkpoint()?;
    let (text, fds) = get(&there, 10)?;
    check_eq!(text, b"outer");
    let (text, fds) = get(&one(fds)?, 10)?;
    check_eq!(text, b"inner");
    talk(reader, one(fds)?)
}

/// Each message has its own.
fn messages() -> Result<()> {
    let (here, there) = both(Stream)?;
    let (reader, writer) = nix::unistd::pipe()?;
    tell(&here, b"0")?;
    give(&here, b"1", &[reader.as_raw_fd()])?;
    give(&here, b"2", &[writer.as_raw_fd()])?;
    drop((reader, writer));
    zdtm::checkpoint()?;
    check_eq!(get(&there, 1)?.1.len(), 0);
    let (text, reader) = get(&there, 10)?;
    check_eq!(text, b"1");
    let (text, writer) = get(&there, 10)?;
    check_eq!(text, b"2");
    talk(one(reader)?, one(writer)?)
}

/// An epoll set that watches a pipe.
fn epoll() -> Result<()> {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
    let (here, there) = both(Stream)?;
    let (reader, writer) = nix::unistd::pipe()?;
    let set = Epoll::new(EpollCreateFlags::empty())?;
    set.add(&reader, EpollEvent::new(EpollFlags::EPOLLIN, 77))?;
    give(&here, b"x", &[set.0.as_raw_fd()])?;
    drop(set);
    zdtm::checkpoint()?;
    let set = Epoll(one(get(&there, 10)?.1)?);
    let mut events = [EpollEvent::empty(); 4];
    check_eq!(set.wait(&mut events, EpollTimeout::ZERO)?, 0);
    nix::unistd::write(&writer, b"x")?;
    check_eq!(set.wait(&mut events, EpollTimeout::ZERO)?, 1);
    check_eq!(events[0].data(), 77);
    Ok(())
}

/// Each end of two pairs waits in the other pair.
fn looped() -> Result<()> {
    let (one_here, one_there) = both(Datagram)?;
    let (two_here, two_there) = both(Datagram)?;
    give(&one_here, b"two", &[two_there.as_raw_fd()])?;
    give(&two_here, b"one", &[one_there.as_raw_fd()])?;
    tell(&two_here, b"hello")?;
    drop(two_there);
    zdtm::checkpoint()?;
    let (text, fds) = get(&one_there, 10)?;
    check_eq!(text, b"two");
    let two_there = one(fds)?;
    let (text, fds) = get(&two_there, 10)?;
    check_eq!(text, b"one");
    let again = one(fds)?;
    check_eq!(next(&two_there)?, b"hello");
    tell(&one_here, b"to both")?;
    check_eq!(next(&again)?, b"to both");
    check_eq!(next(&one_there), Err(Errno::EAGAIN));
    Ok(())
}

/// A socket that waits in itself.
fn own_end() -> Result<()> {
    let (here, there) = both(Stream)?;
    give(&here, b"yourself", &[there.as_raw_fd()])?;
    tell(&here, b"!")?;
    zdtm::checkpoint()?;
    let (text, fds) = get(&there, 8)?;
    check_eq!(text, b"yourself");
    check_eq!(next(&one(fds)?)?, b"!");
    Ok(())
}

/// A reader that takes few bytes gets the descriptor with the first byte that brought it.
fn bytes_before() -> Result<()> {
    let (here, there) = both(Stream)?;
    let (reader, writer) = nix::unistd::pipe()?;
    tell(&here, b"0123456789")?;
    give(&here, b"abc", &[writer.as_raw_fd()])?;
    tell(&here, b"rest")?;
    drop(writer);
    zdtm::checkpoint()?;
    let (text, fds) = get(&there, 9)?;
    check_eq!((text, fds.len()), (b"012345678".to_vec(), 0));
    let (text, fds) = get(&there, 2)?;
    check!(text.starts_with(b"9") || fds.is_empty());
    let fds = match fds.is_empty() {
        true => get(&there, 2)?.1,
        false => fds,
    };
    talk(reader, one(fds)?)?;
    let mut rest = Vec::new();
    while let Ok(some) = next(&there) {
        rest.extend(some);
    }
    check!(rest.ends_with(b"rest"), "{rest:?}");
    Ok(())
}

/// As many as one message can have.
fn many() -> Result<()> {
    const MOST: usize = 253;
    let (here, there) = both(SeqPacket)?;
    let file = File::open("/dev/zero")?;
    give(&here, b"many", &vec![file.as_raw_fd(); MOST])?;
    zdtm::checkpoint()?;
    check_eq!(get(&there, 10)?.1.len(), MOST);
    Ok(())
}

/// From the parent to a child.
fn crossed() -> Result<()> {
    let (here, there) = both(Stream)?;
    let (reader, writer) = nix::unistd::pipe()?;
    let ours = [here.as_raw_fd(), reader.as_raw_fd()];
    give(&here, b"x", &[writer.as_raw_fd()])?;
    drop(writer);
    let child = Child::spawn("child", move || {
        for fd in ours {
            nix::unistd::close(fd)?;
        }
        Child::checkpoint();
        nix::unistd::write(one(get(&there, 10)?.1)?, b"from the child")?;
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()?;
    let mut room = [0; 32];
    check_eq!(nix::unistd::read(&reader, &mut room)?, 14);
    Ok(())
}
