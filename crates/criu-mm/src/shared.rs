//! Anonymous shared memory: an object that several mappings, of several processes, are windows of.
//!
//! Its content is written once, whoever maps it. At restore the driver makes each object before the
//! first task is born, so that all inherit a descriptor of it; a task brings in the content.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;

use criu_image::id::ShmId;
use criu_image::pages::{PageFlags, PagemapWriter};
use criu_image::{Store, desc};
use criu_kind::{Error, Result, Subject, Within};
use criu_proc::ProcDir;
use criu_tracee::Tracee;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek};

use crate::drain::{Capture, DrainOptions, Stats, new_pages, write};
use crate::page_size;
use crate::survey::{Area, AreaKind, Space};
use crate::transfer::{Piece, transfers};

/// Bytes that a process writes by one call.
const BATCH: u64 = 64 << 20;
/// Below this the driver is quicker.
const SMALL: u64 = 256 << 10;

/// A window of a process on an object.
#[derive(Clone, Copy, Debug)]
struct Window<'a> {
    tracee: usize,
    area: &'a Area,
    pgoff: u64,
}

impl Window<'_> {
    fn end(&self) -> u64 {
        self.pgoff.saturating_add(self.area.end - self.area.start)
    }
}

/// Writes the content of every object that the processes map.
pub(crate) fn drain(
    tracees: &mut [Tracee],
    spaces: &[Space],
    store: &dyn Store,
    options: &mut DrainOptions,
    stats: &mut Stats,
) -> Result<()> {
    let mut objects: BTreeMap<ShmId, Vec<Window<'_>>> = BTreeMap::new();
    for (tracee, space) in spaces.iter().enumerate() {
        for area in &space.areas {
            if let AreaKind::Shared { id, pgoff } = area.kind {
                let window = Window {
                    tracee,
                    area,
                    pgoff,
                };
                objects.entry(id).or_default().push(window);
            }
        }
    }
    for (id, windows) in objects {
        drain_one(tracees, spaces, id, &windows, store, options, stats)
            .within(|| Subject::Object(format!("shared memory {id}")))?;
    }
    Ok(())
}

fn drain_one(
    tracees: &mut [Tracee],
    spaces: &[Space],
    id: ShmId,
    windows: &[Window<'_>],
    store: &dyn Store,
    options: &mut DrainOptions,
    stats: &mut Stats,
) -> Result<()> {
    let size = windows.iter().map(Window::end).max().unwrap_or(0);
    stats.shared_scanned += size / page_size();
    let widest = *windows
        .iter()
        .max_by_key(|window| (window.area.readable, window.area.end - window.area.start))
        .ok_or_else(|| Error::corrupt("shmem", "an object without mappings"))?;
    let Some(object) = open(&tracees[widest.tracee], widest.area)? else {
        return Err(Error::unsupported(
            "shared memory that this user may not open through /proc/PID/map_files",
            "run with CAP_CHECKPOINT_RESTORE",
        ));
    };
    let (pages, file) = new_pages(store, options)?;
    let mut pagemap = PagemapWriter::create(store, desc::SHMEM_PAGEMAP, id, pages, page_size())?;
    // From an address in the widest window to the place in the object.
    let shift = widest.pgoff.wrapping_sub(widest.area.start);
    let mut inside = Vec::new();
    let mut outside = Vec::new();
    let mut offset = 0;
    for (start, end) in data(&object, size)? {
        let len = end - start;
        pagemap.push(start, len / page_size(), PageFlags::PRESENT)?;
        let piece = Piece {
            at: start.wrapping_sub(shift),
            len,
            offset,
        };
        let seen = widest.area.readable && widest.pgoff <= start && end <= widest.end();
        if seen { &mut inside } else { &mut outside }.push(piece);
        offset += len;
    }
    pagemap.finish()?;
    stats.shared_written += offset / page_size();
    let bytes: u64 = inside.iter().map(|piece| piece.len).sum();
    let limited = spaces[widest.tracee].file_limit.is_some_and(|limit| offset > limit);
    if !options.in_target || limited || bytes < SMALL {
        outside.append(&mut inside);
    }
    let capture = Capture {
        tracee: widest.tracee,
        file,
        inside: transfers(inside, BATCH),
        outside,
        shift,
        object: Some(object),
    };
    write(tracees, &[capture])
}

/// The object behind a mapping; `None` without the privilege for it.
fn open(tracee: &Tracee, area: &Area) -> Result<Option<File>> {
    let proc = ProcDir::open(tracee.pid())?;
    let name = format!("map_files/{:x}-{:x}", area.start, area.end);
    match proc.open_file(&name, OFlag::O_RDONLY) {
        Ok(fd) => Ok(Some(fd.into())),
        Err(criu_proc::Error::Kernel {
            errno: Errno::EPERM | Errno::EACCES,
            ..
        }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The runs of an object that have pages, in memory or in swap.
fn data(object: &File, size: u64) -> Result<Vec<(u64, u64)>> {
    let seek = |at: u64, whence| match lseek(object.as_fd(), at.cast_signed(), whence) {
        Ok(at) => Ok(Some(at.cast_unsigned())),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(Error::kernel("lseek(shared memory)")(errno)),
    };
    let page = page_size();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < size {
        let Some(start) = seek(at, Whence::SeekData)? else {
            break;
        };
        let end = seek(start, Whence::SeekHole)?.unwrap_or(size).next_multiple_of(page).min(size);
        let start = start & !(page - 1);
        if start >= end {
            break;
        }
        runs.push((start, end));
        at = end;
    }
    Ok(runs)
}
