//! Options of sockets: `SOL_SOCKET`.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockType::{Datagram, Stream};
use nix::sys::socket::recv;
use zdtm::{Case, Result, check_eq};

use super::unix_stream::{both, tell};

pub(crate) const CASES: &[Case] = &[
    Case::new("unix-options", options),
    Case::new("unix-timeouts", timeouts),
    Case::new("unix-buffers", buffers),
    Case::new("unix-linger", linger),
    Case::new("unix-filter", filter),
    Case::new("unix-peek-off", peek_off),
    Case::new("unix-pass-pidfd", pass_pidfd).stays("Linux 6.5 made SO_PASSPIDFD"),
    Case::new("unix-signal-owner", owner),
];

const SO_BUF_LOCK: i32 = 72;
const SO_PASSPIDFD: i32 = 76;

fn get(socket: &OwnedFd, name: i32) -> Result<i32, Errno> {
    let mut value = 0i32;
    let mut length = 4 as libc::socklen_t;
    // SAFETY: both point to what the kernel may write.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    Errno::result(got).map(|_| value)
}

fn set<T>(socket: &OwnedFd, name: i32, value: &T) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the value is as long as said.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
    Errno::result(set).map(drop)
}

fn options() -> Result<()> {
    let (one, other) = both(Stream)?;
    let wanted = [
        (libc::SO_PRIORITY, 5),
        (libc::SO_RCVLOWAT, 12),
        (libc::SO_MARK, 77),
        (libc::SO_PASSCRED, 1),
        (libc::SO_PASSSEC, 1),
        (libc::SO_DONTROUTE, 1),
        (libc::SO_NO_CHECK, 1),
        (libc::SO_BROADCAST, 1),
        (libc::SO_KEEPALIVE, 1),
        (libc::SO_OOBINLINE, 1),
        (libc::SO_REUSEADDR, 1),
    ];
    for (name, value) in wanted {
        set(&one, name, &value)?;
    }
    zdtm::checkpoint()?;
    for (name, value) in wanted {
        check_eq!(get(&one, name)?, value, "option {name}");
        let new = if name == libc::SO_RCVLOWAT { 1 } else { 0 };
        check_eq!(get(&other, name)?, new, "option {name}");
    }
    Ok(())
}

fn timeouts() -> Result<()> {
    use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout};
    use nix::sys::socket::{getsockopt, setsockopt};
    use nix::sys::time::{TimeVal, TimeValLike};
    let (one, _other) = both(Stream)?;
    let (receive, send) = (TimeVal::milliseconds(300), TimeVal::seconds(4000));
    setsockopt(&one, ReceiveTimeout, &receive)?;
    setsockopt(&one, SendTimeout, &send)?;
    zdtm::checkpoint()?;
    check_eq!(getsockopt(&one, ReceiveTimeout)?, receive);
    check_eq!(getsockopt(&one, SendTimeout)?, send);
    let got = recv(one.as_raw_fd(), &mut [0; 1], MsgFlags::empty());
    check_eq!(got, Err(Errno::EAGAIN));
    Ok(())
}

/// Sizes, also beyond the limit of users, and whether they are said by the program.
fn buffers() -> Result<()> {
    let (one, other) = both(Datagram)?;
    set(&one, libc::SO_SNDBUF, &10_000)?;
    set(&one, libc::SO_RCVBUF, &20_000)?;
    set(&other, libc::SO_SNDBUFFORCE, &4_000_000)?;
    let sizes =
        |socket| Ok::<_, Errno>((get(socket, libc::SO_SNDBUF)?, get(socket, libc::SO_RCVBUF)?));
    let locks = |socket| get(socket, SO_BUF_LOCK);
    let before = (sizes(&one)?, sizes(&other)?, locks(&one), locks(&other));
    zdtm::checkpoint()?;
    let after = (sizes(&one)?, sizes(&other)?, locks(&one), locks(&other));
    check_eq!(after, before);
    Ok(())
}

fn linger() -> Result<()> {
    use nix::sys::socket::sockopt::Linger;
    use nix::sys::socket::{getsockopt, setsockopt};
    let (one, other) = both(Stream)?;
    let wanted = libc::linger {
        l_onoff: 1,
        l_linger: 65,
    };
    setsockopt(&one, Linger, &wanted)?;
    zdtm::checkpoint()?;
    let found = getsockopt(&one, Linger)?;
    check_eq!((found.l_onoff, found.l_linger), (1, 65));
    check_eq!(getsockopt(&other, Linger)?.l_onoff, 0);
    Ok(())
}

/// A program that lets packets through up to their third byte.
fn filter() -> Result<()> {
    let (one, other) = both(Datagram)?;
    let mut code = [libc::sock_filter {
        code: 0x06, // BPF_RET | BPF_K
        jt: 0,
        jf: 0,
        k: 3,
    }; 4];
    let program = libc::sock_fprog {
        len: 4,
        filter: code.as_mut_ptr(),
    };
    set(&other, libc::SO_ATTACH_FILTER, &program)?;
    zdtm::checkpoint()?;
    tell(&one, b"longer than that").err();
    let mut room = [0; 32];
    check_eq!(
        recv(other.as_raw_fd(), &mut room, MsgFlags::MSG_DONTWAIT)?,
        3
    );
    set(&other, libc::SO_DETACH_FILTER, &0)?;
    tell(&one, b"all of it")?;
    check_eq!(
        recv(other.as_raw_fd(), &mut room, MsgFlags::MSG_DONTWAIT)?,
        9
    );
    Ok(())
}

/// Where the next look begins.
fn peek_off() -> Result<()> {
    let (one, other) = both(Stream)?;
    tell(&one, b"0123456789")?;
    set(&other, libc::SO_PEEK_OFF, &4)?;
    zdtm::checkpoint()?;
    let mut room = [0; 2];
    for text in [b"45", b"67"] {
        check_eq!(recv(other.as_raw_fd(), &mut room, MsgFlags::MSG_PEEK)?, 2);
        check_eq!(&room, text);
    }
    check_eq!(get(&one, libc::SO_PEEK_OFF)?, -1);
    Ok(())
}

fn pass_pidfd() -> Result<()> {
    let (one, other) = both(Stream)?;
    if set(&one, SO_PASSPIDFD, &1).is_err() {
        return zdtm::skip("no SO_PASSPIDFD");
    }
    tell(&other, b"x")?;
    zdtm::checkpoint()?;
    check_eq!(get(&one, SO_PASSPIDFD)?, 1);
    check_eq!(get(&other, SO_PASSPIDFD)?, 0);
    Ok(())
}

/// Who gets SIGIO.
fn owner() -> Result<()> {
    let (one, _other) = both(Stream)?;
    let pid = std::process::id().cast_signed();
    // SAFETY: fcntl(2) with numbers.
    let set = unsafe { libc::fcntl(one.as_raw_fd(), libc::F_SETOWN, pid) };
    Errno::result(set)?;
    zdtm::checkpoint()?;
    // SAFETY: as above.
    check_eq!(unsafe { libc::fcntl(one.as_raw_fd(), libc::F_GETOWN) }, pid);
    Ok(())
}
