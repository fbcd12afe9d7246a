//! POSIX message queues: mq_open(3).
//!
//! A queue is an inode, opened any number of times. Messages can only be taken out, so a dump takes them out and puts them
//! back: by a process of its own, which does so even if the driver is killed meanwhile. Of a queue that is to tell a process of
//! its next message (`notify.rs`) that process takes them out. Not preserved: the times of the last calls.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use criu_image::id::VPid;
use criu_image::pb;
use criu_kind::{DumpCx, Error, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result, Slot};
use criu_tracee::{Local, Name, Program, Site, sheltered};
use nix::errno::Errno;
use nix::sys::statfs::{FsType, fstatfs};

use crate::notify::{Notifications, Told};
use crate::turn_over::event;

/// `MQUEUE_MAGIC` of `ipc/mqueue.c`.
const MAGIC: FsType = FsType(0x1980_0202);
/// The size that all queues have as files: `FILENT_SIZE`.
const STATUS: u64 = 80;
/// Words of `struct mq_attr`.
const WORD: usize = size_of::<usize>();
const BATCH: usize = 64;
const MODE_BITS: u32 = 0o7777;

/// An opening of a queue.
#[derive(Debug)]
pub struct Mqueue;

impl FileKind for Mqueue {
    type Entry = pb::MqueueFileEntry;
    const NAME: &'static str = "mqueue";
    const SINCE: Kernel = Kernel::new(2, 6, 6);

    fn claims(&self, file: &OpenFile) -> bool {
        is_queue(file)
    }

    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        let new = cx.first(Self::NAME, file.inode.ino);
        Ok(pb::MqueueFileEntry {
            id: file.number(),
            flags: file.flags(),
            fown: file.owner,
            queue_id: file.inode.ino,
            queue: if new { Some(read(cx, file)?) } else { None },
            notify: None,
        })
    }

    const RELATES: bool = true;

    /// Only when the processes were asked it is known what they are told.
    fn relations(
        &self,
        cx: &mut dyn DumpCx,
        file: &OpenFile,
        entry: &mut Self::Entry,
    ) -> Result<()> {
        let all = cx.cached(|| Ok(Notifications::default()))?;
        let Some(answer) = all.answer(entry.queue_id) else {
            return Ok(());
        };
        let (pid, fd) = (answer.pid, answer.fd);
        if let Some(queue) = &mut entry.queue {
            queue.messages = answer.messages;
        }
        let own = cx.find(pid, fd, None, &mut |slot| Ok(slot == Slot { pid, fd }))?;
        let (own, _) = own.ok_or_else(|| {
            let why = format!(
                "it is to tell task {pid} of its next message, which shares its descriptors with another process"
            );
            Error::unsupported(
                why,
                "let the task call mq_notify(queue, NULL) before the dump",
            )
        })?;
        if own == file.id {
            entry.notify = Some(pb::MqueueNotifyEntry {
                pid: cx.vpid(pid).as_raw().cast_unsigned(),
                how: answer.how,
                signal: answer.signal,
                value: answer.value,
            });
        }
        Ok(())
    }

    fn armed_by(&self, entry: &Self::Entry) -> Option<VPid> {
        entry.notify.as_ref().map(|told| VPid::new(told.pid))
    }

    fn arm(
        &self,
        _: &mut dyn RestoreCx,
        entry: &Self::Entry,
        fd: i32,
        program: &mut Program,
    ) -> Result<()> {
        if let Some(told) = &entry.notify {
            let event = program.bytes(event(told.how, told.signal, told.value));
            program.mq_notify(fd, event);
        }
        Ok(())
    }

    fn is_named(&self, _: &Self::Entry) -> bool {
        true
    }

    fn twins(&self, entry: &Self::Entry) -> Option<u64> {
        Some(entry.queue_id)
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let mut all = self.open_twins(cx, &[entry])?;
        Ok(all.remove(0))
    }

    fn open_twins(&self, cx: &mut dyn RestoreCx, entries: &[&Self::Entry]) -> Result<Vec<Opened>> {
        let found = entries
            .iter()
            .find_map(|entry| Some((entry.queue_id, entry.queue.as_ref()?)));
        let (id, queue) = found
            .ok_or_else(|| Error::corrupt("files.img", "a message queue that is in no entry"))?;
        let made = make(cx, id, queue)?;
        let mut program = Program::new();
        for message in &queue.messages {
            let text = program.bytes(message.text.as_slice());
            program.mq_timedsend(made, text, message.text.len(), message.priority, 0);
        }
        // As a queue: openat(2) would leave a mark in the flags.
        let name = program.cstr(&queue.name);
        let never = (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ASYNC).cast_unsigned();
        let opened: Vec<_> = entries
            .iter()
            .map(|entry| {
                let flags = entry.flags & !never | libc::O_CLOEXEC.cast_unsigned();
                program.mq_open(name, flags, 0, 0)
            })
            .collect();
        program.fchown(made, queue.uid, queue.gid);
        program.fchmod(made, queue.mode & MODE_BITS);
        if queue.unlinked() {
            program.mq_unlink(name);
        }
        program.close(made);
        let outcome = cx.here().run(&program)?;
        if queue.unlinked() {
            let name = Name::Queue(queue.name.clone());
            cx.names()
                .forget(&name)
                .map_err(Error::kernel("pwrite64"))?;
        }
        let opened = opened.into_iter().map(|fd| Opened::Here(outcome.fd(fd)));
        Ok(opened.collect())
    }
}

/// Whether a file is a queue: only its file system tells.
fn is_queue(file: &OpenFile) -> bool {
    let on_queues = || fstatfs(&file.fd).is_ok_and(|fs| fs.filesystem_type() == MAGIC);
    file.inode.format() == libc::S_IFREG && file.inode.size == STATUS && on_queues()
}

/// A queue with its messages. They are back in it afterwards, or stay there if the process is to be asked that is told of the next.
fn read(cx: &mut dyn DumpCx, file: &OpenFile) -> Result<pb::MqueueEntry> {
    let path = format!("/proc/self/fd/{}", file.fd.as_raw_fd());
    let queue = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(Error::io("openat(mqueue)"))?;
    let (name, unlinked) = match file.link.strip_suffix(b" (deleted)") {
        Some(name) if file.inode.links == 0 => (name, Some(true)),
        _ => (file.link.as_slice(), None),
    };
    let [_, maxmsg, msgsize, count] = attributes(&queue)?;
    let messages = match Told::of(&queue)? {
        None => messages(&queue, msgsize, count)?,
        Some(told) => {
            let all = cx.cached(|| Ok(Notifications::default()))?;
            let object = (file.inode, file.link_text());
            all.add(told, object, queue, (msgsize, count), cx.tree())?;
            Vec::new()
        }
    };
    Ok(pb::MqueueEntry {
        name: name
            .rsplit(|byte| *byte == b'/')
            .next()
            .unwrap_or_default()
            .to_vec(),
        mode: file.inode.mode,
        uid: file.inode.uid,
        gid: file.inode.gid,
        maxmsg,
        msgsize,
        messages,
        unlinked,
    })
}

/// Flags, how many messages, of what size, how many there are.
fn attributes(queue: &File) -> Result<[u64; 4]> {
    let mut program = Program::new();
    let room = program.room(8 * WORD);
    program.mq_getsetattr(queue.as_raw_fd(), 0, room);
    let outcome = Local.run(&program)?;
    let bytes = outcome.bytes(room);
    Ok([0, 1, 2, 3].map(|index| {
        let word = bytes
            .get(index * WORD..(index + 1) * WORD)
            .unwrap_or_default();
        word.try_into()
            .map_or(0, |word| usize::from_ne_bytes(word) as u64)
    }))
}

/// Takes out all messages and puts them back, the highest priority first, and of each the oldest: in a process that goes on
/// if this one is killed.
fn messages(queue: &File, size: u64, count: u64) -> Result<Vec<pb::MqueueMessage>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let answer = sheltered(|| {
        let (messages, taken) = take(queue, size, count);
        let failed = taken.err().or(put(queue, &messages).err());
        let errno = failed.map_or(0, |errno| errno as i32);
        let mut answer = errno.to_ne_bytes().to_vec();
        for message in &messages {
            let length = u32::try_from(message.text.len()).unwrap_or(u32::MAX);
            answer.extend(message.priority.to_ne_bytes());
            answer.extend(length.to_ne_bytes());
            answer.extend(&message.text);
        }
        answer
    })?;
    let (errno, mut rest) = word(&answer);
    match Errno::from_raw(errno.cast_signed()) {
        Errno::UnknownErrno => {}
        Errno::EAGAIN => {
            return Err(Error::unsupported(
                "somebody outside of the tree takes messages from it",
                "stop that, or dump it too",
            ));
        }
        errno => return Err(Error::kernel("mq_timedreceive")(errno)),
    }
    let mut messages = Vec::with_capacity(count);
    while !rest.is_empty() {
        let (priority, length);
        (priority, rest) = word(rest);
        (length, rest) = word(rest);
        let (text, behind) = rest.split_at(rest.len().min(length as usize));
        rest = behind;
        messages.push(pb::MqueueMessage {
            priority,
            text: text.to_vec(),
        });
    }
    Ok(messages)
}

/// The first word of an answer, and what follows.
fn word(bytes: &[u8]) -> (u32, &[u8]) {
    let (word, rest) = bytes.split_at(bytes.len().min(4));
    (word.try_into().map_or(0, u32::from_ne_bytes), rest)
}

/// Takes out so many messages, and says what went wrong.
fn take(queue: &File, size: usize, count: usize) -> (Vec<pb::MqueueMessage>, Result<(), Errno>) {
    let mut messages: Vec<pb::MqueueMessage> = Vec::new();
    while messages.len() < count {
        let mut program = Program::new();
        let rooms: Vec<_> = (messages.len()..count.min(messages.len() + BATCH))
            .map(|_| {
                let (text, priority) = (program.room(size), program.room(4));
                let ret = program.mq_timedreceive(queue.as_raw_fd(), text, size, priority, 0);
                program.tolerate();
                (ret, text, priority)
            })
            .collect();
        let Ok(outcome) = Local.run(&program) else {
            return (messages, Err(Errno::EIO));
        };
        let mut failed = Ok(());
        for (ret, text, priority) in rooms {
            match outcome.get(ret) {
                Ok(length) => {
                    let length = usize::try_from(length).unwrap_or(0);
                    let text = outcome.bytes(text).get(..length);
                    messages.push(pb::MqueueMessage {
                        priority: word(outcome.bytes(priority)).0,
                        text: text.unwrap_or_default().to_vec(),
                    });
                }
                Err(errno) => failed = Err(errno),
            }
        }
        if failed.is_err() {
            return (messages, failed);
        }
    }
    (messages, Ok(()))
}

fn put(queue: &File, messages: &[pb::MqueueMessage]) -> Result<(), Errno> {
    let mut program = Program::new();
    for message in messages {
        let text = program.bytes(message.text.as_slice());
        program.mq_timedsend(
            queue.as_raw_fd(),
            text,
            message.text.len(),
            message.priority,
            0,
        );
    }
    let done = Local.run(&program);
    done.map(drop)
        .map_err(|error| error.errno().unwrap_or(Errno::EIO))
}

/// Makes a queue, or takes over the one that the dump has left, and empties it.
fn make(cx: &mut dyn RestoreCx, id: u64, queue: &pb::MqueueEntry) -> Result<i32> {
    let open = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let mut program = Program::new();
    let name = program.cstr(&queue.name);
    let words = [0, queue.maxmsg, queue.msgsize, 0, 0, 0, 0, 0];
    let words = words.map(|word| usize::try_from(word).unwrap_or(usize::MAX).to_ne_bytes());
    let attributes = program.bytes(words.concat());
    program.mq_open(name, open | libc::O_CREAT | libc::O_EXCL, 0o600, attributes);
    let made = cx.make_name(&Name::Queue(queue.name.clone()), &program);
    let there = match &made {
        Ok(()) => false,
        Err(error) => match error.errno() {
            Some(Errno::EEXIST) => true,
            Some(errno @ (Errno::EINVAL | Errno::ENOSPC | Errno::EMFILE)) => {
                let size = format!("{} messages of {} bytes", queue.maxmsg, queue.msgsize);
                return Err(Error::unsupported(
                    format!("a message queue for {size} cannot be made ({errno})"),
                    "raise the limits in /proc/sys/fs/mqueue, and RLIMIT_MSGQUEUE",
                ));
            }
            _ => return made.map(|()| -1),
        },
    };
    let site = cx.here();
    let mut program = Program::new();
    let name = program.cstr(&queue.name);
    let fd = program.mq_open(name, open, 0, 0);
    let fd = site.run(&program)?.fd(fd);
    if !there {
        return Ok(fd);
    }
    let found = std::fs::metadata(format!("/proc/self/fd/{fd}")).map_err(Error::io("stat"))?;
    if found.ino() != id || queue.unlinked() {
        let mut program = Program::new();
        program.close(fd);
        site.run(&program)?;
        let name = String::from_utf8_lossy(&queue.name);
        return Err(Error::unsupported(
            format!("there is another message queue /{name}"),
            "remove it, or restore in a new IPC namespace (unshare --ipc)",
        ));
    }
    let size = usize::try_from(queue.msgsize).unwrap_or(usize::MAX);
    loop {
        let mut program = Program::new();
        let text = program.room(size);
        let taken = program.mq_timedreceive(fd, text, size, 0, 0);
        program.tolerate();
        match site.run(&program)?.get(taken) {
            Ok(_) => {}
            Err(Errno::EAGAIN) => return Ok(fd),
            Err(errno) => return Err(Error::kernel("mq_timedreceive")(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use criu_kind::testing::Paper;
    use criu_kind::testing::restored_with;
    use expect_test::expect;

    #[test]
    fn two_openings_of_one_without_a_name() {
        let opening = |id, flags| pb::MqueueFileEntry {
            id,
            flags,
            queue_id: 7,
            ..pb::MqueueFileEntry::default()
        };
        let mut first = opening(1, 2);
        first.queue = Some(pb::MqueueEntry {
            name: b"name".into(),
            mode: 0o100_640,
            uid: 1,
            gid: 2,
            maxmsg: 10,
            msgsize: 8192,
            messages: vec![pb::MqueueMessage {
                priority: 3,
                text: b"text\0".into(),
            }],
            unlinked: Some(true),
        });
        let paper = Paper::default();
        let listing = restored_with(&Mqueue, &[&opening(2, 0), &first], paper).expect("made");
        let listing: Vec<&str> = listing.lines().skip(1).collect();
        expect![[r#"
            $0 = mq_open("name", 0x80802, 0, 0)
            $0 = mq_timedsend(101, "text", 5, 3, 0)
            $1 = mq_open("name", 0x80000, 0, 0)
            $2 = mq_open("name", 0x80002, 0, 0)
            $3 = fchown(101, 1, 2)
            $4 = fchmod(101, 416)
            $5 = mq_unlink("name")
            $6 = close(101)
            is 103
            is 104"#]]
        .assert_eq(&listing.join("\n"));
    }

    #[test]
    fn somebody_is_to_be_told() {
        let entry = pb::MqueueFileEntry {
            id: 1,
            queue: Some(pb::MqueueEntry::default()),
            notify: Some(pb::MqueueNotifyEntry {
                pid: 42,
                how: 0,
                signal: 10,
                value: 0x1_0000_0007,
            }),
            ..pb::MqueueFileEntry::default()
        };
        assert_eq!(FileKind::armed_by(&Mqueue, &entry), Some(VPid::new(42)));
        let mut program = Program::new();
        let mut paper = Paper::default();
        FileKind::arm(&Mqueue, &mut paper, &entry, 3, &mut program).expect("armed");
        let listing = program.to_string();
        let listing = listing
            .strip_prefix("$0 = mq_notify(3, <")
            .expect("one call");
        let start = if size_of::<usize>() == 8 {
            "07000000010000000a00000000000000"
        } else {
            "070000000a00000000000000"
        };
        assert!(listing.starts_with(start), "{listing}");
    }
}
