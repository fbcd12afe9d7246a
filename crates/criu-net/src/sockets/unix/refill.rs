//! What waited in sockets, sent again.

use std::collections::{BTreeMap, HashMap};

use criu_image::id::FileId;
use criu_image::{Bytes, Store, StoreExt, desc, pb};
use criu_kind::{Error, RestoreCx, Result};
use criu_tracee::Program;
use nix::errno::Errno;

use crate::sockets::message::{Message, set};

/// Room for any queue: the kernel doubles it.
const ROOM: u32 = 1 << 29;

/// A packet of the images.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) data: Bytes,
    pub(crate) rights: Vec<FileId>,
    pub(crate) creds: Option<pb::UcredEntry>,
    pub(crate) sender: Vec<u8>,
}

/// All packets, by the socket they wait in.
#[derive(Debug, Default)]
pub(crate) struct Queues(BTreeMap<u32, Vec<Saved>>);

impl Queues {
    /// Reads them.
    pub(crate) fn load(store: &dyn Store) -> Result<Self> {
        let mut queues = Self::default();
        let packets = store.entries::<pb::SkPacketEntry>(desc::SK_QUEUES, ())?;
        for packet in packets.unwrap_or_default() {
            let (entry, data) = (packet.message, packet.extra);
            if data.len() as u64 != u64::from(entry.length) {
                return Err(Error::corrupt(
                    "sk-queues.img",
                    format!("a packet of {} bytes has {}", entry.length, data.len()),
                ));
            }
            let mut rights = Vec::new();
            for scm in &entry.scm {
                if scm.r#type != libc::SCM_RIGHTS.unsigned_abs() {
                    return Err(Error::corrupt(
                        "sk-queues.img",
                        format!("a control message of type {}", scm.r#type),
                    ));
                }
                rights.extend(scm.rights.iter().copied().map(FileId::new));
            }
            queues.0.entry(entry.id_for).or_default().push(Saved {
                data,
                rights,
                creds: None,
                sender: Vec::new(),
            });
        }
        let exts = store.entries::<pb::FilesExtEntry>(desc::FILES_EXT, ())?;
        let exts = exts.unwrap_or_default().into_iter();
        for ext in exts.filter_map(|entry| entry.message.packet) {
            let packet = queues.0.get_mut(&ext.id_for);
            let packet = packet.and_then(|queue| queue.get_mut(ext.index as usize));
            let packet = packet.ok_or_else(|| {
                Error::corrupt(
                    "criu-rs-files.img",
                    format!("packet {} of socket {}", ext.index, ext.id_for),
                )
            })?;
            packet.creds = ext.creds;
            packet.sender = ext.sender.unwrap_or_default();
        }
        Ok(queues)
    }

    /// Those of one socket.
    pub(crate) fn of(&self, id: u32) -> &[Saved] {
        self.0.get(&id).map_or(&[], Vec::as_slice)
    }
}

/// What it takes to send.
pub(crate) struct Sender<'a> {
    /// Sockets of the group by id, open here.
    pub(crate) ours: &'a HashMap<FileId, i32>,
}

impl Sender<'_> {
    /// Sends one packet from `from`, to this address or to where it is connected.
    pub(crate) fn send(
        &self,
        cx: &mut dyn RestoreCx,
        from: i32,
        to: &[u8],
        packet: &Saved,
    ) -> Result<()> {
        let mut rights = Vec::with_capacity(packet.rights.len());
        for id in &packet.rights {
            let fd = match self.ours.get(id) {
                Some(fd) => Some(*fd),
                None => cx.file(*id)?,
            };
            rights.push(fd.ok_or_else(|| {
                Error::unsupported(
                    format!("file {id}, which only a process of the tree can open, waits in it"),
                    "let the task receive it before the dump",
                )
            })?);
        }
        let mut message = Message {
            to: to.to_vec(),
            data: &packet.data,
            rights,
            creds: packet.creds,
        };
        let send = |cx: &mut dyn RestoreCx, message: &Message<'_>| {
            let mut program = Program::new();
            let sent = message.send(from, &mut program);
            program.tolerate();
            let outcome = cx.here().run(&program)?;
            Ok::<_, Error>(outcome.get(sent))
        };
        let sent = match send(cx, &message)? {
            Err(Errno::ESRCH | Errno::EPERM) if message.creds.is_some() => {
                let pid = message.creds.take().map_or(0, |creds| creds.pid);
                tracing::warn!(
                    pid,
                    "a message that waits was signed by a process that is not there; it will be signed by nobody"
                );
                send(cx, &message)?
            }
            other => other,
        };
        let failed = |errno| match errno {
            Errno::EAGAIN => Error::unsupported(
                "more messages wait in it than a new socket takes",
                "raise the limit: sysctl net.unix.max_dgram_qlen",
            ),
            errno => Error::Kernel {
                call: "sendmsg",
                errno,
            },
        };
        sent.map_err(failed)?;
        Ok(())
    }
}

/// Makes room for any queue.
pub(crate) fn widen(cx: &mut dyn RestoreCx, fd: i32) -> Result<()> {
    let mut program = Program::new();
    set(&mut program, fd, libc::SO_SNDBUF, ROOM);
    program.tolerate();
    set(&mut program, fd, libc::SO_SNDBUFFORCE, ROOM);
    program.tolerate();
    cx.here().run(&program)?;
    Ok(())
}
