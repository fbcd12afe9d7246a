//! What becomes of connections one by one (`--tcp-policy`), and what the other end hears of it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use zdtm::{Case, Result, check, check_eq, ret};

use super::outsider::Outsider;
use super::tcp::{KEEP, talk};

pub(crate) const CASES: &[Case] = &[
    Case::new("tcp-policy-keep", || client("127.0.77.1", Heard::All))
        .options(&["--tcp-policy=remote:127.0.77.1=keep"]),
    Case::new("tcp-policy-keep-of-closed", || {
        client("127.0.77.1", Heard::All)
    })
    .options(&["--tcp-policy=127.0.77.1=keep", "--tcp-close"]),
    Case::new("tcp-policy-close", || client("127.0.77.2", Heard::Nothing))
        .options(&["--tcp-policy=127.0.77.2=close"])
        .changes(&["fd/"]),
    Case::new("tcp-policy-reset", || client("127.0.77.3", Heard::Reset))
        .options(&["--tcp-policy=remote:127.0.77.3=reset"])
        .changes(&["fd/"]),
    Case::new("tcp-policy-restored-close", || {
        client("127.0.77.2", Heard::Nothing)
    })
    .dump_options(KEEP)
    .restore_options(&["--tcp-policy=remote:127.0.77.2=close"])
    .changes(&["fd/"]),
    Case::new("tcp-policy-restored-reset", || {
        client("127.0.77.3", Heard::Reset)
    })
    .dump_options(KEEP)
    .restore_options(&["--tcp-policy=127.0.77.3=reset"])
    .changes(&["fd/"]),
    Case::new("tcp-policy-listen-only", server)
        .options(&["--tcp-policy=local:127.0.77.4=listen-only"])
        .changes(&["fd/"]),
    Case::new("tcp-policy-mixed", mixed)
        .options(&[
            "--tcp-policy=remote:127.0.77.2=close",
            "--tcp-policy=*:4778=listen-only",
            "--tcp-policy=remote:*=keep",
        ])
        .changes(&["fd/"])
        .exclusive(),
];

/// What the other end hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// All that is said, as ever.
    All,
    /// Nothing, until it says something itself.
    Nothing,
    /// That the connection is reset.
    Reset,
    /// That there is no more.
    End,
}

/// Sends back what it reads, and says at last in a file how it ended; sends a byte if it is asked to by another one.
fn outside(mut stream: &TcpStream, name: &str) {
    let say = |what: &str| {
        std::fs::write(zdtm::dir().join(name), what).expect("the directory of the case");
    };
    let poke = zdtm::dir().join(format!("{name}.poke"));
    let pause = Some(Duration::from_millis(20));
    stream.set_read_timeout(pause).expect("a time");
    let mut room = [0; 4096];
    loop {
        match stream.read(&mut room) {
            Ok(0) => return say("end"),
            Ok(length) => stream.write_all(&room[..length]).expect("somebody reads"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if std::fs::remove_file(&poke).is_ok() && stream.write_all(b"?").is_err() {
                    return say("gone");
                }
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return say("reset"),
            Err(error) => return say(&error.to_string()),
        }
    }
}

/// Somebody who sends back what is said, on one connection.
fn other_end(address: &str) -> Result<(Outsider, SocketAddr)> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    let outsider = Outsider::start(|ready| {
        ready();
        let (stream, _) = listener.accept().expect("a connection");
        outside(&stream, &address.ip().to_string());
    })?;
    Ok((outsider, address))
}

/// What has been heard within some seconds.
fn heard(name: &str) -> Result<String> {
    let path = zdtm::dir().join(name);
    for _ in 0..1000 {
        match std::fs::read_to_string(&path) {
            Ok(text) if !text.is_empty() => return Ok(text),
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    zdtm::bail!("{name} has heard nothing")
}

/// How the connection is afterwards, at both ends.
fn check_ends(mut stream: &TcpStream, name: &str, wanted: Heard) -> Result<()> {
    if wanted == Heard::All || stream.peer_addr().is_ok() {
        // It was kept, or left running.
        return talk(stream, 2);
    }
    check_eq!(stream.read(&mut [0; 1])?, 0);
    let failed = stream.write(b"x").expect_err("nobody is there");
    check_eq!(failed.kind(), ErrorKind::BrokenPipe);
    match wanted {
        Heard::Reset => check_eq!(heard(name)?, "reset"),
        Heard::End => check_eq!(heard(name)?, "end"),
        Heard::Nothing | Heard::All => {
            std::thread::sleep(Duration::from_millis(300));
            check!(!zdtm::dir().join(name).exists(), "{}", heard(name)?);
            std::fs::write(zdtm::dir().join(format!("{name}.poke")), "")?;
            check_eq!(heard(name)?, "reset");
        }
    }
    Ok(())
}

/// Talks, and confirms all that was heard: whoever has something unconfirmed says it again by itself.
fn talk_to_the_end(stream: &TcpStream) -> Result<()> {
    talk(stream, 1)?;
    let on: libc::c_int = 1;
    // SAFETY: the option is an int.
    ret(unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_TCP,
            libc::TCP_QUICKACK,
            (&raw const on).cast(),
            4,
        )
    })?;
    Ok(())
}

fn client(address: &str, wanted: Heard) -> Result<()> {
    let (_outsider, end) = other_end(&format!("{address}:0"))?;
    let stream = TcpStream::connect(end)?;
    talk_to_the_end(&stream)?;
    zdtm::checkpoint()?;
    check_ends(&stream, address, wanted)
}

/// Who listens goes on listening; those it has accepted end, and those it has not accepted.
fn server() -> Result<()> {
    let listener = TcpListener::bind("127.0.77.4:0")?;
    let address = listener.local_addr()?;
    let ours = listener.as_raw_fd();
    let _outsider = Outsider::start(|ready| {
        nix::unistd::close(ours).expect("a copy of the listener");
        let first = TcpStream::connect(address).expect("listening");
        let second = TcpStream::connect(address).expect("listening");
        ready();
        let others = std::thread::spawn(move || outside(&second, "second"));
        outside(&first, "first");
        others.join().expect("no panic");
        let mut again = loop {
            match TcpStream::connect(address) {
                Ok(again) => break again,
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        again.write_all(b"again").expect("somebody reads");
        std::thread::sleep(Duration::from_secs(60));
    })?;
    let (stream, _) = listener.accept()?;
    talk(&stream, 1)?;
    zdtm::checkpoint()?;
    if stream.peer_addr().is_ok() {
        // It was left running, and nobody is forgotten.
        talk(&stream, 2)?;
        return talk_back(&listener.accept()?.0);
    }
    check_ends(&stream, "first", Heard::End)?;
    check_eq!(heard("second")?, "reset");
    let (mut again, _) = listener.accept()?;
    let mut said = [0; 5];
    again.read_exact(&mut said)?;
    check_eq!(&said, b"again");
    Ok(())
}

fn talk_back(mut stream: &TcpStream) -> Result<()> {
    stream.write_all(b"hello")?;
    let mut heard = [0; 5];
    stream.read_exact(&mut heard)?;
    check_eq!(&heard, b"hello");
    Ok(())
}

/// One of each, at the same time.
fn mixed() -> Result<()> {
    let (_kept, kept) = other_end("127.0.77.1:0")?;
    let (_closed, closed) = other_end("127.0.77.2:0")?;
    let (_ended, ended) = other_end("127.0.77.3:4778")?;
    let [kept, closed, ended] = [kept, closed, ended].map(TcpStream::connect);
    let (kept, closed, ended) = (kept?, closed?, ended?);
    for stream in [&kept, &closed, &ended] {
        talk_to_the_end(stream)?;
    }
    zdtm::checkpoint()?;
    check_ends(&kept, "127.0.77.1", Heard::All)?;
    check_ends(&closed, "127.0.77.2", Heard::Nothing)?;
    check_ends(&ended, "127.0.77.3", Heard::End)
}
