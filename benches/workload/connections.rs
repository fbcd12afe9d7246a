//! TCP connections with somebody outside of the tree.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What is sent on every tenth of them, in both directions, and not read.
const SENT: [u8; 1000] = [7; 1000];

fn make_room() -> anyhow::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

fn start(verb: &str, count: usize) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(verb).arg(count.to_string());
    command.stdin(Stdio::null());
    Ok(command)
}

/// So many, all of one process; on every tenth something is under way.
pub(crate) fn run(count: usize) -> anyhow::Result<()> {
    make_room()?;
    // Its child has lost its parent then, and is nobody of ours.
    let status = start("usher", count)?.status()?;
    ensure!(status.success(), "nobody to talk to: {status}");
    let port = std::fs::read_to_string("port")?;
    let address = format!("127.0.0.1:{port}");
    for number in 0..count {
        let mut stream =
            TcpStream::connect(&address).with_context(|| format!("connection {number}"))?;
        if number % 10 == 0 {
            stream.write_all(&SENT)?;
        }
        // Kept open as long as the process lives.
        std::mem::forget(stream);
    }
    wait_for("accepted")?;
    crate::ready()?;
    crate::sleep()
}

/// Starts the other side, and ends.
pub(crate) fn usher(count: usize) -> anyhow::Result<()> {
    start("other-side", count)?.spawn()?;
    wait_for("port")
}

/// Accepts so many.
pub(crate) fn other_side(count: usize) -> anyhow::Result<()> {
    make_room()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    say("other-side", &std::process::id().to_string())?;
    say("port", &listener.local_addr()?.port().to_string())?;
    for number in 0..count {
        let (mut stream, _) = listener.accept()?;
        if number % 10 == 0 {
            stream.write_all(&SENT)?;
        }
        std::mem::forget(stream);
    }
    say("accepted", "")?;
    crate::sleep()
}

fn say(name: &str, text: &str) -> anyhow::Result<()> {
    let new = format!("{name}.new");
    std::fs::write(&new, text)?;
    Ok(std::fs::rename(new, name)?)
}

fn wait_for(name: &str) -> anyhow::Result<()> {
    for _ in 0..60_000 {
        if Path::new(name).exists() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    anyhow::bail!("no {name}")
}
