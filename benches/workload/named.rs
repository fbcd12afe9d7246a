//! What has a name in a file system, or had one: a FIFO, sockets, message queues, files.
//!
//! Names that end in `.new` must be made by a restore: whoever compares directories takes them away before.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use criu_tracee::{Local, Program, Site};
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

const TEXT: &[u8] = b"named";
/// Of `struct mq_attr`.
const WORD: usize = size_of::<usize>();

/// One of each.
pub(crate) struct Named {
    fifos: [OwnedFd; 2],
    listener: UnixListener,
    client: UnixStream,
    server: UnixStream,
    datagrams: UnixDatagram,
    hidden: UnixDatagram,
    queues: [i64; 2],
    ghosts: [File; 3],
    _directory: File,
}

impl Named {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let listener = UnixListener::bind(std::env::current_dir()?.join("listener.new"))?;
        let client = UnixStream::connect("listener.new")?;
        let (server, _) = listener.accept()?;
        let datagrams = UnixDatagram::bind("datagrams")?;
        let hidden = UnixDatagram::bind(std::env::current_dir()?.join("hidden"))?;
        std::fs::remove_file("hidden")?;
        let fifos = [fifo("fifo")?, fifo("gone-fifo")?];
        std::fs::remove_file("gone-fifo")?;
        std::fs::create_dir("gone")?;
        let ghosts = [file("ghost")?, file("gone/ghost")?, file("linked")?];
        // It has another name, and keeps that.
        std::fs::hard_link("linked", "other-name")?;
        for name in ["ghost", "gone/ghost", "linked"] {
            std::fs::remove_file(name)?;
        }
        let directory = File::open("gone")?;
        std::fs::remove_dir("gone")?;
        let queues = [queue("checked.new")?, queue("checked-gone")?];
        let mut program = Program::new();
        let name = program.cstr("checked-gone");
        program.mq_unlink(name);
        Local.run(&program)?;
        Ok(Self {
            fifos,
            listener,
            client,
            server,
            datagrams,
            hidden,
            queues,
            ghosts,
            _directory: directory,
        })
    }

    pub(crate) fn look(&self) -> anyhow::Result<()> {
        for fifo in &self.fifos {
            let mut waits = [PollFd::new(fifo.as_fd(), PollFlags::POLLIN)];
            let count = poll(&mut waits, PollTimeout::ZERO)?;
            ensure!(count == 1, "a FIFO is empty");
        }
        self.datagrams.send_to(TEXT, "datagrams")?;
        let mut bytes = [0; 10];
        let count = self.datagrams.recv(&mut bytes)?;
        ensure!(bytes[..count] == *TEXT, "a datagram is another one");
        for (file, links) in self.ghosts.iter().zip([0, 0, 1]) {
            let mut bytes = [0; TEXT.len()];
            file.read_exact_at(&mut bytes, 0)?;
            ensure!(bytes == TEXT, "an unlinked file has other content");
            // If its driver is killed a dump has lent it a name for a moment longer than we were held.
            let mut found = file.metadata()?.nlink();
            for _ in 0..200 {
                if found == links {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
                found = file.metadata()?.nlink();
            }
            ensure!(found == links, "an unlinked file has {found} names");
        }
        ensure!(Path::new("other-name").exists(), "a file has lost its name");
        for queue in self.queues {
            let mut program = Program::new();
            let room = program.room(8 * WORD);
            program.mq_getsetattr(queue, 0, room);
            let outcome = Local.run(&program)?;
            let count = outcome.bytes(room)[3 * WORD];
            ensure!(count == 1, "{count} messages are in a queue");
        }
        Ok(())
    }

    pub(crate) fn look_at_all(&self) -> anyhow::Result<()> {
        self.look()?;
        let mut bytes = [0; TEXT.len()];
        (&self.client).write_all(TEXT)?;
        (&self.server).read_exact(&mut bytes)?;
        ensure!(bytes == TEXT, "a connection brings something else");
        let _other = UnixStream::connect("listener.new")?;
        self.listener.accept()?;
        let name = self.hidden.local_addr()?;
        let name = name.as_pathname().and_then(Path::file_name);
        ensure!(
            name == Some("hidden".as_ref()),
            "a socket has the name {name:?}"
        );
        for fifo in &self.fifos {
            let count = nix::unistd::read(fifo, &mut bytes)?;
            ensure!(bytes[..count] == *TEXT, "a FIFO has other content");
        }
        Ok(())
    }
}

fn fifo(name: &str) -> anyhow::Result<OwnedFd> {
    mkfifo(name, Mode::S_IRWXU)?;
    let fifo = open(name, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::write(&fifo, TEXT)?;
    Ok(fifo)
}

fn file(name: &str) -> anyhow::Result<File> {
    let mut options = File::options();
    let mut file = options.read(true).write(true).create_new(true).open(name)?;
    file.write_all(TEXT)?;
    Ok(file)
}

fn queue(name: &str) -> anyhow::Result<i64> {
    let mut program = Program::new();
    let name = program.cstr(name);
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
    let queue = program.mq_open(name, flags.bits(), 0o600, 0);
    let text = program.bytes(TEXT);
    program.mq_timedsend(queue, text, TEXT.len(), 0, 0);
    Ok(Local.run(&program)?.get(queue)?)
}
