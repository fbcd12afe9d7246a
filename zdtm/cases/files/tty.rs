//! Terminals: pairs, what waits in them, sessions.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::termios::{
    InputFlags, LocalFlags, OutputFlags, SpecialCharacterIndices, Termios, cfmakeraw, tcgetsid,
};
use nix::unistd::{Pid, getpid, getsid, read, setpgid, setsid, tcgetpgrp, write};
use zdtm::{Case, Child, Result, check, check_eq};

// Alone: their numbers must be free when they come back.
pub(crate) const CASES: &[Case] = &[
    Case::new("tty-pair", pair).exclusive(),
    Case::new("tty-data", data).exclusive(),
    Case::new("tty-data-lines", lines).exclusive(),
    Case::new("tty-packet-mode", packet_mode).exclusive(),
    Case::new("tty-exclusive", exclusive).exclusive(),
    Case::new("tty-locked", locked).exclusive(),
    Case::new("tty-master-alone", alone).exclusive(),
    Case::new("tty-hung-up", hung_up).exclusive(),
    Case::new("tty-several", several).exclusive(),
    Case::new("tty-crossed", crossed).exclusive(),
    Case::new("tty-controlling", controlling).exclusive(),
    Case::new("tty-controlling-no-slave", no_slave).exclusive(),
    Case::new("tty-current", current).exclusive(),
    Case::new("tty-foreground", foreground).exclusive(),
    Case::new("tty-background", background).exclusive(),
    Case::new("tty-hangup-signal", hangup).exclusive(),
    Case::new("tty-owner", owner).exclusive(),
];

struct Ends {
    master: OwnedFd,
    slave: OwnedFd,
}

fn open() -> Result<Ends> {
    let size = Winsize {
        ws_row: 33,
        ws_col: 77,
        ws_xpixel: 3,
        ws_ypixel: 7,
    };
    let pair = openpty(&size, None)?;
    Ok(Ends {
        master: pair.master,
        slave: pair.slave,
    })
}

fn raw(fd: &impl AsFd) -> Result<()> {
    let mut settings = tcgetattr(fd)?;
    cfmakeraw(&mut settings);
    Ok(tcsetattr(fd, &settings)?)
}

// The libc crate asks for versions of these two that the C library of MIPS does not have.
unsafe extern "C" {
    #[link_name = "tcgetattr"]
    fn get_settings(fd: libc::c_int, settings: *mut libc::termios) -> libc::c_int;
    #[link_name = "tcsetattr"]
    fn set_settings(
        fd: libc::c_int,
        when: libc::c_int,
        settings: *const libc::termios,
    ) -> libc::c_int;
}

fn tcgetattr(fd: &impl AsFd) -> Result<Termios, Errno> {
    // SAFETY: settings of zeros are some.
    let mut settings = unsafe { std::mem::zeroed() };
    // SAFETY: the call stores settings.
    Errno::result(unsafe { get_settings(fd.as_fd().as_raw_fd(), &raw mut settings) })?;
    Ok(settings.into())
}

fn tcsetattr(fd: &impl AsFd, settings: &Termios) -> Result<(), Errno> {
    let mut raw = libc::termios::from(settings.clone());
    raw.c_iflag = settings.input_flags.bits();
    raw.c_oflag = settings.output_flags.bits();
    raw.c_cflag = settings.control_flags.bits();
    raw.c_lflag = settings.local_flags.bits();
    raw.c_cc = settings.control_chars;
    let settings = raw;
    // SAFETY: the settings live through the call.
    let set = unsafe { set_settings(fd.as_fd().as_raw_fd(), libc::TCSANOW, &raw const settings) };
    Errno::result(set).map(drop)
}

fn nonblocking(fd: &impl AsFd) -> Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_RDWR))?;
    Ok(())
}

/// What comes, when it has had the time to.
fn come(fd: &impl AsFd) -> Result<Vec<u8>, Errno> {
    let mut room = vec![0; 5000];
    let mut asked = [nix::poll::PollFd::new(
        fd.as_fd(),
        nix::poll::PollFlags::POLLIN,
    )];
    nix::poll::poll(&mut asked, 200u8)?;
    let length = read(fd, &mut room)?;
    room.truncate(length);
    Ok(room)
}

fn number(fd: &impl AsRawFd, request: libc::Ioctl) -> Result<i32> {
    let mut value = 0i32;
    // SAFETY: the request stores an int.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut value) })?;
    Ok(value)
}

fn size(fd: &impl AsRawFd) -> Result<(u16, u16, u16, u16)> {
    // SAFETY: a window of zeros is one.
    let mut size: Winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the request stores a window size.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok((size.ws_row, size.ws_col, size.ws_xpixel, size.ws_ypixel))
}

fn name(slave: &impl AsRawFd) -> Result<std::path::PathBuf> {
    Ok(std::fs::read_link(format!(
        "/proc/self/fd/{}",
        slave.as_raw_fd()
    ))?)
}

/// Settings and size; lines go through as the settings say.
fn pair() -> Result<()> {
    let Ends { master, slave } = open()?;
    let mut settings = tcgetattr(&slave)?;
    settings.local_flags.remove(LocalFlags::ECHO);
    settings.input_flags.insert(InputFlags::IUCLC);
    settings.output_flags.remove(OutputFlags::ONLCR);
    settings.control_chars[SpecialCharacterIndices::VINTR as usize] = 7;
    tcsetattr(&slave, &settings)?;
    let (before, path) = (tcgetattr(&slave)?, name(&slave)?);
    zdtm::checkpoint()?;
    let settings = |fd: &OwnedFd| tcgetattr(fd);
    check!(settings(&slave)? == before);
    check!(settings(&master)? == before);
    check_eq!(size(&slave)?, (33, 77, 3, 7));
    check_eq!(size(&master)?, (33, 77, 3, 7));
    check_eq!(name(&slave)?, path);
    write(&master, b"HELLO\n")?;
    check_eq!(come(&slave)?, b"hello\n");
    write(&slave, b"there\n")?;
    check_eq!(come(&master)?, b"there\n");
    drop(master);
    check_eq!(read(&slave, &mut [0; 1])?, 0);
    Ok(())
}

/// Bytes wait in both directions.
fn data() -> Result<()> {
    let Ends { master, slave } = open()?;
    raw(&slave)?;
    let all: Vec<u8> = (0..=255).collect();
    write(&master, &all)?;
    write(&slave, b"out\nwards")?;
    std::thread::sleep(std::time::Duration::from_millis(20));
    zdtm::checkpoint()?;
    check_eq!(come(&slave)?, all);
    check_eq!(come(&master)?, b"out\nwards");
    Ok(())
}

/// Lines that are complete, and one that is not.
fn lines() -> Result<()> {
    let Ends { master, slave } = open()?;
    nonblocking(&slave)?;
    write(&master, b"one\ntwo\nthr")?;
    std::thread::sleep(std::time::Duration::from_millis(20));
    zdtm::checkpoint()?;
    check_eq!(come(&slave)?, b"one\n");
    check_eq!(come(&slave)?, b"two\n");
    check_eq!(come(&slave), Err(Errno::EAGAIN));
    // The echo was made once.
    check_eq!(come(&master)?, b"one\r\ntwo\r\nthr");
    write(&master, b"ee\n")?;
    check_eq!(come(&slave)?, b"three\n");
    check_eq!(come(&master)?, b"ee\r\n");
    Ok(())
}

fn packet_mode() -> Result<()> {
    let Ends { master, slave } = open()?;
    raw(&slave)?;
    let on = 1i32;
    // SAFETY: the request reads an int.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCPKT, &raw const on) })?;
    write(&slave, b"waits")?;
    std::thread::sleep(std::time::Duration::from_millis(20));
    zdtm::checkpoint()?;
    check_eq!(number(&master, libc::TIOCGPKT)?, 1);
    check_eq!(come(&master)?, b"\0waits");
    write(&slave, b"later")?;
    check_eq!(come(&master)?, b"\0later");
    Ok(())
}

fn exclusive() -> Result<()> {
    let Ends { master, slave } = open()?;
    // SAFETY: the request has no argument.
    Errno::result(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCEXCL) })?;
    zdtm::checkpoint()?;
    check_eq!(number(&slave, libc::TIOCGEXCL)?, 1);
    check_eq!(number(&master, libc::TIOCGEXCL)?, 0);
    Ok(())
}

/// A slave that cannot be opened yet.
fn locked() -> Result<()> {
    let master = nix::pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY)?;
    zdtm::checkpoint()?;
    check_eq!(number(&master, libc::TIOCGPTLCK)?, 1);
    let path = format!("/dev/pts/{}", number(&master, libc::TIOCGPTN)?);
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NOCTTY);
    check_eq!(
        options
            .open(&path)
            .map_err(|error| error.raw_os_error())
            .err(),
        Some(Some(libc::EIO))
    );
    nix::pty::unlockpt(&master)?;
    options.open(&path)?;
    Ok(())
}

/// Nobody has opened the slave.
fn alone() -> Result<()> {
    let master = nix::pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY)?;
    nix::pty::unlockpt(&master)?;
    let index = number(&master, libc::TIOCGPTN)?;
    zdtm::checkpoint()?;
    check_eq!(number(&master, libc::TIOCGPTN)?, index);
    let mut slave = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(format!("/dev/pts/{index}"))?;
    write(&master, b"hello\n")?;
    let mut room = [0; 6];
    slave.read_exact(&mut room)?;
    check_eq!(&room, b"hello\n");
    Ok(())
}

/// The master is closed.
fn hung_up() -> Result<()> {
    let Ends { master, slave } = open()?;
    drop(master);
    zdtm::checkpoint()?;
    check_eq!(read(&slave, &mut [0; 1])?, 0);
    check_eq!(write(&slave, b"x"), Err(Errno::EIO));
    Ok(())
}

/// Pairs with gaps between their numbers, and slaves that are open more than once.
fn several() -> Result<()> {
    let mut all = (0..6).map(|_| open()).collect::<Result<Vec<_>>>()?;
    all.remove(4);
    all.remove(1);
    let mut again = Vec::new();
    for ends in &all {
        raw(&ends.slave)?;
        let path = name(&ends.slave)?;
        again.push(
            OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NOCTTY)
                .open(path)?,
        );
    }
    zdtm::checkpoint()?;
    for (index, (ends, again)) in (0u8..).zip(all.iter().zip(&mut again)) {
        write(&ends.master, &[index])?;
        check_eq!(come(&ends.slave)?, [index]);
        again.write_all(&[10 + index])?;
        check_eq!(come(&ends.master)?, [10 + index]);
    }
    Ok(())
}

/// Each of two processes has one end.
fn crossed() -> Result<()> {
    let Ends { master, slave } = open()?;
    raw(&slave)?;
    let ours = master.as_raw_fd();
    let far = slave.as_raw_fd();
    let child = Child::spawn("child", move || {
        nix::unistd::close(ours)?;
        Child::checkpoint();
        // SAFETY: inherited, and closed by nobody else.
        let slave = unsafe { std::os::fd::BorrowedFd::borrow_raw(far) };
        check_eq!(come(&slave)?, b"question");
        write(slave, b"answer")?;
        Ok(())
    })?;
    zdtm::checkpoint()?;
    write(&master, b"question")?;
    child.finish()?;
    check_eq!(come(&master)?, b"answer");
    drop(slave);
    Ok(())
}

/// A child that makes a session, with the slave as its terminal.
fn leader(ends: &Ends, body: impl FnOnce(File) -> Result<()>) -> Result<Child> {
    let (ours, far) = (ends.master.as_raw_fd(), ends.slave.as_raw_fd());
    Child::spawn("leader", move || {
        nix::unistd::close(ours)?;
        setsid()?;
        // SAFETY: the request takes a number.
        Errno::result(unsafe { libc::ioctl(far, libc::TIOCSCTTY, 0) })?;
        // SAFETY: inherited; this is its only owner.
        body(unsafe { File::from_raw_fd(far) })
    })
}

fn here(slave: &File) -> Result<()> {
    check_eq!(tcgetsid(slave)?, getsid(None)?);
    // Whoever has a controlling terminal can open it by this name.
    File::open("/dev/tty")?;
    Ok(())
}

fn controlling() -> Result<()> {
    let ends = open()?;
    let leader = leader(&ends, |slave| {
        // A child inherits it, another one in its own group too.
        let other = slave.try_clone()?;
        let member = Child::spawn("member", move || {
            Child::checkpoint();
            here(&other)
        })?;
        Child::checkpoint();
        here(&slave)?;
        check_eq!(tcgetpgrp(&slave)?, getpid());
        member.finish()
    })?;
    zdtm::checkpoint()?;
    leader.finish()
}

/// Nobody has the slave open, but it is a controlling terminal.
fn no_slave() -> Result<()> {
    let ends = open()?;
    let leader = leader(&ends, |slave| {
        drop(slave);
        Child::checkpoint();
        let slave = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
        check_eq!(tcgetsid(&slave)?, getpid());
        Ok(())
    })?;
    let Ends { master, slave } = ends;
    drop(slave);
    zdtm::checkpoint()?;
    leader.finish()?;
    drop(master);
    Ok(())
}

/// Opened as `/dev/tty`.
fn current() -> Result<()> {
    let ends = open()?;
    raw(&ends.slave)?;
    let leader = leader(&ends, |slave| {
        let mut current = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
        drop(slave);
        Child::checkpoint();
        current.write_all(b"here")?;
        Ok(())
    })?;
    zdtm::checkpoint()?;
    leader.finish()?;
    check_eq!(come(&ends.master)?, b"here");
    Ok(())
}

/// Another group than the leader's is in the foreground, and gets the signals of keys.
fn foreground() -> Result<()> {
    let ends = open()?;
    let leader = leader(&ends, |slave| {
        let far = slave.try_clone()?;
        let member = Child::spawn("member", move || {
            setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            let mut all = SigSet::empty();
            all.add(Signal::SIGINT);
            all.add(Signal::SIGTTOU);
            all.thread_block()?;
            nix::unistd::tcsetpgrp(&far, getpid())?;
            Child::set_up();
            let mut int = SigSet::empty();
            int.add(Signal::SIGINT);
            check_eq!(int.wait()?, Signal::SIGINT);
            check_eq!(tcgetpgrp(&far)?, getpid());
            Ok(())
        })?;
        Child::checkpoint();
        check_eq!(tcgetpgrp(&slave)?, member.pid());
        member.join()
    })?;
    zdtm::checkpoint()?;
    write(&ends.master, b"\x03")?;
    leader.finish()
}

/// A group in the background is stopped when it reads.
fn background() -> Result<()> {
    let ends = open()?;
    let leader = leader(&ends, |mut slave| {
        let mut far = slave.try_clone()?;
        let member = Child::spawn("member", move || {
            setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            Child::checkpoint();
            let mut byte = [0; 1];
            far.read_exact(&mut byte)?;
            check_eq!(&byte, b"y");
            Ok(())
        })?;
        Child::checkpoint();
        use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
        nix::sys::signal::kill(member.pid(), Signal::SIGTERM)?;
        let stopped = waitpid(member.pid(), Some(WaitPidFlag::WUNTRACED))?;
        check_eq!(stopped, WaitStatus::Stopped(member.pid(), Signal::SIGTTIN));
        nix::unistd::tcsetpgrp(&slave, member.pid())?;
        nix::sys::signal::kill(member.pid(), Signal::SIGCONT)?;
        slave.flush()?;
        member.join()
    })?;
    zdtm::checkpoint()?;
    write(&ends.master, b"y\n")?;
    leader.finish()
}

static HUNG: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

extern "C" fn on_hangup(_: i32) {
    HUNG.store(true, std::sync::atomic::Ordering::SeqCst);
}

/// Who leads a session hears when its terminal goes away.
fn hangup() -> Result<()> {
    let ends = open()?;
    let leader = leader(&ends, |slave| {
        let action = SigAction::new(
            SigHandler::Handler(on_hangup),
            SaFlags::SA_RESTART,
            SigSet::empty(),
        );
        // SAFETY: the handler stores an atomic.
        unsafe { sigaction(Signal::SIGHUP, &action) }?;
        Child::set_up();
        while !HUNG.load(std::sync::atomic::Ordering::SeqCst) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        check_eq!(write(&slave, b"x"), Err(Errno::EIO));
        Ok(())
    })?;
    drop(ends.slave);
    zdtm::checkpoint()?;
    drop(ends.master);
    leader.join()
}

fn owner() -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let Ends { master, slave } = open()?;
    nix::unistd::fchown(&slave, Some(12.into()), Some(34.into()))?;
    zdtm::checkpoint()?;
    let file = std::fs::metadata(name(&slave)?)?;
    check_eq!((file.uid(), file.gid()), (12, 34));
    drop(master);
    Ok(())
}
