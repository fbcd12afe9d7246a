//! Anonymous shared memory: an object that several mappings, of several processes, are windows of.
//!
//! Its content is written once, whoever maps it. At restore the driver makes each object before the
//! first task is born, so that all inherit a descriptor of it; a task brings in the content.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

use criu_image::id::ShmId;
use criu_image::pages::{PageFlags, PagemapWriter};
use criu_image::{Store, desc};
use criu_kind::{Error, Result, Subject, Within};
use criu_proc::ProcDir;
use criu_tracee::{Program, Site, Sysno, Tracee, shared_anonymous, write_huge};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::{Whence, lseek64};

use crate::bits::map;
use crate::drain::{Capture, DrainOptions, Stats, new_pages, write};
use crate::image::{Backing, SpaceImage, backing};
use crate::page_size;
use crate::pages::Pages;
use crate::survey::{Area, AreaKind, Space};
use crate::transfer::{Piece, transfers};

/// Bytes that a process writes by one call.
const BATCH: u64 = 64 << 20;
/// Below this the driver is quicker.
const SMALL: u64 = 256 << 10;
/// The driver's buffer.
const BUFFER: usize = 256 << 10;

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

/// Writes the content of an object that somebody else keeps the rest of: a memfd, a System V segment.
/// The driver copies it.
pub fn drain_object(
    object: &File,
    size: u64,
    id: ShmId,
    store: &dyn Store,
    options: &mut DrainOptions,
) -> Result<Stats> {
    let (pages, file) = new_pages(store, options)?;
    let mut pagemap = PagemapWriter::new(desc::SHMEM_PAGEMAP, id, pages, page_size())?;
    let mut buffer = vec![0; BUFFER];
    let mut offset = 0;
    for (start, end) in data(object, size)? {
        pagemap.push(start, (end - start) / page_size(), PageFlags::PRESENT)?;
        for at in (start..end).step_by(buffer.len()) {
            let length = usize::try_from(end - at).map_or(buffer.len(), |n| n.min(buffer.len()));
            let part = &mut buffer[..length];
            part.fill(0);
            // The last page may end behind the end of the object.
            let there = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX);
            object
                .read_exact_at(&mut part[..length.min(there)], at)
                .map_err(Error::io("pread(shared memory)"))?;
            file.write_all_at(part, offset)
                .map_err(Error::io("pwrite(pages image)"))?;
            offset += length as u64;
        }
    }
    pagemap.finish(store)?;
    Ok(Stats {
        shared_scanned: size.div_ceil(page_size()),
        shared_written: offset / page_size(),
        ..Stats::default()
    })
}

/// Brings the content of such an object into a new one.
pub fn bring_object(store: &dyn Store, id: ShmId, object: &File, size: u64) -> Result<()> {
    let pages = Pages::load(store, desc::SHMEM_PAGEMAP, id)?;
    if size == 0 && pages.is_none() {
        return Ok(()); // CRIU writes no image of an empty one.
    }
    let pages =
        pages.ok_or_else(|| Error::corrupt(desc::SHMEM_PAGEMAP.file_name(id), "it is missing"))?;
    let end = size.next_multiple_of(page_size());
    if pages.runs().last().is_some_and(|run| run.end > end) {
        let image = desc::SHMEM_PAGEMAP.file_name(id);
        return Err(Error::corrupt(image, "pages behind the end of the object"));
    }
    pages.copy_to(object, size)
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
    let mut pagemap = PagemapWriter::new(desc::SHMEM_PAGEMAP, id, pages, page_size())?;
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
        // To read a huge page that is not there through a mapping would make it.
        let plain = huge_page(&object)?.is_none();
        let seen = plain && widest.area.readable && widest.pgoff <= start && end <= widest.end();
        if seen { &mut inside } else { &mut outside }.push(piece);
        offset += len;
    }
    pagemap.finish(store)?;
    stats.shared_written += offset / page_size();
    let bytes: u64 = inside.iter().map(|piece| piece.len).sum();
    let limited = spaces[widest.tracee]
        .file_limit
        .is_some_and(|limit| offset > limit);
    if !options.in_target || limited || bytes < SMALL {
        outside.append(&mut inside);
    }
    let capture = Capture {
        tracee: widest.tracee,
        file,
        inside: transfers(inside, BATCH),
        outside,
        shift,
        object: Some(&object),
        barred: Vec::new(),
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
    if let Some(huge) = huge_page(object)? {
        return huge_data(object, size, huge);
    }
    let seek = |at: u64, whence| match lseek64(object.as_fd(), at.cast_signed(), whence) {
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
        let end = seek(start, Whence::SeekHole)?
            .unwrap_or(size)
            .min(size)
            .next_multiple_of(page);
        let start = start & !(page - 1);
        if start >= end {
            break;
        }
        runs.push((start, end));
        at = end;
    }
    Ok(runs)
}

/// The size of the pages of an object, if they are huge.
pub(crate) fn huge_page(object: &File) -> Result<Option<u64>> {
    let fs = fstatfs(object).map_err(Error::kernel("fstatfs(shared memory)"))?;
    let huge = fs.filesystem_type() == HUGETLBFS_MAGIC;
    Ok(huge.then(|| u64::try_from(fs.block_size()).unwrap_or(0)))
}

/// The runs of huge pages that hold anything: which ones there are the file system does not tell.
fn huge_data(object: &File, size: u64, huge: u64) -> Result<Vec<(u64, u64)>> {
    let mut buffer = vec![0; BUFFER];
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let step = usize::try_from(huge).unwrap_or(usize::MAX);
    for start in (0..size).step_by(step) {
        let mut at = start;
        let end = (start + huge).min(size);
        let mut empty = true;
        while empty && at < end {
            let length = usize::try_from(end - at).map_or(BUFFER, |left| left.min(BUFFER));
            object
                .read_exact_at(&mut buffer[..length], at)
                .map_err(Error::io("pread(shared memory)"))?;
            empty = buffer[..length].iter().all(|byte| *byte == 0);
            at += length as u64;
        }
        match runs.last_mut() {
            _ if empty => {}
            Some(last) if last.1 == start => last.1 = end,
            _ => runs.push((start, end)),
        }
    }
    Ok(runs)
}

/// Writes into an object, whatever its pages are.
pub(crate) fn put(object: &File, huge: Option<u64>, at: u64, bytes: &[u8]) -> Result<()> {
    match huge {
        Some(huge) => Ok(write_huge(object, huge, at, bytes)?),
        None => object
            .write_all_at(bytes, at)
            .map_err(Error::io("pwrite(shared memory)")),
    }
}

/// The objects of anonymous shared memory of a tree, made but still empty.
#[derive(Debug, Default)]
pub struct Shared {
    objects: BTreeMap<ShmId, Object>,
}

#[derive(Debug)]
struct Object {
    file: File,
    size: u64,
    pages: Pages,
}

impl Shared {
    /// Makes all that the images map. Before the first task is born: it and all others inherit them.
    pub fn create(images: &[SpaceImage], store: &dyn Store) -> Result<Self> {
        let mut sizes: BTreeMap<ShmId, (u64, bool, Option<u32>)> = BTreeMap::new();
        for vma in images.iter().flat_map(SpaceImage::vmas) {
            if backing(vma) == Backing::Shared {
                let entry = sizes.entry(ShmId::new(vma.shmid)).or_default();
                entry.0 = entry.0.max(vma.pgoff + (vma.end - vma.start));
                entry.1 |= vma.flags & map::NORESERVE != 0;
                if vma.flags & map::HUGETLB != 0 {
                    entry.2 = Some((vma.flags & map::HUGE_MASK) >> map::HUGE_SHIFT);
                }
            }
        }
        for (id, size) in images.iter().flat_map(|image| &image.sizes) {
            let entry = sizes.entry(*id).or_default();
            entry.0 = entry.0.max(size.next_multiple_of(page_size()));
        }
        let mut objects = BTreeMap::new();
        for (id, (size, noreserve, huge)) in sizes {
            let image = desc::SHMEM_PAGEMAP.file_name(id);
            let pages = Pages::load(store, desc::SHMEM_PAGEMAP, id)?
                .ok_or_else(|| Error::corrupt(&image, "missing"))?;
            if pages.runs().last().is_some_and(|run| run.end > size) {
                return Err(Error::corrupt(&image, "pages behind the end of the object"));
            }
            let file = shared_anonymous(size, !noreserve, huge)
                .within(|| Subject::Object(format!("shared memory {id}")))?;
            objects.insert(id, Object { file, size, pages });
        }
        Ok(Self { objects })
    }

    /// Brings in the content. A task does it, so that the memory is counted as its own; any one will do.
    pub fn fill(&self, tracee: &mut Tracee) -> Result<()> {
        for (id, object) in &self.objects {
            object
                .fill(tracee)
                .within(|| Subject::Object(format!("shared memory {id}")))?;
        }
        Ok(())
    }

    /// Descriptors that every task inherits.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        self.objects
            .values()
            .flat_map(|object| std::iter::once(&object.file).chain(object.pages.files()))
    }

    /// The number of the descriptor of an object.
    pub(crate) fn fd(&self, id: ShmId) -> Result<i32> {
        match self.objects.get(&id) {
            Some(object) => Ok(object.file.as_raw_fd()),
            None => Err(Error::corrupt(
                "mm",
                format!("shared memory {id} was not collected"),
            )),
        }
    }
}

impl Object {
    fn fill(&self, tracee: &mut Tracee) -> Result<()> {
        let huge = huge_page(&self.file)?;
        if huge.is_some() {
            // What it may not write, but for by mapping it, the driver writes.
            return self.pages.copy_to(&self.file, self.size);
        }
        /// The most that the kernel copies by one call is a little less than 2 GiB.
        const MOST: u64 = 1 << 30;
        let out = self.file.as_raw_fd();
        let mut program = Program::new();
        let mut sent = Vec::new();
        for run in self.pages.runs() {
            let input = self.pages.fd(run.file);
            let mut at = run.start;
            while at < run.end {
                let len = (run.end - at).min(MOST);
                let offset = run.offset + (at - run.start);
                program.lseek(input, offset, libc::SEEK_SET);
                program.lseek(out, at, libc::SEEK_SET);
                let args = [out.into(), input.into(), 0.into(), len.into()];
                let ret = program.call(Sysno::sendfile, args);
                program.tolerate();
                sent.push((ret, at, len));
                at += len;
            }
        }
        debug_assert!(
            self.pages
                .runs()
                .last()
                .is_none_or(|run| run.end <= self.size)
        );
        let outcome = tracee.run(&program)?;
        let mut buffer = vec![0; BUFFER];
        for (ret, at, len) in sent {
            let mut done = u64::try_from(outcome.get(ret).unwrap_or(0)).unwrap_or(0);
            while done < len {
                let size = buffer
                    .len()
                    .min(usize::try_from(len - done).unwrap_or(usize::MAX));
                self.pages.read(at + done, &mut buffer[..size])?;
                self.file
                    .write_all_at(&buffer[..size], at + done)
                    .map_err(Error::io("pwrite(shared memory)"))?;
                done += size as u64;
            }
        }
        Ok(())
    }
}
