//! System V message queues: msgget(2).

use std::io;

use libc::{IPC_CREAT, IPC_EXCL, IPC_NOWAIT, IPC_PRIVATE, IPC_RMID, c_int, c_long, msqid_ds};
use zdtm::{Case, Child, Result, check, check_eq, fill, ret};

pub(crate) const CASES: &[Case] = &[
    Case::new("msg", messages),
    Case::new("msg-empty", empty),
    Case::new("msg-full", full),
    Case::new("msg-blocked", blocked),
];

const KEY: i32 = 0x5a44_0003;
/// The usual `/proc/sys/kernel/msgmax`.
const MOST: usize = 8192;

#[repr(C)]
struct Message {
    kind: c_long,
    text: [u8; MOST],
}

fn text(size: usize, seed: u64) -> Vec<u8> {
    let mut text = vec![0; size];
    fill(&mut text, seed);
    text
}

fn make(key: i32) -> io::Result<c_int> {
    // SAFETY: takes numbers.
    ret(unsafe { libc::msgget(key, 0o640 | IPC_CREAT | IPC_EXCL) })
}

fn send(queue: c_int, kind: c_long, text: &[u8]) -> io::Result<()> {
    let mut message = Message {
        kind,
        text: [0; MOST],
    };
    message.text[..text.len()].copy_from_slice(text);
    let start = std::ptr::from_ref(&message).cast();
    // SAFETY: the message is as long as is said.
    ret(unsafe { libc::msgsnd(queue, start, text.len(), IPC_NOWAIT) }).map(drop)
}

fn receive(queue: c_int, kind: c_long, flags: c_int) -> io::Result<(c_long, Vec<u8>)> {
    let mut message = Message {
        kind: 0,
        text: [0; MOST],
    };
    let start = std::ptr::from_mut(&mut message).cast();
    // SAFETY: there is room for what is asked.
    let size = ret(unsafe { libc::msgrcv(queue, start, MOST, kind, flags) })?;
    Ok((message.kind, message.text[..size.cast_unsigned()].to_vec()))
}

fn stat(queue: c_int) -> io::Result<msqid_ds> {
    let mut stat = std::mem::MaybeUninit::<msqid_ds>::zeroed();
    // SAFETY: the structure is large enough, and numbers all through.
    ret(unsafe { libc::msgctl(queue, libc::IPC_STAT, stat.as_mut_ptr()) })?;
    // SAFETY: as above.
    Ok(unsafe { stat.assume_init() })
}

fn remove(queue: c_int) -> io::Result<()> {
    // SAFETY: needs no structure.
    ret(unsafe { libc::msgctl(queue, IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

/// Types, texts of all sizes, their order.
fn messages() -> Result<()> {
    let queue = make(KEY)?;
    let texts = [
        &b"first"[..],
        b"",
        b"third, of another type",
        &text(MOST / 2, 3),
    ];
    for (text, kind) in texts.iter().zip([1, 9, 77, 9]) {
        send(queue, kind, text)?;
    }
    let second = make(IPC_PRIVATE)?;
    send(second, c_long::MAX, &text(MOST, 4))?;
    zdtm::checkpoint()?;
    // SAFETY: takes numbers.
    check_eq!(ret(unsafe { libc::msgget(KEY, 0) })?, queue);
    let now = stat(queue)?;
    check_eq!(u32::from(now.msg_perm.mode), 0o640);
    check_eq!(now.msg_qnum, 4);
    // By type first, then in the order they were sent.
    check_eq!(receive(queue, 77, IPC_NOWAIT)?, (77, texts[2].to_vec()));
    check_eq!(receive(queue, 0, IPC_NOWAIT)?, (1, texts[0].to_vec()));
    check_eq!(receive(queue, 0, IPC_NOWAIT)?, (9, Vec::new()));
    check_eq!(receive(queue, 0, IPC_NOWAIT)?, (9, texts[3].to_vec()));
    check!(receive(queue, 0, IPC_NOWAIT).is_err(), "no more");
    check_eq!(
        receive(second, 0, IPC_NOWAIT)?,
        (c_long::MAX, text(MOST, 4))
    );
    remove(second)?;
    Ok(remove(queue)?)
}

/// Used, and empty again.
fn empty() -> Result<()> {
    let queue = make(KEY)?;
    send(queue, 1, b"one")?;
    receive(queue, 0, IPC_NOWAIT)?;
    zdtm::checkpoint()?;
    check_eq!(stat(queue)?.msg_qnum, 0);
    send(queue, 2, b"two")?;
    check_eq!(receive(queue, 0, 0)?, (2, b"two".to_vec()));
    Ok(remove(queue)?)
}

/// It may hold no more, and less than it holds.
fn full() -> Result<()> {
    let queue = make(IPC_PRIVATE)?;
    for number in 0..8 {
        send(queue, 1, &text(1000, number))?;
    }
    let mut limit = stat(queue)?;
    limit.msg_qbytes = 5000;
    // SAFETY: the structure is one.
    ret(unsafe { libc::msgctl(queue, libc::IPC_SET, &mut limit) })?;
    zdtm::checkpoint()?;
    check_eq!(stat(queue)?.msg_qbytes, 5000);
    check!(send(queue, 1, b"x").is_err(), "it is full");
    for number in 0..8 {
        check_eq!(receive(queue, 0, IPC_NOWAIT)?.1, text(1000, number));
    }
    send(queue, 1, b"x")?;
    Ok(remove(queue)?)
}

/// A call that waits goes on waiting.
fn blocked() -> Result<()> {
    let queue = make(IPC_PRIVATE)?;
    send(queue, 1, b"for nobody")?;
    let child = Child::spawn("child", move || {
        Child::set_up();
        check_eq!(receive(queue, 5, 0)?, (5, b"for the child".to_vec()));
        Ok(())
    })?;
    while !zdtm::proc_text(child.pid(), "wchan")?.contains("msgrcv") {
        std::thread::yield_now();
    }
    zdtm::checkpoint()?;
    send(queue, 5, b"for the child")?;
    child.join()?;
    check_eq!(stat(queue)?.msg_qnum, 1);
    Ok(remove(queue)?)
}
