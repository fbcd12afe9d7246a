//! Who is to be told of the next message of a POSIX queue: mq_notify(3).
//!
//! The queue says who that is and by which signal, but the value that comes with the signal is told to nobody but the process,
//! with the signal. So it is told: one batch in the process itself empties the queue, sends a message, takes
//! message and signal out again, puts back what was there, and asks to be told as before. A batch goes on to its end
//! even if the tracer is killed in the middle of it, and nobody else runs meanwhile. Everybody outside of the tree who has the queue open
//! might see the message: then it is refused.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use criu_image::pb;
use criu_kind::{Error, Inode, Result, Subject, Within};
use criu_proc::ProcDir;
use criu_tracee::stat::fstatat;
use criu_tracee::{Parcel, Program, SigInfo, Site as _, Tracee};
use nix::unistd::Pid;

use crate::turn_over::{Cells, TurnOver, event, int};

/// How one is told: `SIGEV_SIGNAL`, not at all, and through a netlink(7) socket.
const SIGNAL: u32 = 0;
const NONE: u32 = 1;
const THREAD: u32 = 2;
/// What all messages of a queue may need in one batch, and each beside its text.
const ROOM: usize = 110 << 10;
const RECORDS: usize = 512;
/// Signals of one number that may wait already.
const QUEUED: usize = 16;
/// Whom a queue is to tell, as its file says: `QSIZE:0 NOTIFY:0 SIGNO:10 NOTIFY_PID:4711`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    how: u32,
    signal: u32,
    pid: Pid,
}

impl Told {
    /// Of an open queue; `None`: nobody.
    pub(crate) fn of(queue: &File) -> Result<Option<Self>> {
        let mut status = [0; 256];
        let length = queue
            .read_at(&mut status, 0)
            .map_err(Error::io("read(mqueue)"))?;
        Self::parse(&String::from_utf8_lossy(&status[..length]))
    }

    fn parse(status: &str) -> Result<Option<Self>> {
        let field = |name| {
            let words = status.split_once(name).map(|(_, rest)| rest);
            let word = words.and_then(|rest| rest.split_whitespace().next());
            let number = word.and_then(|word| word.parse::<u32>().ok());
            number.ok_or_else(|| Error::corrupt("mqueue", format!("no {name} in {status:?}")))
        };
        let pid = field("NOTIFY_PID:")?;
        let told = Self {
            how: field("NOTIFY:")?,
            signal: field("SIGNO:")?,
            pid: Pid::from_raw(pid.cast_signed()),
        };
        Ok((pid != 0).then_some(told))
    }

    /// Whether it is told anything that has a value.
    fn is_signal(&self) -> bool {
        self.how == SIGNAL && self.signal != 0
    }

    /// What cannot be kept.
    fn check(&self, (size, count): (usize, usize)) -> Result<()> {
        const CANCEL: &str = "let the task call mq_notify(queue, NULL) before the dump";
        const STOPS: [i32; 6] = [
            libc::SIGKILL,
            libc::SIGSTOP,
            libc::SIGCONT,
            libc::SIGTSTP,
            libc::SIGTTIN,
            libc::SIGTTOU,
        ];
        let (pid, signal) = (self.pid, self.signal);
        if self.how == THREAD {
            let why = format!(
                "it is to tell task {pid} of its next message through a netlink socket (SIGEV_THREAD), and which one nobody tells"
            );
            return Err(Error::unsupported(why, CANCEL));
        }
        if self.how > THREAD {
            let why = format!(
                "it is to tell task {pid} of its next message in a way {} that is not known",
                self.how
            );
            return Err(Error::unsupported(why, CANCEL));
        }
        if self.is_signal() && STOPS.contains(&signal.cast_signed()) {
            let why = format!(
                "it is to send task {pid} signal {signal} with its next message, and with which value is only known when it does"
            );
            return Err(Error::unsupported(why, CANCEL));
        }
        let touched = self.is_signal() || count > 0;
        let need = size
            .saturating_add(RECORDS)
            .saturating_mul(count.saturating_add(1));
        if touched && need > ROOM {
            let why = format!(
                "it is to tell task {pid} of its next message, and {count} messages of up to {size} bytes are too many to be taken out at once"
            );
            return Err(Error::unsupported(why, CANCEL));
        }
        Ok(())
    }
}

/// A queue of which a process asked to be told.
#[derive(Debug)]
struct Wish {
    told: Told,
    inode: Inode,
    name: String,
    queue: File,
    size: usize,
    count: usize,
}

/// What was found out of a queue in its process.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) pid: Pid,
    /// A descriptor of it in the process.
    pub(crate) fd: i32,
    pub(crate) how: u32,
    pub(crate) signal: u32,
    pub(crate) value: u64,
    pub(crate) messages: Vec<pb::MqueueMessage>,
}

/// The queues of a dump that are to tell processes of it of their next messages. The driver lends this to the walker of files,
/// and [asks](Notifications::ask) the processes before that is finished.
#[derive(Debug, Default)]
pub struct Notifications {
    wishes: RefCell<Vec<Wish>>,
    answers: RefCell<HashMap<u64, Answer>>,
}

impl Notifications {
    /// Whether anybody has to be asked.
    pub fn asks(&self, pid: Pid) -> bool {
        self.wishes.borrow().iter().any(|wish| wish.told.pid == pid)
    }

    /// Finds out what a process of the tree asked for. It has asked for the same afterwards, and what was in its
    /// queues is in them again.
    pub fn ask(&self, tracee: &mut Tracee) -> Result<()> {
        let pid = tracee.pid();
        for wish in self.wishes.borrow().iter() {
            if wish.told.pid == pid {
                let answer = wish.ask(tracee);
                let answer = answer
                    .within(|| Subject::Object(format!("POSIX message queue {}", wish.name)))?;
                self.answers.borrow_mut().insert(wish.inode.ino, answer);
            }
        }
        Ok(())
    }

    pub(crate) fn answer(&self, ino: u64) -> Option<Answer> {
        self.answers.borrow().get(&ino).cloned()
    }

    /// Takes in a queue, open for both and without waiting, with the size and the count of its messages.
    pub(crate) fn add(
        &self,
        told: Told,
        (inode, name): (Inode, String),
        queue: File,
        (size, count): (u64, u64),
        tree: &[Pid],
    ) -> Result<()> {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if !tree.contains(&told.pid) {
            let why = format!(
                "it is to tell task {} of its next message, which is not of the tree",
                told.pid
            );
            return Err(Error::unsupported(
                why,
                "let that task call mq_notify(queue, NULL), or dump it too",
            ));
        }
        told.check((size, count))?;
        let touched = told.is_signal() || count > 0;
        if let Some(pid) = touched
            .then(|| outsider(&inode, tree))
            .transpose()?
            .flatten()
        {
            let why = format!(
                "it is to tell task {} of its next message, and task {pid}, which is not of the tree, has it open too",
                told.pid
            );
            return Err(Error::unsupported(
                why,
                "let that task close it, or dump it too",
            ));
        }
        self.wishes.borrow_mut().push(Wish {
            told,
            inode,
            name,
            queue,
            size,
            count,
        });
        Ok(())
    }
}

/// The first process outside of the tree that has a file open.
fn outsider(inode: &Inode, tree: &[Pid]) -> Result<Option<Pid>> {
    let own = Pid::this();
    for entry in std::fs::read_dir("/proc").map_err(Error::io("getdents64"))? {
        let name = entry.map_err(Error::io("getdents64"))?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.map(Pid::from_raw) else {
            continue;
        };
        // Who ends meanwhile has nothing open, and who may not be looked at is none of ours.
        if pid != own && !tree.contains(&pid) && number_in(pid, inode).is_ok_and(|fd| fd.is_some())
        {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// The first descriptor by which a process has a file open.
fn number_in(pid: Pid, inode: &Inode) -> Result<Option<i32>> {
    let proc = ProcDir::open(pid)?;
    let is_it = |fd: &i32| {
        let stat = fstatat(&proc, Path::new(&format!("fd/{fd}")), 0);
        stat.is_ok_and(|stat| Inode::from(&stat).is(inode))
    };
    Ok(proc.fds()?.into_iter().find(is_it))
}

impl Wish {
    fn ask(&self, tracee: &mut Tracee) -> Result<Answer> {
        let Told { how, signal, pid } = self.told;
        let outside = |what| {
            let why = format!("somebody outside of the tree {what} messages");
            Error::unsupported(why, "stop that, or dump it too")
        };
        if Told::of(&self.queue)? != Some(self.told) {
            return Err(outside("sends it"));
        }
        let fd = number_in(pid, &self.inode)?.ok_or(Error::Gone(pid))?;
        let mut answer = Answer {
            pid,
            fd,
            how,
            signal,
            value: 0,
            messages: Vec::new(),
        };
        if !self.told.is_signal() && self.count == 0 {
            return Ok(answer);
        }
        let queued = if self.told.is_signal() {
            self.queued(tracee)?
        } else {
            0
        };
        let parcel = Parcel::send(tracee, self.queue.as_fd())?;
        let parcel = parcel.ok_or_else(no_descriptor)?;
        let all = TurnOver {
            own: fd,
            count: self.count,
            size: self.size,
            how,
            signal: self.told.is_signal().then_some(signal),
            queued,
        };
        // What the calls read when they are made lies where the same batch has it.
        let cells = match all.batch(&parcel, &Cells::default()).cells(tracee) {
            Ok(cells) => cells,
            Err(error) => {
                parcel.withdraw(tracee)?;
                return Err(error);
            }
        };
        let batch = all.batch(&parcel, &cells);
        let outcome = tracee.run(&batch.program)?;
        tracee.set_undo(None)?;
        if batch.taken(&outcome) < 0 {
            return Err(no_descriptor());
        }
        if batch
            .messages
            .iter()
            .any(|one| outcome.get(one.got).is_err())
        {
            return Err(outside("takes its"));
        }
        for one in &batch.messages {
            let sent = outcome.get(one.sent);
            sent.map_err(Error::kernel("mq_timedsend"))?;
            let length = usize::try_from(outcome.value(one.got)).unwrap_or(0);
            answer.messages.push(pb::MqueueMessage {
                priority: int(outcome.bytes(one.priority), 0),
                text: outcome.bytes(one.text)[..length].to_vec(),
            });
        }
        if let Some(probe) = &batch.probe {
            outcome
                .get(probe.sent)
                .map_err(Error::kernel("mq_timedsend"))?;
            outcome.get(probe.got).map_err(|_| outside("takes its"))?;
        }
        outcome
            .get(batch.asked)
            .map_err(Error::kernel("mq_notify"))?;
        match batch.probe.as_ref().map(|probe| probe.value(&outcome)) {
            Some(Some(value)) => answer.value = value,
            Some(None) => {
                // It was asked for by a program that the process does not run any more, which the kernel knows: the signal
                // does not come, but nobody else may ask.
                answer.how = NONE;
                let mut program = Program::new();
                program.mq_notify(fd, 0);
                let event = program.bytes(event(NONE, 0, 0));
                program.mq_notify(fd, event);
                tracee.run(&program)?;
            }
            None => {}
        }
        Ok(answer)
    }

    /// How many signals of this number wait already: they come out before ours.
    fn queued(&self, tracee: &mut Tracee) -> Result<usize> {
        let signal = self.told.signal.cast_signed();
        let refused = |why: &str| {
            let why = format!(
                "it is to send task {} signal {signal} with its next message, but {why}",
                self.told.pid
            );
            Err(Error::unsupported(
                why,
                "let the task take its signals before the dump",
            ))
        };
        let status = ProcDir::open(tracee.pid())?.status()?;
        let (waiting, most) = status.sig_queue;
        if waiting + 1 >= most {
            return refused("no more signals can be queued for its user");
        }
        let leader = tracee.threads()[0].stopped()?;
        if status.sig_pending.contains(self.told.signal) {
            return refused("such signals wait for its first thread alone");
        }
        let queued = leader.queued(true)?;
        let queued: Vec<&SigInfo> = queued
            .iter()
            .filter(|info| info.signal() == signal)
            .collect();
        if queued.iter().any(|info| info.code() == libc::SI_TIMER) {
            return refused("one of a timer waits, which cannot be put back");
        }
        if queued.len() > QUEUED {
            return refused("too many such signals wait already");
        }
        if !tracee.close_with_other(signal)? {
            return refused("nothing else can end what is run in it");
        }
        // One for which there was no room in the queue is pending all the same.
        let pending = usize::from(status.shared_pending.contains(self.told.signal));
        Ok(queued.len().max(pending))
    }
}

fn no_descriptor() -> Error {
    Error::unsupported(
        "the process cannot be given a descriptor of it",
        "let it close a descriptor, or raise its RLIMIT_NOFILE",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: Told = Told {
        how: SIGNAL,
        signal: 10,
        pid: Pid::from_raw(4711),
    };

    #[test]
    fn what_a_queue_says_of_itself() {
        let told = |text: &str| Told::parse(text).expect("a status");
        let status = "QSIZE:5          NOTIFY:0     SIGNO:10    NOTIFY_PID:4711  \n";
        assert_eq!(told(status), Some(TOLD));
        let nobody = "QSIZE:0          NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n";
        assert_eq!(told(nobody), None);
        assert!(Told::parse("QSIZE:0").is_err());
    }

    #[test]
    fn what_cannot_be_kept() {
        let checked = |how, signal, size, count| {
            let told = Told {
                how,
                signal,
                ..TOLD
            };
            told.check((size, count)).map_err(|error| error.to_string())
        };
        assert_eq!(checked(SIGNAL, 10, 8192, 10), Ok(()));
        assert_eq!(checked(NONE, 0, 1 << 20, 0), Ok(()));
        let thread = checked(THREAD, 0, 8192, 0).expect_err("a socket");
        assert!(thread.contains("SIGEV_THREAD"), "{thread}");
        let stop = checked(SIGNAL, 19, 8192, 0).expect_err("it would stop");
        assert!(stop.contains("signal 19"), "{stop}");
        let many = checked(NONE, 0, 8192, 100).expect_err("too many");
        assert!(many.contains("100 messages of up to 8192 bytes"), "{many}");
    }
}
