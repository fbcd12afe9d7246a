//! Who connects to a server while it is dumped: refused while nobody is there, but never reset.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use zdtm::{Case, Result, check};

use super::outsider::Outsider;
use super::tcp::KEEP;

pub(crate) const CASES: &[Case] = &[Case::new("tcp-newcomers", newcomers)
    .options(KEEP)
    .restless()];

static SERVED: AtomicU32 = AtomicU32::new(0);

/// Connects, says something, hears it, again and again; what breaks is left in a file.
fn visit(address: std::net::SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

fn newcomers() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let broken = zdtm::dir().join("broken");
    let copy = std::os::fd::AsRawFd::as_raw_fd(&listener);
    let _outsider = Outsider::start(|ready| {
        nix::unistd::close(copy).expect("a copy of the listener");
        ready();
        loop {
            match visit(address) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => {
                    std::fs::write(zdtm::dir().join("broken"), error.to_string())
                        .expect("the directory of the case");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    })?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut byte = [0];
            if stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {
                SERVED.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    served_since(0)?;
    zdtm::checkpoint()?;
    served_since(SERVED.load(Ordering::Relaxed))?;
    check!(!broken.exists(), "{}", std::fs::read_to_string(&broken)?);
    Ok(())
}

fn served_since(before: u32) -> Result<()> {
    for _ in 0..5000 {
        if SERVED.load(Ordering::Relaxed) > before + 10 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    zdtm::bail!("nobody is served any more")
}
