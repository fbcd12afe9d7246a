//! Who is at the other end: `SO_PEERCRED`, `SCM_CREDENTIALS`.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;

use nix::sys::socket::SockType::{Datagram, Stream};
use nix::sys::socket::sockopt::{PassCred, PeerCredentials};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, UnixCredentials, getsockopt, recvmsg,
    sendmsg, setsockopt,
};
use nix::unistd::{Gid, Uid, setegid, seteuid};
use zdtm::{Case, Child, Result, check_eq};

use super::unix_stream::{accepted, both, client, listening};

const LOST: &str = "CRIU has no field for who made a socket";

pub(crate) const CASES: &[Case] = &[
    Case::new("unix-peercred-pair", pair),
    Case::new("unix-peercred-connected", connected),
    Case::new("unix-peercred-pending", pending),
    Case::new("unix-peercred-user", user),
    Case::new("unix-peercred-gone", gone),
    Case::new("unix-passcred", passed),
    Case::new("unix-credentials-queued", queued).refused(LOST),
    Case::new("unix-credentials-sender-gone", sender_gone).refused(LOST),
];

type Who = (i32, u32, u32);

fn peer(socket: &impl std::os::fd::AsFd) -> Result<Who> {
    let creds = getsockopt(socket, PeerCredentials)?;
    Ok((creds.pid(), creds.uid(), creds.gid()))
}

fn me() -> Who {
    (std::process::id().cast_signed(), 0, 0)
}

/// Both ends have the one who made them.
fn pair() -> Result<()> {
    let (one, other) = both(Stream)?;
    zdtm::checkpoint()?;
    check_eq!(peer(&one)?, me());
    check_eq!(peer(&other)?, me());
    Ok(())
}

/// A client sees who listens, a server who has connected.
fn connected() -> Result<()> {
    let name = UnixAddr::new(&zdtm::dir().join("server"))?;
    let server = listening(Stream, &name, 3)?;
    let (root, ours) = (me(), server.as_raw_fd());
    let child = Child::spawn("client", move || {
        nix::unistd::close(ours)?;
        let client = client(Stream, &name)?;
        Child::checkpoint();
        check_eq!(peer(&client)?, root);
        Ok(())
    })?;
    let served = accepted(&server)?;
    let who = (child.pid().as_raw(), 0, 0);
    check_eq!(peer(&served)?, who);
    zdtm::checkpoint()?;
    check_eq!(peer(&served)?, who);
    check_eq!(peer(&server)?, root);
    child.finish()
}

fn pending() -> Result<()> {
    let name = UnixAddr::new(&zdtm::dir().join("server"))?;
    let server = listening(Stream, &name, 3)?;
    let ours = server.as_raw_fd();
    let child = Child::spawn("client", move || {
        nix::unistd::close(ours)?;
        let client = client(Stream, &name)?;
        Child::checkpoint();
        check_eq!(peer(&client)?.0, nix::unistd::getppid().as_raw());
        Ok(())
    })?;
    zdtm::checkpoint()?;
    check_eq!(peer(&accepted(&server)?)?, (child.pid().as_raw(), 0, 0));
    child.finish()
}

/// As another user for the while.
fn user() -> Result<()> {
    let name = UnixAddr::new(&zdtm::dir().join("server"))?;
    let server = listening(Stream, &name, 3)?;
    setegid(Gid::from_raw(34))?;
    seteuid(Uid::from_raw(12))?;
    let (one, other) = both(Stream)?;
    seteuid(Uid::from_raw(0))?;
    setegid(Gid::from_raw(0))?;
    let root = client(Stream, &name)?;
    let served = accepted(&server)?;
    zdtm::checkpoint()?;
    let pid = me().0;
    check_eq!(peer(&one)?, (pid, 12, 34));
    check_eq!(peer(&other)?, (pid, 12, 34));
    check_eq!(peer(&root)?, me());
    check_eq!(peer(&served)?, me());
    Ok(())
}

/// Who made them is no more.
fn gone() -> Result<()> {
    let (here, there) = both(Stream)?;
    let (far, ours) = (there.as_raw_fd(), here.as_raw_fd());
    let child = Child::spawn("maker", move || {
        nix::unistd::close(ours)?;
        let (one, _other) = both(Stream)?;
        let fds = [one.as_raw_fd()];
        sendmsg::<()>(
            far,
            &[IoSlice::new(b"x")],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::empty(),
            None,
        )?;
        Ok(())
    })?;
    let pid = child.pid().as_raw();
    child.join()?;
    let mut byte = [0; 1];
    let mut control = vec![0; 64];
    let mut room = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(ours, &mut room, Some(&mut control), MsgFlags::empty())?;
    let mut got = None;
    for one in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = one {
            got = fds.first().copied();
        }
    }
    let fd = zdtm::Context::context(got, "a descriptor")?;
    // SAFETY: recvmsg(2) has just made it.
    let orphan = unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) };
    use std::os::fd::FromRawFd;
    check_eq!(peer(&orphan)?, (pid, 0, 0));
    zdtm::checkpoint()?;
    check_eq!(peer(&orphan)?, (pid, 0, 0));
    Ok(())
}

fn say(socket: &impl AsRawFd, text: &[u8], creds: Option<&UnixCredentials>) -> Result<()> {
    let control: Vec<ControlMessage<'_>> = creds
        .map(ControlMessage::ScmCredentials)
        .into_iter()
        .collect();
    let text = [IoSlice::new(text)];
    sendmsg::<()>(socket.as_raw_fd(), &text, &control, MsgFlags::empty(), None)?;
    Ok(())
}

fn hear(socket: &impl AsRawFd) -> Result<(Vec<u8>, Who)> {
    let mut bytes = vec![0; 100];
    let mut room = [IoSliceMut::new(&mut bytes)];
    let mut control = vec![0; 256];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut room, Some(&mut control), flags)?;
    let mut who = (0, 0, 0);
    for one in message.cmsgs()? {
        if let ControlMessageOwned::ScmCredentials(creds) = one {
            who = (creds.pid(), creds.uid(), creds.gid());
        }
    }
    let count = message.bytes;
    bytes.truncate(count);
    Ok((bytes, who))
}

/// The option is kept: what is sent afterwards is signed.
fn passed() -> Result<()> {
    let (one, other) = both(Stream)?;
    setsockopt(&other, PassCred, &true)?;
    zdtm::checkpoint()?;
    check_eq!(getsockopt(&other, PassCred)?, true);
    check_eq!(getsockopt(&one, PassCred)?, false);
    say(&one, b"signed", None)?;
    check_eq!(hear(&other)?, (b"signed".to_vec(), me()));
    Ok(())
}

/// What waits is signed by whoever sent it, as whom he said to be.
fn queued() -> Result<()> {
    for kind in [Stream, Datagram] {
        let (one, other) = both(kind)?;
        setsockopt(&other, PassCred, &true)?;
        let ours = other.as_raw_fd();
        let far = one.as_raw_fd();
        say(&one, b"parent", None)?;
        let child = Child::spawn("child", move || {
            nix::unistd::close(ours)?;
            // SAFETY: the descriptor is inherited, and nobody else closes it.
            let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(far) };
            say(&socket, b"child", None)?;
            Child::checkpoint();
            Ok(())
        })?;
        let pid = me().0;
        let other_user = UnixCredentials::from(libc::ucred {
            pid,
            uid: 12,
            gid: 34,
        });
        say(&one, b"as another", Some(&other_user))?;
        if kind == Stream {
            zdtm::ready()?;
            zdtm::wait();
        }
        check_eq!(hear(&other)?, (b"parent".to_vec(), me()));
        check_eq!(
            hear(&other)?,
            (b"child".to_vec(), (child.pid().as_raw(), 0, 0))
        );
        check_eq!(hear(&other)?, (b"as another".to_vec(), (pid, 12, 34)));
        child.finish()?;
    }
    Ok(())
}

fn sender_gone() -> Result<()> {
    let (one, other) = both(Datagram)?;
    setsockopt(&other, PassCred, &true)?;
    let far = one.as_raw_fd();
    let child = Child::spawn("sender", move || {
        // SAFETY: the descriptor is inherited, and nobody else closes it.
        say(
            &unsafe { std::os::fd::BorrowedFd::borrow_raw(far) },
            b"bye",
            None,
        )
    })?;
    let pid = child.pid().as_raw();
    child.join()?;
    zdtm::checkpoint()?;
    let (text, who) = hear(&other)?;
    check_eq!((text, who), (b"bye".to_vec(), (pid, 0, 0)));
    Ok(())
}
