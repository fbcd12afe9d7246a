//! A queue is emptied and filled again by the process that is to be told of its next message, which is told in between.

use criu_kind::{Error, Result};
use criu_tracee::arch::Arch;
use criu_tracee::{Arg, Blob, Native, Outcome, Parcel, Program, Ret, SigInfo, Sysno, Tracee};

/// `sizeof(struct sigevent)`, and of `siginfo_t`.
const EVENT: usize = 64;
const INFO: usize = 128;
/// `si_value` in a `siginfo_t`: behind the sender and its user.
const VALUE: usize = Native::SIGINFO.sender + 8;
/// The highest: ours is the first to be taken out, whoever else sends one.
const PRIORITY: u32 = 32767;
/// `FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG`.
const WAKE_OP: u32 = 5 | 128;

/// What is to be done.
#[derive(Debug)]
pub(crate) struct TurnOver {
    /// The number by which the process asks again.
    pub(crate) own: i32,
    /// How many messages there are, and how large they may be.
    pub(crate) count: usize,
    pub(crate) size: usize,
    pub(crate) how: u32,
    /// The signal whose value is not known.
    pub(crate) signal: Option<u32>,
    /// How many such signals wait already.
    pub(crate) queued: usize,
}

impl TurnOver {
    /// All of it, from the first message that is taken out to the request that is renewed.
    pub(crate) fn batch(&self, parcel: &Parcel, cells: &Cells) -> Batch {
        let mut program = Program::new();
        let taken = parcel.take(&mut program);
        let (messages, probe, asked) = self.calls(&mut program, cells);
        Batch {
            program,
            taken,
            messages,
            probe,
            asked,
        }
    }

    /// The calls of the batch that are about the queue.
    fn calls(&self, program: &mut Program, cells: &Cells) -> (Vec<Taken>, Option<Probe>, Ret) {
        let queue = Arg::Cell(cells.queue);
        let mut messages = Vec::with_capacity(self.count);
        for _ in 0..self.count {
            let (text, priority) = (program.room(self.size), program.room(8));
            let got = tolerated(program, |program| {
                program.mq_timedreceive(queue, text, self.size, priority, 0)
            });
            messages.push(Taken {
                text,
                priority,
                got,
                sent: got,
            });
        }
        let probe = self.signal.map(|signal| {
            let rest = (program.room(self.size), self.size);
            Probe::add(program, queue, signal, self.queued, rest)
        });
        for (index, one) in messages.iter_mut().enumerate() {
            let priority = Arg::Cell(cells.priorities.get(index).copied().unwrap_or(0));
            // If none was got the size is none either, and nothing is sent.
            one.sent = tolerated(program, |program| {
                program.mq_timedsend(queue, one.text, one.got, priority, 0)
            });
        }
        // Whoever closes a descriptor of a queue takes back what it asked for: so it asks behind that.
        tolerated(program, |program| program.close(queue));
        let event = match &probe {
            Some(probe) => place(probe.info, VALUE),
            None => program.bytes(event(self.how, 0, 0)).into(),
        };
        let asked = tolerated(program, |program| program.mq_notify(self.own, event));
        (messages, probe, asked)
    }
}

/// A place in a blob.
fn place(blob: Blob, offset: usize) -> Arg {
    Arg::Blob(blob, u32::try_from(offset).unwrap_or(u32::MAX))
}

fn tolerated(program: &mut Program, add: impl FnOnce(&mut Program) -> Ret) -> Ret {
    let ret = add(program);
    program.tolerate();
    ret
}

/// Words that calls read when they are made.
#[derive(Default)]
pub(crate) struct Cells {
    queue: u64,
    priorities: Vec<u64>,
}

pub(crate) struct Taken {
    pub(crate) text: Blob,
    pub(crate) priority: Blob,
    pub(crate) got: Ret,
    pub(crate) sent: Ret,
}

pub(crate) struct Batch {
    pub(crate) program: Program,
    taken: (Blob, u32),
    pub(crate) messages: Vec<Taken>,
    pub(crate) probe: Option<Probe>,
    pub(crate) asked: Ret,
}

impl Batch {
    /// Where the words are that calls read. All of it must run in one go.
    pub(crate) fn cells(&self, tracee: &mut Tracee) -> Result<Cells> {
        let too_large = || {
            Error::unsupported(
                "its messages are too many to be taken out at once",
                "let the task call mq_notify(queue, NULL) before the dump",
            )
        };
        let mut at = |blob| -> Result<u64> {
            tracee
                .address_of(&self.program, blob)?
                .ok_or_else(too_large)
        };
        let queue = at(self.taken.0)? + u64::from(self.taken.1);
        let priorities = self.messages.iter().map(|one| at(one.priority));
        let priorities = priorities.collect::<Result<Vec<u64>>>()?;
        Ok(Cells { queue, priorities })
    }

    pub(crate) fn taken(&self, outcome: &Outcome) -> i32 {
        let at = self.taken.1 as usize;
        int(outcome.bytes(self.taken.0), at).cast_signed()
    }
}

/// The message that lets the signal come, and what takes both out again.
pub(crate) struct Probe {
    pub(crate) sent: Ret,
    pub(crate) got: Ret,
    came: Ret,
    info: Blob,
}

impl Probe {
    fn add(
        program: &mut Program,
        queue: Arg,
        signal: u32,
        queued: usize,
        (rest, size): (Blob, usize),
    ) -> Self {
        let bit = signal as usize - 1;
        let mut set = vec![0; Native::SIGSET];
        set[bit / 8] = 1 << (bit % 8);
        let set = program.bytes(set);
        let now = program.bytes([0; 16]);
        let wait = |program: &mut Program| {
            let info = program.room(INFO);
            let came = tolerated(program, |program| {
                program.rt_sigtimedwait(set, info, now, Native::SIGSET)
            });
            (came, info)
        };
        let before: Vec<(Ret, Blob)> = (0..queued).map(|_| wait(program)).collect();
        let text = program.bytes([0; 8]);
        let sent = tolerated(program, |program| {
            program.mq_timedsend(queue, text, 0, PRIORITY, 0)
        });
        let got = tolerated(program, |program| {
            program.mq_timedreceive(queue, rest, size, 0, 0)
        });
        let (came, info) = wait(program);
        // A `struct sigevent` begins with the value, where the kernel has put that, and goes on with the signal and how it is told: zeros
        // behind the value, of which the first becomes the signal by an operation of futex(2).
        let at = place(info, VALUE + Native::WORD);
        let set_signal = signal << 12;
        tolerated(program, |program| {
            let wake = [
                at,
                WAKE_OP.into(),
                0.into(),
                0.into(),
                at,
                set_signal.into(),
            ];
            program.call(Sysno::futex, wake)
        });
        let process = program.getpid();
        for (signal, info) in before {
            // The same signal, or none if none came.
            tolerated(program, |program| {
                program.rt_sigqueueinfo(process, signal, info)
            });
        }
        Self {
            sent,
            got,
            came,
            info,
        }
    }

    /// `None`: no signal came.
    pub(crate) fn value(&self, outcome: &Outcome) -> Option<u64> {
        outcome.get(self.came).ok()?;
        let info = outcome.bytes(self.info);
        let is_ours = SigInfo::from_bytes(info).is_some_and(|info| info.code() == libc::SI_MESGQ);
        is_ours.then(|| word(info, VALUE, Native::WORD))
    }
}

/// A `struct sigevent`.
pub(crate) fn event(how: u32, signal: u32, value: u64) -> Vec<u8> {
    let mut event = value.to_le_bytes()[..Native::WORD].to_vec();
    event.extend(signal.to_le_bytes());
    event.extend(how.to_le_bytes());
    event.resize(EVENT, 0);
    event
}

/// The number of four bytes there.
pub(crate) fn int(bytes: &[u8], at: usize) -> u32 {
    u32::try_from(word(bytes, at, 4)).unwrap_or(u32::MAX)
}

/// A number of so many bytes: all machines of this project are little-endian.
fn word(bytes: &[u8], at: usize, size: usize) -> u64 {
    let mut word = [0; 8];
    if let Some(bytes) = bytes.get(at..at + size) {
        word[..size].copy_from_slice(bytes);
    }
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use criu_tracee::{Dry, Site as _};
    use expect_test::expect;

    /// One message waits, and one such signal.
    #[test]
    fn one_batch_does_it_all() {
        let all = TurnOver {
            own: 3,
            count: 1,
            size: 16,
            how: 0,
            signal: Some(10),
            queued: 1,
        };
        let cells = Cells {
            queue: 0x1000,
            priorities: vec![0x2000],
        };
        let mut program = Program::new();
        let (_, probe, _) = all.calls(&mut program, &cells);
        let mut dry = Dry::returning(100..200);
        let outcome = dry.run(&program).expect("on paper");
        // Zeros are no answer.
        assert_eq!(probe.and_then(|probe| probe.value(&outcome)), None);
        if Native::WORD != 8 {
            return;
        }
        expect![[r#"
            $0 = mq_timedreceive(*0x1000, [16], 16, [8], 0) ?
            $1 = rt_sigtimedwait(<0002000000000000>, [128], <00000000000000000000000000000000>, 8) ?
            $2 = mq_timedsend(*0x1000, <0000000000000000>, 0, 0x7fff, 0) ?
            $3 = mq_timedreceive(*0x1000, [16], 16, 0, 0) ?
            $4 = rt_sigtimedwait(<0002000000000000>, [128], <00000000000000000000000000000000>, 8) ?
            $5 = futex([128]+32, 133, 0, 0, [128]+32, 0xa000) ?
            $6 = getpid()
            $7 = rt_sigqueueinfo($6, $1, [128]) ?
            $8 = mq_timedsend(*0x1000, [16], $0, *0x2000, 0) ?
            $9 = close(*0x1000) ?
            $10 = mq_notify(3, [128]+24) ?
        "#]]
        .assert_eq(&program.to_string());
    }
}
