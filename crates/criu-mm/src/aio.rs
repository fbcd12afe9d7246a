//! Rings of asynchronous I/O: io_setup(2).

use criu_image::pb;
use criu_kind::{Error, Result};
use criu_tracee::Tracee;

use crate::image::SpaceImage;
use crate::page_size;

/// `struct aio_ring` and `struct io_event`.
const HEADER: u64 = 32;
const EVENT: u64 = 32;

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

/// Makes the rings of a process again, where they were.
pub(crate) fn restore(tracee: &mut Tracee, image: &SpaceImage) -> Result<()> {
    let _ = tracee;
    match image.mm.aios.first() {
        Some(_) => Err(Error::unsupported("an AIO ring", "not done yet")),
        None => Ok(()),
    }
}
