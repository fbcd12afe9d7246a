//! Connections that are closed on one side or on both, and one that is not open yet.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use zdtm::{Case, Result, check_eq};

use super::outsider::Outsider;
use super::tcp::KEEP;
use super::tcp_queues::{go, wait_for_go, with};

pub(crate) const CASES: &[Case] = &[
    Case::new("tcp-fin-wait1", fin_wait1).options(KEEP),
    Case::new("tcp-fin-wait2", fin_wait2).options(KEEP),
    Case::new("tcp-close-wait", close_wait).options(KEEP),
    Case::new("tcp-last-ack", last_ack).options(KEEP),
    Case::new("tcp-closing", closing).options(KEEP),
    Case::new("tcp-closed", closed).options(KEEP),
    Case::new("tcp-syn-sent", syn_sent).options(KEEP),
    Case::new("tcp-in-flight", in_flight).refused("connections that nobody has accepted"),
    Case::new("tcp-skip-in-flight", skipped).options(&["--skip-in-flight", "--tcp-established"]),
];

/// The first words of `struct tcp_info`.
pub(crate) fn info(stream: &impl AsRawFd) -> Result<[u8; 20]> {
    let mut info = [0u8; 20];
    let mut length = 20 as libc::socklen_t;
    // SAFETY: both point to what the kernel may write.
    let got = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(got)?;
    Ok(info)
}

/// `tcpi_state`.
pub(crate) fn state(stream: &impl AsRawFd) -> Result<u8> {
    Ok(info(stream)?[0])
}

/// Waits for a state of the connection.
pub(crate) fn reaches(stream: &TcpStream, wanted: u8) -> Result<()> {
    for _ in 0..1000 {
        if state(stream)? == wanted {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    check_eq!(state(stream)?, wanted);
    Ok(())
}

/// Writes until nothing fits.
pub(crate) fn fill(mut stream: &TcpStream) -> Result<usize> {
    stream.set_nonblocking(true)?;
    let mut count = 0;
    loop {
        match stream.write(&[7; 10_000]) {
            Ok(length) => count += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
    }
    stream.set_nonblocking(false)?;
    Ok(count)
}

/// Counts what comes until the end, and leaves the number in a file.
fn count(mut stream: &TcpStream) {
    let mut all = Vec::new();
    let end = stream.read_to_end(&mut all);
    let right = all.iter().all(|byte| *byte == 7);
    std::fs::write(
        zdtm::dir().join("counted"),
        format!("{} {right} {end:?}", all.len()),
    )
    .ok();
}

fn counted(wanted: usize) -> Result<()> {
    for _ in 0..4000 {
        let text = std::fs::read_to_string(zdtm::dir().join("counted")).unwrap_or_default();
        if !text.is_empty() {
            check_eq!(text, format!("{wanted} true Ok({wanted})"));
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    zdtm::bail!("the other end never saw the end")
}

/// Our end is behind what the other one does not take yet.
fn fin_wait1() -> Result<()> {
    let (_outsider, mut stream) = with(|stream| {
        wait_for_go();
        count(&stream);
    })?;
    let sent = fill(&stream)?;
    stream.shutdown(Shutdown::Write)?;
    check_eq!(state(&stream)?, 4);
    zdtm::checkpoint()?;
    check_eq!(state(&stream)?, 4);
    std::fs::write(go(), "")?;
    counted(sent)?;
    check_eq!(stream.read(&mut [0; 1])?, 0);
    Ok(())
}

/// The other end knows that we say no more, and goes on.
fn fin_wait2() -> Result<()> {
    let (_outsider, stream) = with(answer_at_the_end)?;
    ask_and_shut(stream)
}

/// Sends back all that it has heard before the end, when it is told to. An error shows at the other end.
pub(crate) fn answer_at_the_end(mut stream: TcpStream) {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).ok();
    wait_for_go();
    stream.write_all(&all).ok();
}

/// Says its last before it is dumped, and hears the answer after it is restored.
pub(crate) fn ask_and_shut(mut stream: TcpStream) -> Result<()> {
    stream.write_all(b"question")?;
    stream.shutdown(Shutdown::Write)?;
    reaches(&stream, 5)?;
    zdtm::checkpoint()?;
    check_eq!(state(&stream)?, 5);
    std::fs::write(go(), "")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    check_eq!(answer, "question");
    Ok(())
}

/// The other end says no more, and we do.
fn close_wait() -> Result<()> {
    let (_outsider, mut stream) = with(|mut stream| {
        stream.write_all(b"unread").ok();
        stream.shutdown(Shutdown::Write).ok();
        count(&stream);
    })?;
    reaches(&stream, 8)?;
    zdtm::checkpoint()?;
    check_eq!(state(&stream)?, 8);
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    check_eq!(text, "unread");
    stream.write_all(&[7; 1000])?;
    drop(stream);
    counted(1000)
}

/// Neither says more, but ours is not through yet.
fn last_ack() -> Result<()> {
    let (_outsider, mut stream) = with(|mut stream| {
        stream.write_all(b"unread").ok();
        stream.shutdown(Shutdown::Write).ok();
        wait_for_go();
        count(&stream);
    })?;
    reaches(&stream, 8)?;
    let sent = fill(&stream)?;
    stream.shutdown(Shutdown::Write)?;
    check_eq!(state(&stream)?, 9);
    zdtm::checkpoint()?;
    check_eq!(state(&stream)?, 9);
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    check_eq!(text, "unread");
    std::fs::write(go(), "")?;
    counted(sent)
}

/// Both have said that they say no more, and we were first.
fn closing() -> Result<()> {
    let (_outsider, mut stream) = with(|mut stream| {
        while !zdtm::dir().join("shut").exists() {
            std::thread::sleep(Duration::from_millis(2));
        }
        stream.write_all(b"unread").ok();
        stream.shutdown(Shutdown::Write).ok();
        wait_for_go();
        count(&stream);
    })?;
    let sent = fill(&stream)?;
    stream.shutdown(Shutdown::Write)?;
    std::fs::write(zdtm::dir().join("shut"), "")?;
    reaches(&stream, 11)?;
    zdtm::checkpoint()?;
    check_eq!(state(&stream)?, 11);
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    check_eq!(text, "unread");
    std::fs::write(go(), "")?;
    counted(sent)
}

/// All is over, but for what was not read.
fn closed() -> Result<()> {
    let (_outsider, mut stream) = with(|mut stream| {
        stream.write_all(b"unread").ok();
        stream.shutdown(Shutdown::Write).ok();
        count(&stream);
    })?;
    reaches(&stream, 8)?;
    stream.shutdown(Shutdown::Write)?;
    reaches(&stream, 7)?;
    zdtm::checkpoint()?;
    check_eq!(state(&stream)?, 7);
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    check_eq!(text, "unread");
    let failed = stream.write(b"x").expect_err("shut");
    check_eq!(failed.kind(), ErrorKind::BrokenPipe);
    Ok(())
}

/// A listener that takes no more: whoever asks has no answer.
fn crowded() -> Result<(TcpListener, Vec<TcpStream>)> {
    use nix::sys::socket::{Backlog, listen};
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listen(&listener, Backlog::new(0)?)?;
    let first = TcpStream::connect(listener.local_addr()?)?;
    Ok((listener, vec![first]))
}

fn syn_sent() -> Result<()> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, connect, getsockopt, socket, sockopt,
    };
    let (listener, crowd) = crowded()?;
    let address = listener.local_addr()?;
    let _outsider = Outsider::start(|ready| {
        ready();
        wait_for_go();
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            stream.write_all(b"at last").ok();
            std::mem::forget(stream);
        }
    })?;
    drop(listener);
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    let std::net::SocketAddr::V4(address) = address else {
        zdtm::bail!("an address of IPv4")
    };
    check_eq!(
        connect(socket.as_raw_fd(), &SockaddrIn::from(address)),
        Err(Errno::EINPROGRESS)
    );
    let mut stream = TcpStream::from(socket);
    if state(&stream)? != 2 {
        return zdtm::skip("the crowd got in");
    }
    drop(crowd);
    zdtm::checkpoint()?;
    std::fs::write(go(), "")?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    reaches(&stream, 1)?;
    check_eq!(getsockopt(&stream, sockopt::SocketError)?, 0);
    let mut text = [0; 7];
    stream.read_exact(&mut text)?;
    check_eq!(&text, b"at last");
    Ok(())
}

fn in_flight() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let number = listener.as_raw_fd();
    let _outsider = Outsider::start(|ready| {
        nix::unistd::close(number).ok();
        let _stream = TcpStream::connect(address).expect("listening");
        ready();
        std::thread::sleep(Duration::from_secs(60));
    })?;
    zdtm::checkpoint()?;
    listener.accept()?;
    Ok(())
}

fn skipped() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let number = listener.as_raw_fd();
    let _outsider = Outsider::start(|ready| {
        nix::unistd::close(number).ok();
        let _stream = TcpStream::connect(address).expect("listening");
        ready();
        wait_for_go();
        let _stream = TcpStream::connect(address).expect("listening");
        std::thread::sleep(Duration::from_secs(60));
    })?;
    zdtm::checkpoint()?;
    std::fs::write(go(), "")?;
    listener.accept()?;
    Ok(())
}
