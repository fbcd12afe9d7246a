//! Limits of an IPC namespace: `/proc/sys/kernel` and `/proc/sys/fs/mqueue`.
//!
//! A file there is of the namespace of whoever opens it, so a [`Site`] inside reads and writes them. Ids to be given next
//! are not state: they are used up by the restore itself.

use criu_image::pb;
use criu_kind::{Error, Result};
use criu_tracee::{Program, Ret, Site};

const SEM: &str = "kernel/sem";

/// A sysctl of one number and its field.
struct Field {
    path: &'static str,
    get: fn(&pb::IpcVarEntry) -> Option<u64>,
    set: fn(&mut pb::IpcVarEntry, u64),
}

macro_rules! fields {
    ($($path:literal $field:ident $width:ident $($optional:ident)?;)*) => {
        &[$(Field {
            path: $path,
            get: |entry| fields!(@get entry $field $($optional)?),
            set: |entry, value| {
                let value = $width::try_from(value).unwrap_or($width::MAX);
                fields!(@set entry $field value $($optional)?);
            },
        }),*]
    };
    (@get $entry:ident $field:ident) => { Some($entry.$field.into()) };
    (@get $entry:ident $field:ident optional) => { $entry.$field.map(Into::into) };
    (@set $entry:ident $field:ident $value:ident) => { $entry.$field = $value };
    (@set $entry:ident $field:ident $value:ident optional) => { $entry.$field = Some($value) };
}

const FIELDS: &[Field] = fields! {
    "kernel/msgmax" msg_ctlmax u32;
    "kernel/msgmnb" msg_ctlmnb u32;
    "kernel/msgmni" msg_ctlmni u32;
    "kernel/auto_msgmni" auto_msgmni u32;
    "kernel/shmmax" shm_ctlmax u64;
    "kernel/shmall" shm_ctlall u64;
    "kernel/shmmni" shm_ctlmni u32;
    "kernel/shm_rmid_forced" shm_rmid_forced u32;
    "fs/mqueue/queues_max" mq_queues_max u32;
    "fs/mqueue/msg_max" mq_msg_max u32;
    "fs/mqueue/msgsize_max" mq_msgsize_max u32;
    "fs/mqueue/msg_default" mq_msg_default u32 optional;
    "fs/mqueue/msgsize_default" mq_msgsize_default u32 optional;
};

fn open(program: &mut Program, path: &str, flags: i32) -> Ret {
    let path = program.cstr(format!("/proc/sys/{path}"));
    let fd = program.openat(libc::AT_FDCWD, path, flags | libc::O_CLOEXEC, 0);
    program.tolerate();
    fd
}

/// Reads all of them. What the kernel does not have is 0.
pub fn read(site: &mut dyn Site) -> Result<pb::IpcVarEntry> {
    const ROOM: usize = 128;
    let mut program = Program::new();
    let mut answers = Vec::new();
    for path in FIELDS.iter().map(|field| field.path).chain([SEM]) {
        let fd = open(&mut program, path, libc::O_RDONLY);
        let room = program.room(ROOM);
        let read = program.read(fd, room, ROOM);
        program.tolerate();
        program.close(fd);
        program.tolerate();
        answers.push((read, room));
    }
    let outcome = site.run(&program)?;
    let mut entry = pb::IpcVarEntry::default();
    let numbers = |(ret, room): &(Ret, _)| -> Vec<u64> {
        let length = outcome
            .get(*ret)
            .ok()
            .and_then(|length| usize::try_from(length).ok());
        let text = outcome
            .bytes(*room)
            .get(..length.unwrap_or(0))
            .unwrap_or_default();
        let text = String::from_utf8_lossy(text);
        text.split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect()
    };
    for (field, answer) in FIELDS.iter().zip(&answers) {
        if let Some(value) = numbers(answer).first() {
            (field.set)(&mut entry, *value);
        }
    }
    let sem = answers.last().map(numbers).unwrap_or_default();
    entry.sem_ctls = sem
        .into_iter()
        .map(|value| u32::try_from(value).unwrap_or(u32::MAX))
        .collect();
    Ok(entry)
}

/// Writes those that differ.
pub fn write(site: &mut dyn Site, wanted: &pb::IpcVarEntry) -> Result<()> {
    let now = read(site)?;
    let mut texts: Vec<(&str, String)> = FIELDS
        .iter()
        .filter(|field| (field.get)(wanted) != (field.get)(&now))
        .filter_map(|field| Some((field.path, (field.get)(wanted)?.to_string())))
        .collect();
    if !wanted.sem_ctls.is_empty() && wanted.sem_ctls != now.sem_ctls {
        let words: Vec<String> = wanted.sem_ctls.iter().map(u32::to_string).collect();
        texts.push((SEM, words.join(" ")));
    }
    let mut refused = Vec::new();
    for (path, text) in texts {
        let mut program = Program::new();
        let fd = open(&mut program, path, libc::O_WRONLY);
        let bytes = program.bytes(text.as_bytes());
        let written = program.write(fd, bytes, text.len());
        program.tolerate();
        program.close(fd);
        program.tolerate();
        if let Err(errno) = site.run(&program)?.get(written) {
            refused.push(Error::unsupported(
                format!("/proc/sys/{path} cannot be set to {text} ({errno})"),
                "restore with the privilege for it",
            ));
        }
    }
    Error::all(refused)
}
