//! Rings of io_uring(7), seen and made through a descriptor.
//!
//! A ring is memory that the kernel and programs share, and counts of its own that the kernel keeps
//! beside it. Memory is copied; the counts are brought to where they were by as many requests that do
//! nothing, as `io_uring/io_uring.c` gives no other way. All of it happens in the tracer, for tasks
//! only need the descriptor.
#![allow(
    unsafe_code,
    reason = "a ring is read, written and asked through its mapping"
)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use syscalls::{Sysno, raw_syscall};

use crate::error::{Error, Result};
use crate::window::{Window, page, round};

// `include/uapi/linux/io_uring.h`.
const SETUP_CQSIZE: u32 = 1 << 3;
/// Linux 5.18: a request that fails does not end a submission. Programs without it notice nothing.
const SETUP_SUBMIT_ALL: u32 = 1 << 7;
const OFF_RINGS: i64 = 0;
const OFF_SQES: i64 = 0x1000_0000;
const ENTER_GETEVENTS: u32 = 1;
const REGISTER_EVENTFD: u32 = 4;
const REGISTER_PBUF_STATUS: u32 = 26;
const REGISTER_NAPI: u32 = 27;
const CQE_SKIP_SUCCESS: u8 = 1 << 6;
const OP_NOP: u8 = 0;
const OP_MSG_RING: u8 = 40;
/// Bytes of a request and of a completion.
const SQE: usize = 64;
const CQE: usize = 16;

/// What the kernel does not show of a ring, but answers differently for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingTraits {
    /// `IORING_SETUP_R_DISABLED`, and not enabled yet.
    pub disabled: bool,
    /// `IORING_SETUP_SINGLE_ISSUER`: only its own thread may ask for more.
    pub single_issuer: bool,
    /// `IORING_REGISTER_RESTRICTIONS`.
    pub restricted: bool,
    /// `IORING_SETUP_IOPOLL`.
    pub polled: bool,
    /// An eventfd is registered.
    pub eventfd: bool,
    /// Buffers were provided for it, in at least one group.
    pub provided_buffers: bool,
}

/// A ring as images have it. Counts are those of the kernel, modulo 2³².
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingState {
    /// Room for requests.
    pub sq_entries: u32,
    /// Room for completions.
    pub cq_entries: u32,
    /// Requests the kernel has taken.
    pub sq_head: u32,
    /// Requests the program has made.
    pub sq_tail: u32,
    /// Completions the program has taken.
    pub cq_head: u32,
    /// Completions the kernel has made.
    pub cq_tail: u32,
    /// Requests that were none.
    pub sq_dropped: u32,
    /// Completions that were lost.
    pub cq_overflow: u32,
    /// What the program says to the kernel: `IORING_CQ_EVENTFD_DISABLED`.
    pub cq_flags: u32,
    /// Which requests are in the places of the queue.
    pub sq_array: Vec<u32>,
    /// The requests.
    pub sqes: Vec<u8>,
    /// The completions.
    pub cqes: Vec<u8>,
    /// Where the kernel has all that: `sq_off` and `cq_off` of `struct io_uring_params`, seven words each.
    pub layout: Vec<u32>,
}

/// `struct io_uring_params`, as words.
#[derive(Clone, Copy, Debug)]
struct Params([u32; 30]);

impl Params {
    fn sq(&self, field: usize) -> usize {
        self.0[10 + field] as usize
    }
    fn cq(&self, field: usize) -> usize {
        self.0[20 + field] as usize
    }
    /// Bytes of the rings up to the array of the requests, and with it.
    fn rings(&self) -> usize {
        let cqes = self.cq(5) + self.0[1] as usize * CQE;
        cqes.max(self.sq(6) + self.0[0] as usize * 4)
    }
    fn sqes(&self) -> usize {
        self.0[0] as usize * SQE
    }
    fn layout(&self) -> Vec<u32> {
        [&self.0[10..17], &self.0[20..27]].concat()
    }
}

/// Asks a ring what it is. Changes nothing in it.
pub fn ring_traits(ring: BorrowedFd<'_>) -> RingTraits {
    let enter = |flags| {
        // SAFETY: submits nothing, waits for nothing, and passes no address.
        let ret = unsafe { raw_syscall!(Sysno::io_uring_enter, fd(ring), 0, 0, flags, 0, 0) };
        failure(ret)
    };
    let register = |what: u32, at: usize| {
        // SAFETY: the address is of a structure that the kernel reads and whose values it refuses, or
        // is none at all.
        let ret = unsafe { raw_syscall!(Sysno::io_uring_register, fd(ring), what, at, 1) };
        failure(ret)
    };
    let no_descriptor = -1i32;
    let at = (&raw const no_descriptor).addr();
    let asked = register(REGISTER_EVENTFD, at);
    let mut traits = RingTraits {
        disabled: enter(0) == Some(Errno::EBADFD),
        single_issuer: asked == Some(Errno::EEXIST)
            || enter(ENTER_GETEVENTS) == Some(Errno::EEXIST),
        restricted: asked == Some(Errno::EACCES),
        eventfd: asked == Some(Errno::EBUSY),
        // The kernel looks whether the ring can at all before it reads the address, which is none.
        polled: register(REGISTER_NAPI, 1) == Some(Errno::EINVAL) && register_knows(REGISTER_NAPI),
        provided_buffers: false,
    };
    // A kernel that cannot be asked, before Linux 6.8, gives the same answer for every group.
    let may_ask = !traits.single_issuer && !traits.restricted;
    if may_ask && register_knows(REGISTER_PBUF_STATUS) {
        traits.provided_buffers = (0..=u16::MAX).any(|group| {
            // `struct io_uring_buf_status`.
            let mut status = [0u32; 10];
            status[0] = group.into();
            let at = status.as_mut_ptr().addr();
            // A group of buffers given one by one is there too, but has no status.
            matches!(
                register(REGISTER_PBUF_STATUS, at),
                None | Some(Errno::EINVAL)
            )
        });
    }
    traits
}

/// Whether this kernel has that request of io_uring_register(2) at all, as a fresh ring tells.
fn register_knows(what: u32) -> bool {
    let Ok((probe, _)) = setup(1, 2) else {
        return false;
    };
    let mut status = [0u32; 10];
    let at = match what {
        REGISTER_NAPI => 1,
        _ => status.as_mut_ptr().addr(),
    };
    // SAFETY: as in `ring_traits`.
    let ret = unsafe { raw_syscall!(Sysno::io_uring_register, probe.as_raw_fd(), what, at, 1) };
    matches!(failure(ret), Some(Errno::EFAULT | Errno::ENOENT))
}

/// Copies what a ring of this size holds. `None`: its entries are larger, or its memory the program's.
pub fn ring_state(
    ring: BorrowedFd<'_>,
    sq_entries: u32,
    cq_entries: u32,
) -> Result<Option<RingState>> {
    let (like, params) = setup(sq_entries, cq_entries)?;
    if params.0[..2] != [sq_entries, cq_entries] {
        return Ok(None);
    }
    for (offset, length) in [(OFF_RINGS, params.rings()), (OFF_SQES, params.sqes())] {
        let more = round(length) + page();
        let larger = |fd| Window::map(fd, more, offset).is_ok();
        if larger(ring) && !larger(borrow(&like)) {
            return Ok(None);
        }
    }
    let shorter = params.cq(5) + cq_entries as usize * CQE;
    // Without an array of places it may be shorter by a page.
    let rings = match Window::map(ring, params.rings(), OFF_RINGS) {
        Err(Error::Kernel {
            errno: Errno::EINVAL,
            ..
        }) => Window::map(ring, shorter, OFF_RINGS),
        other => other,
    };
    let (Ok(rings), Ok(sqes)) = (rings, Window::map(ring, params.sqes(), OFF_SQES)) else {
        return Ok(None);
    };
    let array = (0..sq_entries as usize).map(|slot| params.sq(6) + slot * 4);
    let there = rings.length();
    let sq_array = array.map(|at| if at + 4 <= there { rings.get(at) } else { 0 });
    Ok(Some(RingState {
        sq_entries,
        cq_entries,
        sq_head: rings.get(params.sq(0)),
        sq_tail: rings.get(params.sq(1)),
        cq_head: rings.get(params.cq(0)),
        cq_tail: rings.get(params.cq(1)),
        sq_dropped: rings.get(params.sq(5)),
        cq_overflow: rings.get(params.cq(4)),
        cq_flags: rings.get(params.cq(6)),
        sq_array: sq_array.collect(),
        sqes: sqes.bytes(0, params.sqes()),
        cqes: rings.bytes(params.cq(5), cq_entries as usize * CQE),
        layout: params.layout(),
    }))
}

/// Where this kernel has the words of rings of this size.
pub fn ring_layout(sq_entries: u32, cq_entries: u32) -> Result<Vec<u32>> {
    setup(sq_entries, cq_entries).map(|(_, params)| params.layout())
}

/// Makes a ring, and brings it to where another was.
pub fn make_ring(state: &RingState) -> Result<OwnedFd> {
    let (ring, params) = setup(state.sq_entries, state.cq_entries)?;
    let impossible = Error::Kernel {
        call: "io_uring_setup",
        errno: Errno::EOVERFLOW,
    };
    let fits = params.0[..2] == [state.sq_entries, state.cq_entries]
        && state.sq_array.len() == state.sq_entries as usize
        && state.sqes.len() == params.sqes()
        && state.cqes.len() == state.cq_entries as usize * CQE
        && state.cq_tail.wrapping_sub(state.cq_head) <= state.cq_entries
        && state.sq_tail.wrapping_sub(state.sq_head) <= state.sq_entries;
    if !fits {
        return Err(impossible);
    }
    let rings = Window::map(borrow(&ring), params.rings(), OFF_RINGS)?;
    let sqes = Window::map(borrow(&ring), params.sqes(), OFF_SQES)?;
    let queue = Queue {
        fd: borrow(&ring),
        params,
        rings: &rings,
        sqes: &sqes,
    };
    queue.advance(state)?;
    sqes.put(0, &state.sqes);
    rings.put(params.cq(5), &state.cqes);
    for (slot, place) in state.sq_array.iter().enumerate() {
        rings.set(params.sq(6) + slot * 4, *place);
    }
    rings.set(params.cq(0), state.cq_head);
    rings.set(params.sq(5), state.sq_dropped);
    rings.set(params.cq(4), state.cq_overflow);
    rings.set(params.cq(6), state.cq_flags);
    rings.set(params.sq(1), state.sq_tail);
    drop((rings, sqes));
    Ok(ring)
}

/// A ring that the tracer itself uses.
struct Queue<'a> {
    fd: BorrowedFd<'a>,
    params: Params,
    rings: &'a Window,
    sqes: &'a Window,
}

impl Queue<'_> {
    /// Lets the kernel take and complete requests until its counts are those. What the program had
    /// taken is taken as well, no more: the kernel keeps off the rest from then on.
    fn advance(&self, state: &RingState) -> Result<()> {
        let unread = state.cq_tail.wrapping_sub(state.cq_head);
        let mut requests = state.sq_head;
        let mut completions = state.cq_tail;
        for slot in 0..state.sq_entries {
            self.rings.set(self.params.sq(6) + slot as usize * 4, slot);
        }
        while requests > 0 {
            let count = requests.min(state.sq_entries);
            self.submit(count, |index| request(OP_NOP, index >= completions))?;
            requests -= count;
            completions -= count.min(completions);
            self.take(completions, unread);
        }
        // More completions than requests: some were answered more than once.
        if completions > 0 {
            let (helper, params) = setup(state.sq_entries, state.cq_entries)?;
            let rings = Window::map(borrow(&helper), params.rings(), OFF_RINGS)?;
            let sqes = Window::map(borrow(&helper), params.sqes(), OFF_SQES)?;
            let helper = Queue {
                fd: borrow(&helper),
                params,
                rings: &rings,
                sqes: &sqes,
            };
            for slot in 0..state.sq_entries {
                rings.set(params.sq(6) + slot as usize * 4, slot);
            }
            while completions > 0 {
                let count = completions.min(state.sq_entries);
                let mut message = request(OP_MSG_RING, false);
                message[4..8].copy_from_slice(&self.fd.as_raw_fd().to_ne_bytes());
                helper.submit(count, |_| message)?;
                completions -= count;
                helper.take(0, 0);
                self.take(completions, unread);
            }
        }
        let there = (
            self.rings.get(self.params.sq(0)),
            self.rings.get(self.params.cq(1)),
        );
        if there != (state.sq_head, state.cq_tail) {
            return Err(Error::Kernel {
                call: "io_uring_enter",
                errno: Errno::EPROTO,
            });
        }
        Ok(())
    }

    fn submit(&self, count: u32, make: impl Fn(u32) -> [u8; SQE]) -> Result<()> {
        let tail = self.rings.get(self.params.sq(1));
        let mask = self.params.0[0] - 1;
        for index in 0..count {
            let slot = (tail.wrapping_add(index) & mask) as usize;
            self.sqes.put(slot * SQE, &make(index));
        }
        self.rings.set(self.params.sq(1), tail.wrapping_add(count));
        // SAFETY: the requests name no memory.
        let ret = unsafe {
            raw_syscall!(
                Sysno::io_uring_enter,
                fd(self.fd),
                count,
                0,
                ENTER_GETEVENTS,
                0,
                0
            )
        };
        match failure(ret) {
            None if u32::try_from(ret) == Ok(count) => Ok(()),
            errno => Err(Error::Kernel {
                call: "io_uring_enter",
                errno: errno.unwrap_or(Errno::EPROTO),
            }),
        }
    }

    /// Takes completions, but for those that were not taken in the end. So many are still to come.
    fn take(&self, to_come: u32, unread: u32) {
        let tail = self.rings.get(self.params.cq(1));
        let end = tail.wrapping_add(to_come).wrapping_sub(unread);
        let ahead = end.wrapping_sub(tail).cast_signed() > 0 || to_come > unread;
        self.rings
            .set(self.params.cq(0), if ahead { tail } else { end });
    }
}

fn request(operation: u8, silent: bool) -> [u8; SQE] {
    let mut request = [0; SQE];
    request[0] = operation;
    request[1] = if silent { CQE_SKIP_SUCCESS } else { 0 };
    request
}

fn setup(sq_entries: u32, cq_entries: u32) -> Result<(OwnedFd, Params)> {
    let mut last = Errno::EINVAL;
    for flags in [SETUP_CQSIZE | SETUP_SUBMIT_ALL, SETUP_CQSIZE] {
        let mut params = Params([0; 30]);
        (params.0[1], params.0[2]) = (cq_entries, flags);
        let at = params.0.as_mut_ptr().addr();
        // SAFETY: the kernel fills the structure, which is as long as it wants.
        let ret = unsafe { raw_syscall!(Sysno::io_uring_setup, sq_entries, at) };
        match (failure(ret), i32::try_from(ret)) {
            // SAFETY: the descriptor is new and nobody else's.
            (None, Ok(new)) => return Ok((unsafe { OwnedFd::from_raw_fd(new) }, params)),
            (errno, _) => last = errno.unwrap_or(Errno::EINVAL),
        }
        if last != Errno::EINVAL {
            break;
        }
    }
    Err(Error::Kernel {
        call: "io_uring_setup",
        errno: last,
    })
}

fn failure(ret: usize) -> Option<Errno> {
    crate::encode::failure(ret.cast_signed() as i64)
}

fn fd(fd: BorrowedFd<'_>) -> i32 {
    fd.as_raw_fd()
}

fn borrow(fd: &OwnedFd) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(fd)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// A state that a ring may have, or `None` where the kernel has no rings.
    fn state(sq_head: u32, cq_tail: u32, unread: u32) -> Option<RingState> {
        let (ring, _) = setup(8, 16).ok()?;
        let mut state = ring_state(ring.as_fd(), 8, 16).ok()??;
        (state.sq_head, state.sq_tail) = (sq_head, sq_head + 2);
        (state.cq_tail, state.cq_head) = (cq_tail, cq_tail - unread);
        state.cqes = (0..16 * CQE).map(|byte| byte.to_le_bytes()[0]).collect();
        state.sqes = (0..8 * SQE)
            .map(|byte| (byte * 7).to_le_bytes()[0])
            .collect();
        state.sq_array = vec![3, 1, 2, 0, 4, 5, 7, 6];
        Some(state)
    }

    #[test]
    fn a_ring_is_where_the_other_was() {
        for (sq_head, cq_tail, unread) in [
            (0, 0, 0),
            (5, 5, 0),
            (1003, 1000, 16),
            (77, 80, 3),
            (9, 400, 16),
            (100_001, 7, 7),
        ] {
            let Some(state) = state(sq_head, cq_tail, unread) else {
                return;
            };
            let ring = make_ring(&state).expect("made");
            let again = ring_state(ring.as_fd(), 8, 16)
                .expect("read")
                .expect("like it");
            assert_eq!(again, state, "{sq_head} {cq_tail} {unread}");
            assert_eq!(ring_traits(ring.as_fd()), RingTraits::default());
        }
    }

    #[test]
    fn completions_nobody_took_are_left_alone() {
        let Some(mut state) = state(3, 20, 10) else {
            return;
        };
        state.sq_tail = state.sq_head;
        let ring = make_ring(&state).expect("made");
        let (_, params) = setup(8, 16).expect("as before");
        let rings = Window::map(ring.as_fd(), params.rings(), OFF_RINGS).expect("mapped");
        let sqes = Window::map(ring.as_fd(), params.sqes(), OFF_SQES).expect("mapped");
        for slot in 0..8 {
            rings.set(params.sq(6) + slot * 4, u32::try_from(slot).expect("few"));
        }
        let queue = Queue {
            fd: ring.as_fd(),
            params,
            rings: &rings,
            sqes: &sqes,
        };
        queue
            .submit(6, |_| request(OP_NOP, false))
            .expect("room for six");
        assert_eq!(rings.get(params.cq(1)), 26);
        for position in 10..20 {
            let at = params.cq(5) + (position & 15) * CQE;
            let old = &state.cqes[(position & 15) * CQE..][..CQE];
            assert_eq!(rings.bytes(at, CQE), old, "completion {position}");
        }
    }

    #[test]
    fn what_is_not_said_is_asked() {
        let Ok((ring, _)) = setup(8, 16) else {
            return;
        };
        let event = nix::sys::eventfd::EventFd::new().expect("an eventfd");
        let number = event.as_raw_fd();
        let at = (&raw const number).addr();
        // SAFETY: the kernel reads one number.
        let ret = unsafe {
            raw_syscall!(
                Sysno::io_uring_register,
                ring.as_raw_fd(),
                REGISTER_EVENTFD,
                at,
                1
            )
        };
        assert_eq!(failure(ret), None);
        let traits = ring_traits(ring.as_fd());
        assert_eq!(
            traits,
            RingTraits {
                eventfd: true,
                ..RingTraits::default()
            }
        );
    }
}
