//! POSIX message queues: mq_open(3).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use zdtm::{Case, Child, Result, Team, check, check_eq, fill, ret, skip, verify};

pub(crate) const CASES: &[Case] = &[
    Case::new("mqueue", messages).refused("CRIU has no POSIX message queues"),
    Case::new("mqueue-unlinked", unlinked).refused("CRIU has no POSIX message queues"),
    Case::new("mqueue-shared", shared).refused("CRIU has no POSIX message queues"),
    Case::new("mqueue-notify", notify).refused(NO_QUEUES),
    Case::new("mqueue-notify-queued", notify_queued).refused(NO_QUEUES),
    Case::new("mqueue-notify-handler", notify_handler).refused(NO_QUEUES),
    Case::new("mqueue-notify-full", notify_full).refused(NO_QUEUES),
    Case::new("mqueue-notify-child", notify_child).refused(NO_QUEUES),
    Case::new("mqueue-notify-none", notify_none).refused(NO_QUEUES),
    Case::new("mqueue-notify-thread", notify_thread).refused("which socket it is nobody tells"),
];

const NO_QUEUES: &str = "CRIU has no POSIX message queues";

const SIZE: usize = 100;
const COUNT: usize = 5;

fn open(name: &CStr, flags: i32) -> Result<OwnedFd> {
    // SAFETY: all its fields are numbers.
    let mut attributes: libc::mq_attr = unsafe { std::mem::zeroed() };
    attributes.mq_maxmsg = COUNT.try_into()?;
    attributes.mq_msgsize = SIZE.try_into()?;
    // SAFETY: a name and a structure of ours.
    let fd = ret(unsafe { libc::mq_open(name.as_ptr(), flags, 0o640, &raw mut attributes) });
    match fd {
        // SAFETY: it is new.
        Ok(fd) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => skip("no POSIX message queues"),
        Err(error) => Err(error.into()),
    }
}

fn unlink(name: &CStr) -> io::Result<()> {
    // SAFETY: a name.
    ret(unsafe { libc::mq_unlink(name.as_ptr()) }).map(drop)
}

fn send(queue: &OwnedFd, priority: u32, size: usize, seed: u64) -> io::Result<()> {
    let mut text = vec![0; size];
    fill(&mut text, seed);
    let start = text.as_ptr().cast();
    // SAFETY: the text is as long as is said.
    ret(unsafe { libc::mq_send(queue.as_raw_fd(), start, size, priority) }).map(drop)
}

fn receive(queue: &OwnedFd, size: usize, seed: u64) -> Result<u32> {
    let mut text = [0_u8; SIZE];
    let mut priority = 0;
    let start = text.as_mut_ptr().cast();
    // SAFETY: there is room for the largest message.
    let got = ret(unsafe { libc::mq_receive(queue.as_raw_fd(), start, SIZE, &raw mut priority) })?;
    check_eq!(got.cast_unsigned(), size);
    verify(&text[..size], seed)?;
    Ok(priority)
}

fn attributes(queue: &OwnedFd) -> Result<libc::mq_attr> {
    // SAFETY: all its fields are numbers.
    let mut found: libc::mq_attr = unsafe { std::mem::zeroed() };
    // SAFETY: a structure of ours.
    ret(unsafe { libc::mq_getattr(queue.as_raw_fd(), &raw mut found) })?;
    Ok(found)
}

const NEW: i32 = libc::O_CREAT | libc::O_EXCL;

/// The highest priority first, of each the oldest; it is full.
fn messages() -> Result<()> {
    let name = c"/zdtm-queue";
    let queue = open(name, NEW | libc::O_RDWR | libc::O_NONBLOCK)?;
    let sent = [(1, SIZE), (7, 0), (1, 10), (32767, 1), (7, 50)];
    for ((priority, size), seed) in sent.into_iter().zip(0..) {
        send(&queue, priority, size, seed)?;
    }
    zdtm::checkpoint()?;
    check!(send(&queue, 1, 1, 9).is_err(), "it is full");
    let now = attributes(&queue)?;
    check_eq!(usize::try_from(now.mq_maxmsg)?, COUNT);
    check_eq!(usize::try_from(now.mq_msgsize)?, SIZE);
    check_eq!(usize::try_from(now.mq_curmsgs)?, COUNT);
    let again = open(name, libc::O_RDWR | libc::O_NONBLOCK)?;
    for index in [3, 1, 4, 0, 2] {
        let (priority, size) = sent[index];
        check_eq!(receive(&again, size, index as u64)?, priority);
    }
    check!(receive(&queue, 0, 0).is_err(), "no more");
    let stat = nix::sys::stat::fstat(&queue)?;
    check_eq!(stat.st_mode & 0o777, 0o640);
    Ok(unlink(name)?)
}

/// It has no name any more.
fn unlinked() -> Result<()> {
    let name = c"/zdtm-queue";
    let queue = open(name, NEW | libc::O_RDWR)?;
    unlink(name)?;
    send(&queue, 3, 30, 3)?;
    zdtm::checkpoint()?;
    check_eq!(receive(&queue, 30, 3)?, 3);
    check!(open(name, libc::O_RDWR).is_err(), "it has no name");
    Ok(())
}

/// Opened for reading by one and for writing by another.
fn shared() -> Result<()> {
    let name = c"/zdtm-queue";
    let reader = open(name, NEW | libc::O_RDONLY)?;
    let writer = open(name, libc::O_WRONLY)?;
    send(&writer, 1, 11, 1)?;
    let child = Child::spawn("child", move || {
        let own = open(name, libc::O_WRONLY)?;
        drop(writer);
        Child::checkpoint();
        Ok(send(&own, 2, 22, 2)?)
    })?;
    zdtm::checkpoint()?;
    child.finish()?;
    check_eq!(receive(&reader, 22, 2)?, 2);
    check_eq!(receive(&reader, 11, 1)?, 1);
    check!(send(&reader, 1, 1, 1).is_err(), "it is for reading");
    Ok(unlink(name)?)
}

/// `NOTIFY_COOKIE_LEN` of mqueue(7)'s header.
const COOKIE: usize = 32;
const VALUE: usize = 0x5aa5_1234;

/// mq_notify(3), which nix does not have.
fn ask(queue: &OwnedFd, how: i32, signal: i32, value: usize) -> io::Result<()> {
    // SAFETY: all its fields are numbers.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = how;
    event.sigev_signo = signal;
    event.sigev_value.sival_ptr = std::ptr::without_provenance_mut(value);
    let event = std::ptr::from_ref(&event).expose_provenance();
    let fd = usize::try_from(queue.as_raw_fd()).unwrap_or(0);
    // SAFETY: the call reads the structure.
    unsafe { zdtm::syscall(libc::SYS_mq_notify, [fd, event, 0, 0, 0, 0]) }.map(drop)
}

fn is_asked(queue: &OwnedFd) -> bool {
    ask(queue, libc::SIGEV_NONE, 0, 0).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

fn only(signal: i32) -> libc::sigset_t {
    // SAFETY: a set of ours, which is emptied.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        set
    }
}

fn block(signal: i32) -> io::Result<()> {
    let set = only(signal);
    // SAFETY: a set of ours.
    ret(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) })
        .map(drop)
}

/// The code and the value of the next signal that waits; `None`: there is none.
fn waiting(signal: i32) -> Option<(i32, usize)> {
    let (set, now) = (
        only(signal),
        libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
    );
    // SAFETY: a set, room and a time of ours; the signal has a value.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let got = libc::sigtimedwait(&raw const set, &raw mut info, &raw const now);
        (got == signal).then(|| (info.si_code, info.si_value().sival_ptr.addr()))
    }
}

/// A signal that is blocked comes with the first message, with its value, and once.
fn notify() -> Result<()> {
    let name = c"/zdtm-queue";
    let queue = open(name, NEW | libc::O_RDWR)?;
    unlink(name)?;
    block(libc::SIGUSR1)?;
    ask(&queue, libc::SIGEV_SIGNAL, libc::SIGUSR1, VALUE)?;
    zdtm::checkpoint()?;
    check_eq!(waiting(libc::SIGUSR1), None);
    check!(is_asked(&queue), "only one may ask, and it still stands");
    send(&queue, 1, 1, 1)?;
    check_eq!(waiting(libc::SIGUSR1), Some((libc::SI_MESGQ, VALUE)));
    send(&queue, 1, 2, 2)?;
    check_eq!(waiting(libc::SIGUSR1), None);
    check_eq!(receive(&queue, 1, 1)?, 1);
    check!(!is_asked(&queue), "it was told");
    Ok(())
}

/// Such signals wait already, of a kind that queues and of one that does not.
fn notify_queued() -> Result<()> {
    let real_time = libc::SIGRTMIN() + 3;
    let names = [c"/zdtm-queue", c"/zdtm-other"];
    let mut queues = Vec::new();
    for (name, signal) in names.into_iter().zip([real_time, libc::SIGUSR1]) {
        let queue = open(name, NEW | libc::O_RDWR)?;
        unlink(name)?;
        block(signal)?;
        for value in [7, 8] {
            let value = libc::sigval {
                sival_ptr: std::ptr::without_provenance_mut(value),
            };
            // SAFETY: a signal to this process, which blocks it.
            ret(unsafe { libc::sigqueue(libc::getpid(), signal, value) })?;
        }
        ask(&queue, libc::SIGEV_SIGNAL, signal, VALUE)?;
        queues.push((queue, signal));
    }
    zdtm::checkpoint()?;
    for (queue, signal) in &queues {
        let queues_up = *signal == real_time;
        check_eq!(waiting(*signal), Some((libc::SI_QUEUE, 7)));
        check_eq!(waiting(*signal), queues_up.then_some((libc::SI_QUEUE, 8)));
        check_eq!(waiting(*signal), None);
        send(queue, 1, 1, 1)?;
        check_eq!(waiting(*signal), Some((libc::SI_MESGQ, VALUE)));
    }
    Ok(())
}

static HANDLED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn handle(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives the handler what it was told.
    let value = unsafe { (*info).si_value().sival_ptr.addr() };
    HANDLED.fetch_add(value, Ordering::SeqCst);
}

/// Nothing is blocked, and several threads could take the signal. It is the one that a stop ends with, too.
fn notify_handler() -> Result<()> {
    let name = c"/zdtm-queue";
    let queue = open(name, NEW | libc::O_RDWR)?;
    unlink(name)?;
    // SAFETY: all its fields are numbers.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_flags = libc::SA_SIGINFO;
    action.sa_sigaction = (handle as *const ()).expose_provenance();
    // SAFETY: a structure of ours; the handler only adds.
    ret(unsafe { libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut()) })?;
    let other = open(c"/zdtm-other", NEW | libc::O_RDWR)?;
    unlink(c"/zdtm-other")?;
    let team = Team::start(3, |_, set_up| {
        set_up();
        zdtm::wait();
        Ok(())
    })?;
    ask(&queue, libc::SIGEV_SIGNAL, libc::SIGUSR2, VALUE)?;
    // Ignored as long as nobody handles it.
    ask(&other, libc::SIGEV_SIGNAL, libc::SIGURG, VALUE)?;
    zdtm::checkpoint()?;
    team.join()?;
    check_eq!(HANDLED.load(Ordering::SeqCst), 0);
    send(&queue, 1, 1, 1)?;
    check_eq!(HANDLED.load(Ordering::SeqCst), VALUE);
    check!(is_asked(&other), "it still stands");
    block(libc::SIGURG)?;
    send(&other, 1, 1, 1)?;
    check_eq!(waiting(libc::SIGURG), Some((libc::SI_MESGQ, VALUE)));
    Ok(())
}

/// A queue that holds messages tells of none until it was empty.
fn notify_full() -> Result<()> {
    let name = c"/zdtm-queue";
    let queue = open(name, NEW | libc::O_RDWR)?;
    unlink(name)?;
    let sent = [(1, SIZE), (7, 0), (1, 10), (32767, 1), (7, 50)];
    for ((priority, size), seed) in sent.into_iter().zip(0..) {
        send(&queue, priority, size, seed)?;
    }
    block(libc::SIGUSR1)?;
    ask(&queue, libc::SIGEV_SIGNAL, libc::SIGUSR1, VALUE)?;
    zdtm::checkpoint()?;
    for index in [3, 1, 4, 0, 2] {
        check!(is_asked(&queue), "it still stands");
        let (priority, size) = sent[index];
        check_eq!(receive(&queue, size, index as u64)?, priority);
    }
    check_eq!(waiting(libc::SIGUSR1), None);
    send(&queue, 1, 1, 1)?;
    check_eq!(waiting(libc::SIGUSR1), Some((libc::SI_MESGQ, VALUE)));
    Ok(())
}

/// A child asked that can only read, by an opening that it has in common with its parent.
fn notify_child() -> Result<()> {
    let name = c"/zdtm-queue";
    let reader = open(name, NEW | libc::O_RDONLY)?;
    let writer = open(name, libc::O_WRONLY)?;
    unlink(name)?;
    let common = reader.try_clone()?;
    let child = Child::spawn("child", move || {
        let reader = common;
        block(libc::SIGUSR1)?;
        ask(&reader, libc::SIGEV_SIGNAL, libc::SIGUSR1, VALUE)?;
        Child::checkpoint();
        let set = only(libc::SIGUSR1);
        // SAFETY: a set and room of ours; the signal has a value.
        let value = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            ret(libc::sigwaitinfo(&raw const set, &raw mut info))?;
            info.si_value().sival_ptr.addr()
        };
        check_eq!(value, VALUE);
        receive(&reader, 22, 2)?;
        Ok(())
    })?;
    zdtm::checkpoint()?;
    send(&writer, 1, 22, 2)?;
    drop(reader);
    child.finish()
}

/// Nothing comes, but nobody else may ask; with messages and without.
fn notify_none() -> Result<()> {
    let names = [c"/zdtm-queue", c"/zdtm-other"];
    let mut queues = Vec::new();
    for name in names {
        let queue = open(name, NEW | libc::O_RDWR)?;
        unlink(name)?;
        queues.push(queue);
    }
    send(&queues[0], 2, 20, 2)?;
    for queue in &queues {
        ask(queue, libc::SIGEV_NONE, 0, 0)?;
    }
    zdtm::checkpoint()?;
    check!(is_asked(&queues[0]), "it still stands");
    check!(is_asked(&queues[1]), "and the other");
    check_eq!(receive(&queues[0], 20, 2)?, 2);
    for queue in &queues {
        send(queue, 1, 1, 1)?;
        check!(!is_asked(queue), "a message came");
    }
    Ok(())
}

/// What mq_notify(3) makes of a function that is to be called: a message through a netlink(7) socket.
fn notify_thread() -> Result<()> {
    let name = c"/zdtm-queue";
    let queue = open(name, NEW | libc::O_RDWR)?;
    unlink(name)?;
    // SAFETY: takes nothing.
    let socket = ret(unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0) })?;
    let cookie = [7_u8; COOKIE];
    let value = cookie.as_ptr().expose_provenance();
    ask(&queue, libc::SIGEV_THREAD, socket, value)?;
    zdtm::checkpoint()?;
    check!(is_asked(&queue), "it still stands");
    Ok(())
}
