//! Brings an open file into held processes: through a socket of their own, so that neither a path nor
//! a privilege of theirs is needed.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use criu_arch::Arch;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::error::Result;
use crate::fds::{fetch_fd, pidfd_open};
use crate::native::Native;
use crate::program::{Arg, Blob, Program, Ret};
use crate::run::{Job, run_all};
use crate::site::{Outcome, Site};
use crate::tracee::Tracee;

/// Gives each process the file beside its index; returns the number it has there, or `None` where the
/// process could not take it (no free descriptor, a security module).
pub fn hand_over(
    tracees: &mut [Tracee],
    files: &[(usize, BorrowedFd<'_>)],
) -> Result<Vec<Option<i32>>> {
    let mut pairs = Vec::with_capacity(files.len());
    let pair = Pair::program();
    let jobs: Vec<Job<'_>> = files
        .iter()
        .map(|(tracee, _)| job(*tracee, &pair.program))
        .collect();
    for (tracee, _) in files {
        pair.guard(&mut tracees[*tracee])?;
    }
    for (outcome, (tracee, _)) in run_all(tracees, &jobs)?.iter().zip(files) {
        pairs.push(pair.made(&mut tracees[*tracee], outcome)?);
    }
    let mut receivers = Vec::with_capacity(files.len());
    for ((tracee, file), pair) in files.iter().zip(&pairs) {
        let sent = pair.is_some_and(|(_, sender)| send(&tracees[*tracee], sender, *file).is_some());
        receivers.push(Receiver::of(*pair, sent));
    }
    for ((tracee, _), (receiver, pair)) in files.iter().zip(receivers.iter().zip(&pairs)) {
        receiver.guard(&mut tracees[*tracee], *pair)?;
    }
    let programs = files.iter().zip(&receivers);
    let jobs: Vec<Job<'_>> = programs
        .map(|((tracee, _), got)| job(*tracee, &got.program))
        .collect();
    let outcomes = run_all(tracees, &jobs)?;
    let mut numbers = Vec::with_capacity(files.len());
    for ((receiver, outcome), (tracee, _)) in receivers.iter().zip(&outcomes).zip(files) {
        let number = receiver.number(outcome);
        let undo = number.map(|fd| closing(&[fd.into()]));
        tracees[*tracee].set_undo(undo.as_ref())?;
        numbers.push(number);
    }
    Ok(numbers)
}

/// What a process does whose tracer dies while it has descriptors of ours.
fn closing(fds: &[Arg]) -> Program {
    let mut program = Program::new();
    closes(&mut program, fds);
    program
}

fn closes(program: &mut Program, fds: &[Arg]) {
    for fd in fds {
        program.close(*fd);
        program.tolerate();
    }
}

/// No descriptor: what a cell has to hold before anybody may be told to close it.
const NONE: [u8; 16] = [0xff; 16];

/// A socket whose two ends are in a process.
struct Pair {
    program: Program,
    fds: Blob,
    made: Ret,
}

impl Pair {
    fn program() -> Self {
        let mut program = Program::new();
        // Not yet descriptors, for whoever has to close them.
        let fds = program.in_out(NONE);
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        let made = program.socketpair(libc::AF_UNIX, kind, 0, fds);
        program.tolerate();
        Self { program, fds, made }
    }

    /// What is closed if the tracer dies before it knows the numbers.
    fn guard(&self, tracee: &mut Tracee) -> Result<()> {
        if let Some(at) = tracee.address_of(&self.program, self.fds)? {
            tracee.memory().write(at, &NONE)?;
            tracee.set_undo(Some(&closing(&[Arg::Cell(at), Arg::Cell(at + 4)])))?;
        }
        Ok(())
    }

    fn made(&self, tracee: &mut Tracee, outcome: &Outcome) -> Result<Option<(i32, i32)>> {
        if outcome.get(self.made).is_err() {
            return Ok(None);
        }
        let fds = outcome.bytes(self.fds);
        let (one, other) = (int(fds, 0), int(fds, 4));
        tracee.set_undo(Some(&closing(&[one.into(), other.into()])))?;
        Ok(Some((one, other)))
    }
}

/// An open file that waits in a socket of a held process, for a program that takes it out, uses it and closes it.
#[derive(Debug)]
pub struct Parcel {
    pair: (i32, i32),
}

impl Parcel {
    /// `None` where the process could not have it. If the tracer dies, the process closes the socket.
    pub fn send(tracee: &mut Tracee, file: BorrowedFd<'_>) -> Result<Option<Self>> {
        let pair = Pair::program();
        pair.guard(tracee)?;
        let outcome = tracee.run(&pair.program)?;
        let Some(pair) = pair.made(tracee, &outcome)? else {
            return Ok(None);
        };
        let parcel = Self { pair };
        if send(tracee, pair.1, file).is_some() {
            return Ok(Some(parcel));
        }
        parcel.withdraw(tracee)?;
        Ok(None)
    }

    /// Nobody takes it out.
    pub fn withdraw(self, tracee: &mut Tracee) -> Result<()> {
        tracee.run(&closing(&[self.pair.0.into(), self.pair.1.into()]))?;
        tracee.set_undo(None)
    }

    /// Adds the calls that take the file out and close the socket. The number of the file is the word at the second of these:
    /// `-1` if none came.
    pub fn take(&self, program: &mut Program) -> (Blob, u32) {
        let control = take(program, self.pair.0);
        closes(program, &[self.pair.0.into(), self.pair.1.into()]);
        (control.1, u32::try_from(FD_AT).unwrap_or(0))
    }
}

struct Receiver {
    program: Program,
    answer: Option<(Ret, Blob)>,
}

impl Receiver {
    /// The calls that take the descriptor out of the socket and close the socket.
    fn of(pair: Option<(i32, i32)>, sent: bool) -> Self {
        let mut program = Program::new();
        let mut answer = None;
        if let Some((receiver, sender)) = pair {
            answer = sent.then(|| take(&mut program, receiver));
            closes(&mut program, &[receiver.into(), sender.into()]);
        }
        Self { program, answer }
    }

    /// What is closed if the tracer dies before it knows the number.
    fn guard(&self, tracee: &mut Tracee, pair: Option<(i32, i32)>) -> Result<()> {
        let Some((one, other)) = pair else {
            return Ok(());
        };
        let mut fds = vec![one.into(), other.into()];
        if let Some((_, control)) = self.answer
            && let Some(at) = tracee.address_of(&self.program, control)?
        {
            let at = at + FD_AT as u64;
            tracee.memory().write(at, &NONE)?;
            fds.push(Arg::Cell(at));
        }
        tracee.set_undo(Some(&closing(&fds)))
    }

    /// The descriptor that came.
    fn number(&self, outcome: &Outcome) -> Option<i32> {
        let (call, control) = self.answer?;
        let control = outcome.bytes(control);
        let came = outcome.get(call).is_ok() && word(control, 0) == FD_AT as u64 + 4;
        came.then(|| int(control, FD_AT))
    }
}

/// `struct cmsghdr`: length, level, type; then the descriptor.
const FD_AT: usize = Native::WORD + 8;

/// Adds the call that takes the descriptor out of a socket, into control data.
fn take(program: &mut Program, receiver: i32) -> (Ret, Blob) {
    let byte = program.room(8);
    let iov = program.bytes(vec![0; 2 * Native::WORD]);
    program.link(iov, 0, byte);
    program.link(iov, Native::WORD, 1);
    // No descriptor until one comes.
    let control = program.in_out(vec![0xff; FD_AT + 16]);
    // `struct msghdr`: name, its length, iov, count, control, its length, flags.
    let message = program.bytes(vec![0; 7 * Native::WORD]);
    program.link(message, 2 * Native::WORD, iov);
    program.link(message, 3 * Native::WORD, 1);
    program.link(message, 4 * Native::WORD, control);
    program.link(message, 5 * Native::WORD, FD_AT + 8);
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    let call = program.recvmsg(receiver, message, flags);
    program.tolerate();
    (call, control)
}

/// Sends the file from the process's own descriptor `sender`.
fn send(tracee: &Tracee, sender: i32, file: BorrowedFd<'_>) -> Option<()> {
    let pidfd = pidfd_open(tracee.pid()).ok()?;
    let end = fetch_fd(pidfd.as_fd(), sender).ok()??;
    let fds = [file.as_raw_fd()];
    let message = [IoSlice::new(&[0])];
    sendmsg::<()>(
        end.as_raw_fd(),
        &message,
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::MSG_DONTWAIT,
        None,
    )
    .ok()
    .map(drop)
}

fn job(tracee: usize, program: &Program) -> Job<'_> {
    Job {
        tracee,
        thread: 0,
        program,
    }
}

fn int(bytes: &[u8], at: usize) -> i32 {
    let bytes = bytes
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(-1, i32::from_ne_bytes)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    if let Some(bytes) = bytes.get(at..at + Native::WORD) {
        // Little-endian, as all machines of this project.
        word[..Native::WORD].copy_from_slice(bytes);
    }
    u64::from_le_bytes(word)
}
