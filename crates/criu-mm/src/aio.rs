//! Rings of asynchronous I/O: io_setup(2).
//!
//! A ring is memory that the kernel and the program share, and a count of its own that the kernel
//! keeps. To bring that count to where it was, as many requests are made and completed. Requests in
//! flight at the dump are not kept: they are nobody's state but the kernel's.

use criu_image::pb;
use criu_kind::{Error, Result};
use criu_tracee::arch::Arch;
use criu_tracee::{Native, Program, Site, Sysno, Tracee};

use crate::clear::remap;
use crate::image::SpaceImage;
use crate::page_size;

/// `struct aio_ring` and `struct io_event`.
const HEADER: u64 = HEADER_BYTES as u64;
const HEADER_BYTES: usize = 32;
const EVENT: u64 = EVENT_BYTES as u64;
const EVENT_BYTES: usize = 32;
/// Requests made at a time.
const GROUP: u32 = 16;

/// The entry of a ring. The kernel gives room for more requests than were asked for; this is the
/// number that makes it give the same again: `ioctx_alloc` in `fs/aio.c` doubles it, and
/// `aio_setup_ring` adds two and fills the last page.
pub(crate) fn describe(vma: &pb::VmaEntry) -> pb::AioRingEntry {
    let len = (vma.end - vma.start).next_multiple_of(page_size());
    let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    pb::AioRingEntry {
        id: vma.start,
        nr_req: number((events(len).saturating_sub(2)) / 2),
        ring_len: number(len),
    }
}

/// How many events a ring has room for.
fn events(len: u64) -> u64 {
    len.saturating_sub(HEADER) / EVENT
}

/// Where a ring stands, from its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    nr: u32,
    head: u32,
    tail: u32,
}

impl Header {
    fn read(bytes: &[u8; HEADER_BYTES]) -> Self {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            nr: word(4),
            head: word(8),
            tail: word(12),
        }
    }

    /// Events that the program has not taken yet.
    fn waiting(self) -> u32 {
        if self.tail >= self.head {
            self.tail - self.head
        } else {
            self.nr - self.head + self.tail
        }
    }
}

/// Makes the rings of a process again, where they were.
pub(crate) fn restore(tracee: &mut Tracee, image: &SpaceImage) -> Result<()> {
    for ring in &image.mm.aios {
        restore_one(tracee, image, ring)?;
    }
    Ok(())
}

fn restore_one(tracee: &mut Tracee, image: &SpaceImage, ring: &pb::AioRingEntry) -> Result<()> {
    let corrupt = |why| Error::corrupt("mm", format!("AIO ring {:#x}: {why}", ring.id));
    let mut bytes = [0; HEADER_BYTES];
    image.pages.read(ring.id, &mut bytes)?;
    let wanted = Header::read(&bytes);
    if u64::from(wanted.nr) != events(ring.ring_len.into())
        || wanted.head >= wanted.nr
        || wanted.tail >= wanted.nr
    {
        return Err(corrupt("its header is impossible"));
    }
    let mut program = Program::new();
    let context = program.in_out([0; 8]);
    program.io_setup(ring.nr_req, context);
    let name = program.cstr("");
    let null = program.memfd_create(name, libc::MFD_CLOEXEC);
    let outcome = tracee.run(&program)?;
    let mut word = [0; 8];
    word[..Native::WORD].copy_from_slice(&outcome.bytes(context)[..Native::WORD]);
    let (context, null) = (u64::from_ne_bytes(word), outcome.fd(null));
    tracee.memory().read(context, &mut bytes)?;
    if Header::read(&bytes).nr != wanted.nr {
        return Err(Error::unsupported(
            format!(
                "this kernel makes AIO rings of another size than {} requests",
                wanted.nr
            ),
            "restore on the kernel of the dump",
        ));
    }
    complete(tracee, context, null, wanted.head, true)?;
    complete(tracee, context, null, wanted.waiting(), false)?;
    let mut program = Program::new();
    program.close(null);
    let size = u64::from(ring.ring_len);
    remap(&mut program, &(context..context + size), ring.id);
    tracee.run(&program)?;
    let mut content = vec![0; usize::try_from(size - HEADER).unwrap_or(0)];
    image.pages.read(ring.id + HEADER, &mut content)?;
    tracee.memory().write(ring.id + HEADER, &content)?;
    tracee.memory().read(ring.id, &mut bytes)?;
    if Header::read(&bytes) != wanted {
        return Err(corrupt("the kernel could not be brought to its place"));
    }
    Ok(())
}

/// Makes requests that are complete at once: reads of nothing. `take`: and takes their events.
fn complete(tracee: &mut Tracee, context: u64, null: i32, count: u32, take: bool) -> Result<()> {
    let mut done = 0;
    while done < count {
        let mut program = Program::new();
        let room = program.room(8);
        // `struct iocb`: data, key and flags, opcode and priority, descriptor, buffer, length …
        let mut request = vec![0; 64];
        request[20..24].copy_from_slice(&null.to_ne_bytes());
        request[32] = 1;
        let request = program.bytes(request);
        program.link(request, 24, room);
        let size = usize::try_from(GROUP).unwrap_or(0);
        let requests = program.bytes(vec![0; size * Native::WORD]);
        for slot in 0..size {
            program.link(requests, slot * Native::WORD, request);
        }
        let events = program.room(size * EVENT_BYTES);
        let mut submitted = Vec::new();
        let mut left = count - done;
        while left > 0 {
            let group = left.min(GROUP);
            let args = [context.into(), group.into(), requests.into()];
            submitted.push(program.call(Sysno::io_submit, args));
            if take {
                let args = [
                    context.into(),
                    0.into(),
                    GROUP.into(),
                    events.into(),
                    0.into(),
                ];
                program.call(Sysno::io_getevents, args);
            }
            left -= group;
        }
        let outcome = tracee.run(&program)?;
        let sum: i64 = submitted.iter().map(|ret| outcome.value(*ret)).sum();
        done += u32::try_from(sum).unwrap_or(0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_that_gives_the_same_ring() {
        // io_setup(128) on two processors: 128 * 2 + 2 events, and what fills the third page.
        let vma = pb::VmaEntry {
            start: 0x1000,
            end: 0x4000,
            ..pb::VmaEntry::default()
        };
        let entry = describe(&vma);
        assert_eq!(
            (entry.ring_len, events(entry.ring_len.into())),
            (0x3000, 383)
        );
        let again = (u64::from(entry.nr_req) * 2 + 2) * EVENT + HEADER;
        assert_eq!(again.next_multiple_of(page_size()), 0x3000);
    }

    #[test]
    fn events_that_wait() {
        let ring = |head, tail| Header { nr: 10, head, tail }.waiting();
        assert_eq!((ring(3, 7), ring(7, 3), ring(4, 4)), (4, 6, 0));
    }
}
