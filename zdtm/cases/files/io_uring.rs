//! Rings of requests and completions: io_uring(7).

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};
use zdtm::{Case, Child, Mapping, Result, Team, check, check_eq};

pub(crate) const CASES: &[Case] = &[
    Case::new("io_uring", idle).stays(LAYOUT),
    Case::new("io_uring-unread", unread).stays(LAYOUT),
    Case::new("io_uring-many", many).stays(LAYOUT),
    // Pinned memory is charged to who makes the ring.
    Case::new("io_uring-registered", registered)
        .changes(&["thread/2/VmPin"])
        .stays(LAYOUT),
    Case::new("io_uring-eventfd", eventfd).stays(LAYOUT),
    Case::new("io_uring-shared", shared).stays(LAYOUT),
    // The kernel ends its thread, and starts another one.
    Case::new("io_uring-worker", worker)
        .changes(&["stat/threads", "thread/3"])
        .stays(LAYOUT),
    Case::new("io_uring-waiter", waiter).stays(LAYOUT),
    Case::new("io_uring-busy", busy).refused("a request is in flight"),
    Case::new("io_uring-sqpoll", sqpoll).refused("the kernel has a thread for it"),
];

/// Why a ring may be refused elsewhere.
const LAYOUT: &str = "kernels have the words of a ring at different places";

const NOP: u8 = 0;
const READ_FIXED: u8 = 4;
const POLL_ADD: u8 = 6;
const READ: u8 = 22;
const FIXED_FILE: u8 = 1;
const ASYNC: u8 = 1 << 4;
const SQPOLL: u32 = 2;

struct Ring {
    fd: OwnedFd,
    params: [u32; 30],
    queues: Mapping,
    requests: Mapping,
}

/// What a request asks for.
#[derive(Clone, Copy, Default)]
struct Request {
    operation: u8,
    flags: u8,
    fd: i32,
    address: u64,
    length: u32,
    events: u32,
    buffer: u16,
    data: u64,
}

impl Ring {
    fn new(entries: usize, flags: u32) -> Result<Option<Self>> {
        let mut params = [0u32; 30];
        params[2] = flags;
        let at = (&raw mut params).addr();
        // SAFETY: the structure is as long as the kernel wants.
        let fd = match unsafe { zdtm::syscall(libc::SYS_io_uring_setup, [entries, at, 0, 0, 0, 0]) }
        {
            // SAFETY: it is new and ours.
            Ok(fd) => unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) },
            Err(_) => return Ok(None),
        };
        let (kind, protection) = (libc::MAP_SHARED, libc::PROT_READ | libc::PROT_WRITE);
        let map = |length: u32, offset| {
            Mapping::new(
                usize::try_from(length)?,
                protection,
                kind,
                fd.as_raw_fd(),
                offset,
            )
        };
        let queues = map(
            (params[16] + params[0] * 4).max(params[25] + params[1] * 16),
            0,
        )?;
        let requests = map(params[0] * 64, 0x1000_0000)?;
        Ok(Some(Self {
            fd,
            params,
            queues,
            requests,
        }))
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        &self.queues.words()[offset as usize / 4]
    }

    /// Makes a request, but does not tell the kernel yet.
    fn make(&self, request: Request) {
        let tail = self.word(self.params[11]);
        let slot = tail.load(Ordering::Acquire) & (self.params[0] - 1);
        let at = slot as usize * 64;
        let bytes = &mut self.requests.bytes()[at..at + 64];
        bytes.fill(0);
        (bytes[0], bytes[1]) = (request.operation, request.flags);
        bytes[4..8].copy_from_slice(&request.fd.to_ne_bytes());
        bytes[16..24].copy_from_slice(&request.address.to_ne_bytes());
        bytes[24..28].copy_from_slice(&request.length.to_ne_bytes());
        bytes[28..32].copy_from_slice(&request.events.to_ne_bytes());
        bytes[32..40].copy_from_slice(&request.data.to_ne_bytes());
        bytes[40..42].copy_from_slice(&request.buffer.to_ne_bytes());
        self.word(self.params[16] + slot * 4)
            .store(slot, Ordering::Release);
        tail.fetch_add(1, Ordering::AcqRel);
    }

    fn nop(&self, data: u64) {
        self.make(Request {
            operation: NOP,
            data,
            ..Request::default()
        });
    }

    fn enter(&self, submit: usize, wait: usize) -> Result<i64> {
        let fd = usize::try_from(self.fd.as_raw_fd())?;
        // SAFETY: what the requests name outlives them.
        let done = unsafe { zdtm::syscall(libc::SYS_io_uring_enter, [fd, submit, wait, 1, 0, 0]) };
        Ok(done?)
    }

    /// Takes all completions there are: data and result.
    fn take(&self) -> Vec<(u64, i32)> {
        let (head, tail) = (self.word(self.params[20]), self.word(self.params[21]));
        let mut all = Vec::new();
        while head.load(Ordering::Acquire) != tail.load(Ordering::Acquire) {
            let slot = head.load(Ordering::Acquire) & (self.params[1] - 1);
            let at = self.params[25] + slot * 16;
            let word = |offset| self.word(at + offset).load(Ordering::Acquire);
            let data = u64::from_ne_bytes({
                let mut bytes = [0; 8];
                bytes[..4].copy_from_slice(&word(0).to_ne_bytes());
                bytes[4..].copy_from_slice(&word(4).to_ne_bytes());
                bytes
            });
            all.push((data, word(8).cast_signed()));
            head.fetch_add(1, Ordering::AcqRel);
        }
        all
    }

    fn register(&self, what: usize, at: usize, count: usize) -> Result<()> {
        let fd = usize::try_from(self.fd.as_raw_fd())?;
        // SAFETY: the caller's table is as long as said.
        unsafe { zdtm::syscall(libc::SYS_io_uring_register, [fd, what, at, count, 0, 0]) }?;
        Ok(())
    }
}

macro_rules! ring {
    ($entries:expr, $flags:expr) => {
        match Ring::new($entries, $flags)? {
            Some(ring) => ring,
            None => return zdtm::skip("no io_uring here"),
        }
    };
}

/// Used before and after; the counts go on.
fn idle() -> Result<()> {
    let ring = ring!(8, 0);
    for round in 0..5 {
        (0..6).for_each(|index| ring.nop(round * 10 + index));
        check_eq!(ring.enter(6, 6)?, 6);
        check_eq!(ring.take().len(), 6);
    }
    zdtm::checkpoint()?;
    check_eq!(ring.take(), []);
    for data in [1u64 << 40, 7] {
        ring.nop(data);
        check_eq!(ring.enter(1, 1)?, 1);
        check_eq!(ring.take(), [(data, 0)]);
    }
    Ok(())
}

/// Completions that nobody has taken, and requests that nobody has sent.
fn unread() -> Result<()> {
    let ring = ring!(4, 0);
    for data in 0..9 {
        ring.nop(data);
        ring.enter(1, 1)?;
        if data < 4 {
            ring.take();
        }
    }
    ring.nop(100);
    ring.make(Request {
        operation: NOP,
        data: 101,
        ..Request::default()
    });
    zdtm::checkpoint()?;
    check_eq!(ring.take(), [(4, 0), (5, 0), (6, 0), (7, 0), (8, 0)]);
    check_eq!(ring.enter(2, 2)?, 2);
    check_eq!(ring.take(), [(100, 0), (101, 0)]);
    Ok(())
}

/// Two of them, one that was busy.
fn many() -> Result<()> {
    let (small, large) = (ring!(1, 0), ring!(1024, 0));
    for _ in 0..300 {
        (0..1000).for_each(|data| large.nop(data));
        check_eq!(large.enter(1000, 1000)?, 1000);
        check_eq!(large.take().len(), 1000);
    }
    small.nop(1);
    small.enter(1, 1)?;
    zdtm::checkpoint()?;
    check_eq!(small.take(), [(1, 0)]);
    large.nop(5);
    check_eq!(large.enter(1, 1)?, 1);
    check_eq!(large.take(), [(5, 0)]);
    small.nop(6);
    check_eq!(small.enter(1, 1)?, 1);
    check_eq!(small.take(), [(6, 0)]);
    Ok(())
}

/// Files and memory by their places in the ring's tables, which have gaps.
fn registered() -> Result<()> {
    let ring = ring!(4, 0);
    let path = zdtm::dir().join("file");
    std::fs::write(&path, "0123456789")?;
    let file = File::open(&path)?;
    let event = EventFd::from_value(0x0403_0201)?;
    let memory = Mapping::anonymous(8192)?;
    let files = [-1, file.as_raw_fd(), -1, event.as_raw_fd()];
    ring.register(2, (&raw const files).addr(), files.len())?;
    let iovecs = [memory.address(), 4096, memory.address() + 4096, 4096];
    ring.register(0, (&raw const iovecs).addr(), 2)?;
    zdtm::checkpoint()?;
    ring.make(Request {
        operation: READ_FIXED,
        flags: FIXED_FILE,
        fd: 1,
        address: u64::try_from(memory.address() + 5000)?,
        length: 4,
        buffer: 1,
        data: 3,
        ..Request::default()
    });
    check_eq!(ring.enter(1, 1)?, 1);
    check_eq!(ring.take(), [(3, 4)]);
    check_eq!(&memory.bytes()[5000..5005], b"0123\0");
    ring.make(Request {
        operation: READ_FIXED,
        flags: FIXED_FILE,
        fd: 3,
        address: u64::try_from(memory.address())?,
        length: 8,
        data: 4,
        ..Request::default()
    });
    check_eq!(ring.enter(1, 1)?, 1);
    check_eq!(ring.take(), [(4, 8)]);
    check_eq!(memory.bytes()[..4], [1, 2, 3, 4]);
    ring.make(Request {
        operation: READ,
        flags: FIXED_FILE,
        fd: 0,
        data: 5,
        ..Request::default()
    });
    ring.enter(1, 1)?;
    check_eq!(ring.take(), [(5, -libc::EBADF)]);
    Ok(())
}

fn eventfd() -> Result<()> {
    let ring = ring!(4, 0);
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
    let number = event.as_raw_fd();
    ring.register(4, (&raw const number).addr(), 1)?;
    ring.nop(1);
    ring.enter(1, 1)?;
    zdtm::checkpoint()?;
    check_eq!(event.read()?, 1, "what was told before, and no more");
    ring.nop(2);
    ring.enter(1, 1)?;
    check_eq!(event.read()?, 1);
    check_eq!(ring.take(), [(1, 0), (2, 0)]);
    Ok(())
}

/// A child has it too, mapped where its parent has it.
fn shared() -> Result<()> {
    let ring = std::rc::Rc::new(ring!(4, 0));
    let child = {
        let ring = std::rc::Rc::clone(&ring);
        Child::spawn("child", move || {
            Child::checkpoint();
            ring.nop(77);
            check_eq!(ring.enter(1, 0)?, 1);
            Ok(())
        })?
    };
    ring.nop(1);
    ring.enter(1, 1)?;
    zdtm::checkpoint()?;
    child.finish()?;
    check_eq!(ring.take(), [(1, 0), (77, 0)]);
    Ok(())
}

/// The kernel has a thread in the process, which is none of its own.
fn worker() -> Result<()> {
    let ring = ring!(4, 0);
    let file = File::open("/proc/self/status")?;
    let memory = Mapping::anonymous(4096)?;
    let read = || {
        ring.make(Request {
            operation: READ,
            flags: ASYNC,
            fd: file.as_raw_fd(),
            address: u64::try_from(memory.address())?,
            length: 10,
            data: 9,
            ..Request::default()
        });
        check_eq!(ring.enter(1, 1)?, 1);
        check_eq!(ring.take(), [(9, 10)]);
        Ok(())
    };
    read()?;
    let threads = || std::fs::read_dir("/proc/self/task").map(Iterator::count);
    check_eq!(threads()?, 2, "it goes after five seconds only");
    zdtm::checkpoint()?;
    read()
}

/// A thread waits for a completion that another one brings about.
fn waiter() -> Result<()> {
    let ring = ring!(4, 0);
    let ring = std::sync::Arc::new(ring);
    let team = {
        let ring = std::sync::Arc::clone(&ring);
        Team::start(1, move |_, set_up| {
            set_up();
            ring.enter(0, 1)
        })?
    };
    // The thread is on its way into the call.
    std::thread::sleep(std::time::Duration::from_millis(50));
    zdtm::checkpoint()?;
    ring.nop(4);
    check_eq!(ring.enter(1, 0)?, 1);
    for woken in team.join()? {
        check_eq!(woken, 0);
    }
    check_eq!(ring.take(), [(4, 0)]);
    Ok(())
}

fn busy() -> Result<()> {
    let ring = ring!(4, 0);
    let (reader, mut writer) = std::io::pipe()?;
    ring.make(Request {
        operation: POLL_ADD,
        fd: reader.as_raw_fd(),
        events: u32::try_from(libc::POLLIN)?,
        data: 6,
        ..Request::default()
    });
    check_eq!(ring.enter(1, 0)?, 1);
    zdtm::checkpoint()?;
    check_eq!(ring.take(), []);
    writer.write_all(b"x")?;
    ring.enter(0, 1)?;
    check_eq!(ring.take(), [(6, i32::from(libc::POLLIN))]);
    Ok(())
}

fn sqpoll() -> Result<()> {
    let ring = ring!(4, SQPOLL);
    zdtm::checkpoint()?;
    ring.nop(8);
    let mut waited = 0;
    let taken = loop {
        let fd = usize::try_from(ring.fd.as_raw_fd())?;
        // SAFETY: passes no address. IORING_ENTER_SQ_WAKEUP.
        unsafe { zdtm::syscall(libc::SYS_io_uring_enter, [fd, 1, 0, 2, 0, 0]) }?;
        let taken = ring.take();
        if !taken.is_empty() || waited == 1000 {
            break taken;
        }
        waited += 1;
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    check!(taken == [(8, 0)], "{taken:?}");
    Ok(())
}
