//! Message queues: msgget(2).
//!
//! Messages are copied by `MSG_COPY` (Linux 3.8) and stay where they are. Not preserved: the times of the last
//! calls, and who made them: it is who restores.

use std::mem::offset_of;

use criu_image::{Bytes, pb};
use criu_kind::{Error, Result};
use criu_tracee::{Program, Site};
use nix::errno::Errno;

use crate::perm::{self, Creator, IPC_64, MODE_BITS};
use crate::sysvipc::Msg;

const MSG_COPY: i32 = 0o40000;
/// The type of a message: a long.
const TYPE: usize = size_of::<usize>();
/// Bytes of memory for one batch.
const BATCH: usize = 1 << 20;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: u64,
    pub(crate) text: Bytes,
}

/// A queue as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) row: Msg,
    pub(crate) qbytes: u32,
    pub(crate) messages: Vec<Message>,
}

/// A queue of the images.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub(crate) entry: pb::IpcMsgEntry,
    pub(crate) messages: Vec<Message>,
    pub(crate) ext: Option<pb::IpcMsgExtEntry>,
    pub(crate) there: bool,
}

/// A word of a structure that is a long.
fn long(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..at + TYPE).unwrap_or_default();
    match (
        word.try_into().map(u64::from_ne_bytes),
        word.try_into().map(u32::from_ne_bytes),
    ) {
        (Ok(word), _) => word,
        (_, Ok(word)) => word.into(),
        _ => 0,
    }
}

fn put_long(bytes: &mut [u8], at: usize, value: u64) {
    let word = value.to_ne_bytes();
    // The low half of it, whichever end that is.
    let from = if cfg!(target_endian = "big") {
        8 - TYPE
    } else {
        0
    };
    bytes[at..at + TYPE].copy_from_slice(&word[from..from + TYPE]);
}

/// Reads the limit and the messages of a queue.
pub(crate) fn read(site: &mut dyn Site, row: Msg) -> Result<Found> {
    let mut program = Program::new();
    let room = program.room(256);
    program.msgctl(row.perm.id, libc::IPC_STAT | IPC_64, room);
    let qbytes = long(
        site.run(&program)?.bytes(room),
        offset_of!(libc::msqid_ds, msg_qbytes),
    );
    let mut messages = Vec::new();
    let most = usize::try_from(row.cbytes).unwrap_or(0);
    let at_once = (BATCH / (most + TYPE)).max(1) as u64;
    let mut index = 0;
    while index < row.qnum {
        let mut program = Program::new();
        let rooms: Vec<_> = (index..row.qnum.min(index + at_once))
            .map(|index| {
                let room = program.room(TYPE + most);
                let flags = MSG_COPY | libc::IPC_NOWAIT | libc::MSG_NOERROR;
                (program.msgrcv(row.perm.id, room, most, index, flags), room)
            })
            .collect();
        let outcome = site.run(&program).map_err(without_copy)?;
        for (ret, room) in &rooms {
            let bytes = outcome.bytes(*room);
            let length = usize::try_from(outcome.value(*ret)).unwrap_or(0);
            let text = bytes.get(TYPE..TYPE + length).unwrap_or_default();
            messages.push(Message {
                kind: long(bytes, 0),
                text: Bytes::copy_from_slice(text),
            });
        }
        index += at_once;
    }
    Ok(Found {
        row,
        qbytes: u32::try_from(qbytes).unwrap_or(u32::MAX),
        messages,
    })
}

fn without_copy(error: criu_tracee::Error) -> Error {
    match error.errno() {
        Some(Errno::ENOSYS) => Error::unsupported(
            "messages cannot be copied on this kernel",
            "use a kernel with CONFIG_CHECKPOINT_RESTORE",
        ),
        Some(Errno::ENOMSG) => Error::unsupported(
            "somebody outside of the tree takes messages from it",
            "stop that, or dump it too",
        ),
        _ => error.into(),
    }
}

impl Queue {
    pub(crate) fn make(&self, site: &mut dyn Site, creator: Creator) -> Result<()> {
        let desc = &self.entry.desc;
        if self.there {
            self.empty(site)?;
        } else {
            let create = (libc::IPC_CREAT | libc::IPC_EXCL).cast_unsigned();
            let flags = desc.mode & MODE_BITS | create;
            perm::make(site, creator, "msg", desc, |program| {
                program.msgget(desc.key, flags)
            })?;
        }
        let id = perm::number(desc)?;
        let bytes: usize = self.messages.iter().map(|message| message.text.len()).sum();
        let needed = u32::try_from(bytes.max(self.messages.len() + 1)).unwrap_or(u32::MAX);
        self.limit(site, self.entry.qbytes.max(needed))?;
        if self
            .ext
            .as_ref()
            .is_some_and(|ext| ext.lspid != 0 || ext.lrpid != 0)
        {
            // Who uses it is known by this, to the next dump too.
            let mut program = Program::new();
            send(&mut program, id, 1, b"");
            let room = program.room(TYPE);
            program.msgrcv(id, room, 0, 0, libc::IPC_NOWAIT);
            site.run(&program)?;
        }
        let mut program = Program::new();
        let mut size = 0;
        for message in &self.messages {
            send(&mut program, id, message.kind, &message.text);
            size += message.text.len();
            if size > BATCH {
                site.run(&std::mem::take(&mut program))?;
                size = 0;
            }
        }
        site.run(&program)?;
        if needed > self.entry.qbytes {
            self.limit(site, self.entry.qbytes)?;
        }
        Ok(())
    }

    fn limit(&self, site: &mut dyn Site, qbytes: u32) -> Result<()> {
        let mut structure = perm::structure(&self.entry.desc);
        put_long(
            &mut structure,
            offset_of!(libc::msqid_ds, msg_qbytes),
            qbytes.into(),
        );
        let mut program = Program::new();
        let structure = program.bytes(structure);
        program.msgctl(
            perm::number(&self.entry.desc)?,
            libc::IPC_SET | IPC_64,
            structure,
        );
        match site.run(&program) {
            Ok(_) => Ok(()),
            Err(error) if error.errno() == Some(Errno::EPERM) => Err(Error::unsupported(
                format!("it may hold {qbytes} bytes, more than /proc/sys/kernel/msgmnb"),
                "raise that, or run with CAP_SYS_RESOURCE",
            )),
            Err(error) => Err(error.into()),
        }
    }

    fn empty(&self, site: &mut dyn Site) -> Result<()> {
        loop {
            let mut program = Program::new();
            let room = program.room(TYPE);
            let flags = libc::IPC_NOWAIT | libc::MSG_NOERROR;
            let ret = program.msgrcv(self.entry.desc.id, room, 0, 0, flags);
            program.tolerate();
            match site.run(&program)?.get(ret) {
                Ok(_) => {}
                Err(Errno::ENOMSG) => return Ok(()),
                Err(errno) => return Err(Error::kernel("msgrcv")(errno)),
            }
        }
    }

    /// Whether a queue that has the id is this one, as the dump has left it.
    pub(crate) fn is(&self, found: &Msg, of_tree: &dyn Fn(i32) -> bool) -> Result<()> {
        let (desc, perm) = (&self.entry.desc, &found.perm);
        let ext = self.ext.as_ref().filter(|ext| {
            ext.ctime == perm.ctime
                && desc.key == perm.key.cast_unsigned()
                && (desc.cuid, desc.cgid) == (perm.cuid, perm.cgid)
        });
        let Some(ext) = ext else {
            return Err(perm::taken(desc.id));
        };
        let before = |pid: i32, then: i64, now: i64| then == now || pid == 0 || of_tree(pid);
        let senders = before(found.lspid, ext.stime, found.stime);
        if senders && before(found.lrpid, ext.rtime, found.rtime) {
            return Ok(());
        }
        let pid = if senders { found.lrpid } else { found.lspid };
        Err(Error::unsupported(
            format!("task {pid} has used it since the dump"),
            "end that, then remove the queue with ipcrm",
        ))
    }
}

fn send(program: &mut Program, id: i32, kind: u64, text: &[u8]) {
    let mut bytes = vec![0; TYPE];
    put_long(&mut bytes, 0, kind);
    bytes.extend_from_slice(text);
    let message = program.bytes(bytes);
    program.msgsnd(id, message, text.len(), libc::IPC_NOWAIT);
}
