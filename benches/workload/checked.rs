//! A program that looks at its own state all the time: four threads, three children of two threads each.
//!
//! Every task has a line in the file `diary`: its name, how often it has looked, and what it found. What is looked at:
//! memory of its own, memory that a child shares with its parent until somebody writes, memory shared for good,
//! floating-point registers, sleeps that must not end early, reads that must not fail, descriptors and what waits in
//! them, semaphores of System V, what has a name in a file system (`named.rs`). When there is a file `finish` it looks at everything once more, ends, and leaves a file `finished`.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use criu_tracee::{Local, Program, Site};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use zdtm::{Child, Mapping};

use crate::named::Named;

const CHILDREN: usize = 3;
/// Threads of the root beside its leader.
const THREADS: usize = 3;
const MEMORY: usize = 8 << 20;
/// How much of it is looked at in one go.
const STRIPE: usize = 256 << 10;
const PENDING: usize = 1000;
const OFFSET: u64 = 1234;
const COUNTER: u64 = 77;
// `include/uapi/linux/{ipc,sem}.h`.
const IPC_CREAT: i32 = 0o1000;
const GETVAL: i32 = 12;
const SETVAL: i32 = 16;
/// In place of a tick: look once more, and end.
const FINISH: u64 = u64::MAX;
/// Bytes of a line of the diary.
const LINE: usize = 128;

/// Runs until it is told to finish, or for ever if it finds something wrong.
pub(crate) fn run() -> anyhow::Result<()> {
    let diary = Arc::new(File::create("diary")?);
    let inherited = pattern(1)?;
    let shared = Mapping::shared(4096)?;
    let mut children = Vec::new();
    for index in 0..CHILDREN {
        let (from_parent, to_child) = nix::unistd::pipe()?;
        let (from_child, to_parent) = nix::unistd::pipe()?;
        let own = Arc::clone(&diary);
        let child = Child::spawn(format!("child {index}"), || {
            child(index, own, (from_parent, to_parent), (inherited, shared))
        })?;
        children.push((child, from_child, to_child));
    }
    let state = State::new(inherited, 1)?;
    let semaphores = Semaphores::new()?;
    let named = Named::new()?;
    let over = Arc::new(AtomicBool::new(false));
    let mut threads = vec![spawn(&diary, 1, "sleeper", &over, sleeper)];
    threads.push(spawn(&diary, 2, "floats", &over, floats()));
    let (ask, asked) = sync_channel(0);
    let (answer, answered) = sync_channel(0);
    threads.push(spawn(&diary, 3, "echo", &over, echo(asked, answer)));
    crate::ready()?;
    let own = Arc::clone(&diary);
    live(&own, 0, "root", |tick| {
        state.look(tick)?;
        semaphores.look()?;
        named.look()?;
        for (index, (_, from, to)) in children.iter().enumerate() {
            put(to, tick)?;
            ensure!(get(from)? == tick, "child {index} answers something else");
            let count = shared.words()[index].load(Ordering::SeqCst);
            ensure!(u64::from(count) == tick, "child {index} counted {count}");
        }
        // A rendezvous with another thread: two futexes.
        ask.send(tick)?;
        ensure!(answered.recv()? == tick, "a thread answers something else");
        std::thread::sleep(Duration::from_millis(1));
        Ok(!Path::new("finish").exists())
    });
    over.store(true, Ordering::SeqCst);
    drop((ask, answered));
    for thread in threads {
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
    }
    for (_, _, to) in &children {
        put(to, FINISH)?;
    }
    for (child, ..) in children {
        child.join()?;
    }
    state.look_at_all()?;
    named.look_at_all()?;
    std::fs::write("finished.new", "ok")?;
    std::fs::rename("finished.new", "finished")?;
    Ok(())
}

fn child(
    index: usize,
    diary: Arc<File>,
    (from, to): (OwnedFd, OwnedFd),
    (inherited, shared): (Mapping, Mapping),
) -> anyhow::Result<()> {
    let seed = index as u64 + 2;
    let state = State::new(pattern(seed)?, seed)?;
    let over = Arc::new(AtomicBool::new(false));
    let slot = 1 + THREADS + 2 * index;
    let thread = spawn(&diary, slot + 1, "poller", &over, poller()?);
    Child::set_up();
    live(&diary, slot, "child", |tick| {
        let asked = get(&from)?;
        if asked == FINISH {
            return Ok(false);
        }
        ensure!(asked == tick, "tick {tick}, but the parent is at {asked}");
        state.look(tick)?;
        look(&inherited, 1, tick)?;
        shared.words()[index].fetch_add(1, Ordering::SeqCst);
        put(&to, tick)?;
        Ok(true)
    });
    over.store(true, Ordering::SeqCst);
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("the thread panicked"))?;
    state.look_at_all()
}

/// Memory and descriptors of one process.
struct State {
    memory: Mapping,
    seed: u64,
    file: File,
    event: EventFd,
    pending: OwnedFd,
    _writer: OwnedFd,
}

impl State {
    fn new(memory: Mapping, seed: u64) -> anyhow::Result<Self> {
        let mut file = File::create(format!("file-{seed}"))?;
        file.seek(SeekFrom::Start(OFFSET))?;
        let (pending, writer) = nix::unistd::pipe()?;
        let mut bytes = [0; PENDING];
        zdtm::fill(&mut bytes, seed);
        nix::unistd::write(&writer, &bytes)?;
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK)?;
        event.write(COUNTER)?;
        Ok(Self {
            memory,
            seed,
            file,
            event,
            pending,
            _writer: writer,
        })
    }

    /// Looks at a part; at all of it in turn.
    fn look(&self, tick: u64) -> anyhow::Result<()> {
        look(&self.memory, self.seed, tick)?;
        let offset = (&self.file).stream_position()?;
        ensure!(offset == OFFSET, "the file is at {offset}");
        let mut waits = [PollFd::new(self.pending.as_fd(), PollFlags::POLLIN)];
        ensure!(
            poll(&mut waits, PollTimeout::ZERO)? == 1,
            "the pipe is empty"
        );
        Ok(())
    }

    fn look_at_all(&self) -> anyhow::Result<()> {
        for stripe in 0..MEMORY / STRIPE {
            look(&self.memory, self.seed, stripe as u64)?;
        }
        let mut bytes = [0; PENDING + 1];
        let count = nix::unistd::read(&self.pending, &mut bytes)?;
        ensure!(count == PENDING, "{count} bytes were in the pipe");
        zdtm::verify(&bytes[..PENDING], self.seed)?;
        let counter = self.event.read()?;
        ensure!(counter == COUNTER, "the event counter is {counter}");
        Ok(())
    }
}

/// A set of semaphores, which outlives the process.
struct Semaphores(i64);

impl Semaphores {
    fn new() -> anyhow::Result<Self> {
        let mut program = Program::new();
        let set = program.semget(0, 1, 0o600 | IPC_CREAT);
        program.semctl(set, 0, SETVAL, COUNTER);
        // Whoever has operated it last uses it.
        let plus_one: [u16; 3] = [0, 1, 0];
        let operation = program.bytes(plus_one.map(u16::to_ne_bytes).concat());
        program.semop(set, operation, 1);
        Ok(Self(Local.run(&program)?.get(set)?))
    }

    fn look(&self) -> anyhow::Result<()> {
        let mut program = Program::new();
        let value = program.semctl(self.0, 0, GETVAL, 0);
        let value = Local.run(&program)?.value(value);
        ensure!(value == COUNTER as i64 + 1, "a semaphore is at {value}");
        Ok(())
    }
}

fn pattern(seed: u64) -> anyhow::Result<Mapping> {
    let memory = Mapping::anonymous(MEMORY)?;
    for (stripe, bytes) in memory.bytes().chunks_mut(STRIPE).enumerate() {
        zdtm::fill(bytes, (seed << 32) + stripe as u64);
    }
    Ok(memory)
}

fn look(memory: &Mapping, seed: u64, tick: u64) -> anyhow::Result<()> {
    let stripe = tick % (MEMORY / STRIPE) as u64;
    let offset = usize::try_from(stripe)? * STRIPE;
    zdtm::verify(memory.part(offset, STRIPE).bytes(), (seed << 32) + stripe)
}

/// Does and notes a step again and again, until one says that it was the last. Stays at one that fails.
fn live(diary: &File, slot: usize, name: &str, mut step: impl FnMut(u64) -> anyhow::Result<bool>) {
    for tick in 1.. {
        let outcome = step(tick);
        let verdict = match &outcome {
            Ok(_) => "ok".to_owned(),
            Err(error) => format!("WRONG {error:#}"),
        };
        let mut line = format!("{name}-{slot} {tick} {verdict}").replace('\n', " ");
        line.truncate(LINE - 1);
        let line = format!("{line:<width$}\n", width = LINE - 1);
        // Without a diary the observer sees that nothing goes on.
        let _ = diary.write_all_at(line.as_bytes(), (slot * LINE) as u64);
        match outcome {
            Ok(true) => {}
            Ok(false) => return,
            Err(_) => crate::sleep(),
        }
    }
}

fn spawn(
    diary: &Arc<File>,
    slot: usize,
    name: &'static str,
    over: &Arc<AtomicBool>,
    mut step: impl FnMut(u64) -> anyhow::Result<()> + Send + 'static,
) -> std::thread::JoinHandle<()> {
    let (diary, over) = (Arc::clone(diary), Arc::clone(over));
    std::thread::spawn(move || {
        live(&diary, slot, name, |tick| {
            if over.load(Ordering::SeqCst) {
                return Ok(false);
            }
            step(tick).map(|()| true)
        });
    })
}

fn sleeper(_: u64) -> anyhow::Result<()> {
    let (start, long) = (Instant::now(), Duration::from_millis(3));
    std::thread::sleep(long);
    ensure!(start.elapsed() >= long, "a sleep ended early");
    Ok(())
}

/// A sum that is kept in vector registers, and must come out the same every time.
fn floats() -> impl FnMut(u64) -> anyhow::Result<()> {
    fn sum() -> [f64; 8] {
        let mut lanes: [f64; 8] = std::array::from_fn(|lane| lane as f64 + 0.1);
        for _ in 0..100_000 {
            lanes = lanes.map(|value| value * 1.000_000_1 + 0.000_3);
        }
        lanes
    }
    let expected = sum();
    move |_| {
        ensure!(sum() == expected, "floating point gives something else");
        std::thread::sleep(Duration::from_micros(500));
        Ok(())
    }
}

/// Answers until nobody asks any more.
fn echo(asked: Receiver<u64>, answer: SyncSender<u64>) -> impl FnMut(u64) -> anyhow::Result<()> {
    move |tick| {
        // The other side hangs up at the end, before the flag is looked at again.
        let Ok(number) = asked.recv() else {
            return Ok(());
        };
        ensure!(number == tick, "asked {number}, should be {tick}");
        // Who asked and has ended wants no answer; who has not finds it missing.
        let _ = answer.send(number);
        Ok(())
    }
}

/// Polls a descriptor that nothing comes from. EINTR is right: poll(2) with a timeout is restarted by what the kernel
/// remembers of it, which no image can hold.
fn poller() -> anyhow::Result<impl FnMut(u64) -> anyhow::Result<()>> {
    let quiet = EventFd::from_value_and_flags(0, EfdFlags::empty())?;
    Ok(move |_| {
        let mut waits = [PollFd::new(quiet.as_fd(), PollFlags::POLLIN)];
        let events = match poll(&mut waits, 2u8) {
            Err(Errno::EINTR) => 0,
            other => other.context("poll")?,
        };
        ensure!(events == 0, "an event came out of nowhere");
        Ok(())
    })
}

fn put(to: &OwnedFd, number: u64) -> anyhow::Result<()> {
    let count = nix::unistd::write(to, &number.to_ne_bytes()).context("write")?;
    ensure!(count == 8, "wrote {count} bytes");
    Ok(())
}

fn get(from: &OwnedFd) -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    let count = nix::unistd::read(from, &mut bytes).context("read")?;
    ensure!(count == 8, "read {count} bytes");
    Ok(u64::from_ne_bytes(bytes))
}
