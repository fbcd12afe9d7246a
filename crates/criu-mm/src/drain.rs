//! Pages out of held processes into images.
//!
//! Each process writes its own pages, all at once: one copy, no page pinned, and the driver's memory
//! does not grow. What that way cannot reach (pages the process may not read, a limit on file size, a
//! failure in the middle) the driver copies through `/proc/PID/mem`.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use criu_image::id::PagesId;
use criu_image::pages::{PageFlags, PagemapWriter};
use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{Error, Result, Subject, Within};
use criu_proc::ProcDir;
use criu_tracee::arch::Regs;
use criu_tracee::{Job, Outcome, Program, Ret, Tracee, hand_over, run_all};

use crate::barred::{self, Barred};
use crate::bits::status;
use crate::page_size;
use crate::scan::{Run, Scanner, Walk, push_guard};
use crate::survey::Space;
use crate::transfer::{Direction, Piece, Transfer, transfers};

/// Processes at work at a time: more than any machine keeps busy, fewer than it has descriptors for.
const WINDOW: usize = 32;
/// Bytes that a process writes by one call: small enough to fail in a place that is known.
const BATCH: u64 = 64 << 20;
/// Below this the driver is quicker than three visits to the process.
const SMALL: u64 = 256 << 10;
/// From here on it pays to look for the next pages while these are written.
const WORTH_A_THREAD: u64 = 16 << 20;
/// The driver's buffer.
const BUFFER: usize = 256 << 10;

/// How pages are brought out.
#[derive(Debug)]
pub struct DrainOptions {
    /// Whether processes write their own pages. Without it the driver copies all: when the store's
    /// memory would be charged to them, for one.
    pub in_target: bool,
    /// The number of the next pages image; counts up.
    pub next_pages: u32,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Pages looked at.
    pub pages_scanned: u64,
    /// Pages written.
    pub pages_written: u64,
    /// Pages of shared memory looked at.
    pub shared_scanned: u64,
    /// Pages of shared memory written.
    pub shared_written: u64,
}

/// Writes the pages of all processes and of the memory they share. `spaces` are those of `tracees`, in
/// the same order; guard regions that are found are added to them, so their images are written after.
/// `watch` hears now and then how many bytes are written so far.
pub fn drain(
    tracees: &mut [Tracee],
    spaces: &mut [Space],
    store: &dyn Store,
    options: &mut DrainOptions,
    watch: &mut dyn FnMut(u64),
) -> Result<Stats> {
    let mut stats = Stats::default();
    let mut scanner = Scanner::new();
    let mut written = 0;
    for (tracees, spaces) in tracees.chunks_mut(WINDOW).zip(spaces.chunks_mut(WINDOW)) {
        let mut drafts = Vec::with_capacity(tracees.len());
        for (tracee, space) in tracees.iter().zip(spaces.iter()) {
            let draft = Draft::start(tracee, space, store, options);
            drafts.push(draft.within(|| subject(tracee))?);
        }
        let mut next = slices(&mut drafts, spaces, options, &mut scanner, &mut stats);
        loop {
            let found = next.map_err(|(index, error)| Error::Within {
                subject: subject(&tracees[index]),
                source: Box::new(error),
            })?;
            if found.is_empty() {
                break;
            }
            let (captures, ends): (Vec<_>, Vec<_>) = found.into_iter().unzip();
            let bytes: u64 = captures.iter().map(Capture::bytes).sum();
            let mut more = || slices(&mut drafts, spaces, options, &mut scanner, &mut stats);
            if bytes < WORTH_A_THREAD {
                write(tracees, &captures)?;
                next = more();
            } else {
                next = std::thread::scope(|scope| {
                    let more = scope.spawn(more);
                    write(tracees, &captures)?;
                    Ok::<_, Error>(more.join().expect("scanning does not panic"))
                })?;
            }
            written += bytes;
            watch(written);
            for (capture, end) in captures.iter().zip(ends) {
                store.is_final(&drafts[capture.tracee].name, end)?;
            }
        }
        for (draft, space) in drafts.into_iter().zip(spaces) {
            space.mm.vmas.extend(draft.guards.iter().map(guard));
            draft.pagemap.finish(store)?;
        }
    }
    crate::shared::drain(tracees, spaces, store, options, &mut stats)?;
    watch((stats.pages_written + stats.shared_written) * page_size());
    Ok(stats)
}

/// What can be written next of each process, and where the image of its pages ends then; or which of them failed.
fn slices(
    drafts: &mut [Draft],
    spaces: &[Space],
    options: &DrainOptions,
    scanner: &mut Scanner,
    stats: &mut Stats,
) -> Result<Vec<(Capture<'static>, u64)>, (usize, Error)> {
    let mut captures = Vec::with_capacity(drafts.len());
    for (index, draft) in drafts.iter_mut().enumerate() {
        let capture = draft.slice(index, &spaces[index], options, scanner, stats);
        let capture = capture.map_err(|error| (index, error))?;
        captures.extend(capture.map(|capture| (capture, draft.offset)));
    }
    Ok(captures)
}

/// What is to be written into one file.
pub(crate) struct Capture<'a> {
    /// Which process has it in its memory.
    pub(crate) tracee: usize,
    pub(crate) file: File,
    /// What the process writes itself.
    pub(crate) inside: Vec<Transfer>,
    /// What the driver copies.
    pub(crate) outside: Vec<Piece>,
    /// Added to an address to get its place in `object`.
    pub(crate) shift: u64,
    /// Where the driver copies from, if not from the memory of the process.
    pub(crate) object: Option<&'a File>,
    /// What the driver copies from mappings that have to be made readable for it.
    pub(crate) barred: Vec<Barred>,
}

impl Capture<'_> {
    fn bytes(&self) -> u64 {
        let inside: u64 = self.inside.iter().map(Transfer::len).sum();
        let barred: u64 = self.barred.iter().map(Barred::bytes).sum();
        inside + barred + self.outside.iter().map(|piece| piece.len).sum::<u64>()
    }
}

/// The images of a process on their way.
struct Draft {
    walk: Walk,
    pagemap: PagemapWriter,
    /// Of the pages image.
    name: String,
    file: File,
    /// Bytes in the pages image.
    offset: u64,
    guards: Vec<Range<u64>>,
}

impl Draft {
    fn start(
        tracee: &Tracee,
        space: &Space,
        store: &dyn Store,
        options: &mut DrainOptions,
    ) -> Result<Self> {
        let proc = ProcDir::open(tracee.pid())?;
        let stacks = tracee.threads().iter().map(|thread| thread.natural().sp());
        let (pages, file) = new_pages(store, options)?;
        Ok(Self {
            walk: Walk::new(&proc, stacks.collect())?,
            pagemap: PagemapWriter::new(desc::PAGEMAP, space.id, pages, page_size())?,
            name: desc::PAGES.file_name(pages),
            file,
            offset: 0,
            guards: Vec::new(),
        })
    }

    /// Finds more pages and writes them down; `None` when there are no more.
    fn slice(
        &mut self,
        tracee: usize,
        space: &Space,
        options: &DrainOptions,
        scanner: &mut Scanner,
        stats: &mut Stats,
    ) -> Result<Option<Capture<'static>>> {
        let Some(found) = scanner.slice(&mut self.walk, &space.areas)? else {
            return Ok(None);
        };
        for guard in found.guards {
            push_guard(&mut self.guards, guard);
        }
        let (mut inside, mut outside) = (Vec::new(), Vec::new());
        let before = self.offset;
        for run in found.runs {
            let len = run.end - run.start;
            self.pagemap
                .push(run.start, len / page_size(), flags(&run))?;
            let piece = Piece {
                at: run.start,
                len,
                offset: self.offset,
            };
            let list = if run.readable {
                &mut inside
            } else {
                &mut outside
            };
            list.push(piece);
            self.offset += len;
        }
        stats.pages_scanned += found.pages_scanned;
        stats.pages_written += (self.offset - before) / page_size();
        let bytes: u64 = inside.iter().map(|piece| piece.len).sum();
        let limited = space.file_limit.is_some_and(|limit| self.offset > limit);
        if !options.in_target || limited || bytes < SMALL {
            outside.append(&mut inside);
        }
        let barred = barred::take(&space.mm.vmas, &mut outside);
        Ok(Some(Capture {
            tracee,
            file: self
                .file
                .try_clone()
                .map_err(Error::io("dup(pages image)"))?,
            inside: transfers(inside, BATCH),
            outside,
            shift: 0,
            object: None,
            barred,
        }))
    }
}

fn flags(run: &Run) -> PageFlags {
    if run.lazy {
        PageFlags::LAZY | PageFlags::PRESENT
    } else {
        PageFlags::PRESENT
    }
}

/// A region of guard pages, as a mapping that is none.
fn guard(range: &Range<u64>) -> pb::VmaEntry {
    pb::VmaEntry {
        start: range.start,
        end: range.end,
        status: status::GUARD,
        fd: -1,
        ..pb::VmaEntry::default()
    }
}

/// Starts the next pages image.
pub(crate) fn new_pages(store: &dyn Store, options: &mut DrainOptions) -> Result<(PagesId, File)> {
    let id = PagesId::new(options.next_pages);
    options.next_pages += 1;
    Ok((id, store.create(&desc::PAGES.file_name(id))?))
}

/// Writes captures, each of another process.
pub(crate) fn write(tracees: &mut [Tracee], captures: &[Capture<'_>]) -> Result<()> {
    let mut left = write_inside(tracees, captures)?;
    let mut buffer = vec![0; BUFFER];
    for (index, capture) in captures.iter().enumerate() {
        let tracee = &mut tracees[capture.tracee];
        let rest = left.remove(&index).unwrap_or_default();
        let mut pieces = capture.outside.iter().chain(&rest);
        let copied = pieces
            .try_for_each(|piece| copy(tracee, capture, piece, &mut buffer))
            .and_then(|()| {
                capture.barred.iter().try_for_each(|barred| {
                    barred.readable(tracee, |tracee| {
                        let mut pieces = barred.pieces.iter();
                        pieces.try_for_each(|piece| copy(tracee, capture, piece, &mut buffer))
                    })
                })
            });
        copied.within(|| subject(tracee))?;
        if capture.object.is_none() {
            put_back_borrowed(tracee, capture)?;
        }
    }
    Ok(())
}

/// Lets processes write what they can; returns what is left of each capture.
fn write_inside(
    tracees: &mut [Tracee],
    captures: &[Capture<'_>],
) -> Result<BTreeMap<usize, Vec<Piece>>> {
    let mut left: BTreeMap<usize, Vec<Piece>> = BTreeMap::new();
    let busy: Vec<usize> = (0..captures.len())
        .filter(|i| !captures[*i].inside.is_empty())
        .collect();
    let files: Vec<_> = busy
        .iter()
        .map(|i| (captures[*i].tracee, captures[*i].file.as_fd()))
        .collect();
    if files.is_empty() {
        return Ok(left);
    }
    let numbers = hand_over(tracees, &files)?;
    let mut writers = Vec::new();
    for (index, number) in busy.into_iter().zip(numbers) {
        match number {
            Some(fd) => writers.push((index, Writer::new(&captures[index].inside, fd))),
            None => {
                let all = captures[index]
                    .inside
                    .iter()
                    .flat_map(|transfer| transfer.rest(0));
                left.entry(index).or_default().extend(all);
            }
        }
    }
    let jobs: Vec<Job<'_>> = writers
        .iter()
        .map(|(index, writer)| Job {
            tracee: captures[*index].tracee,
            thread: 0,
            program: &writer.program,
        })
        .collect();
    let outcomes = run_all(tracees, &jobs)?;
    for ((index, writer), outcome) in writers.iter().zip(&outcomes) {
        tracees[captures[*index].tracee].set_undo(None)?;
        left.entry(*index)
            .or_default()
            .extend(writer.left(&captures[*index].inside, outcome));
    }
    Ok(left)
}

/// The program with which a process writes its pages.
struct Writer {
    program: Program,
    written: Vec<Ret>,
}

impl Writer {
    fn new(inside: &[Transfer], fd: i32) -> Self {
        let mut program = Program::new();
        let mut written = Vec::with_capacity(inside.len());
        for transfer in inside {
            written.push(transfer.add(&mut program, Direction::Out, fd));
            program.tolerate();
        }
        program.close(fd);
        program.tolerate();
        Self { program, written }
    }

    /// What the process did not get done.
    fn left(&self, inside: &[Transfer], outcome: &Outcome) -> Vec<Piece> {
        let mut left = Vec::new();
        for (transfer, ret) in inside.iter().zip(&self.written) {
            let done = u64::try_from(outcome.get(*ret).unwrap_or(0)).unwrap_or(0);
            if done < transfer.len() {
                tracing::debug!(done, of = transfer.len(), "a short write is made up for");
                left.extend(transfer.rest(done));
            }
        }
        left
    }
}

fn copy(tracee: &Tracee, capture: &Capture<'_>, piece: &Piece, buffer: &mut [u8]) -> Result<()> {
    copy_piece(tracee, capture, piece, buffer).within(|| Subject::Vma {
        start: piece.at,
        end: piece.at + piece.len,
        name: "pages".to_owned(),
    })
}

fn copy_piece(
    tracee: &Tracee,
    capture: &Capture<'_>,
    piece: &Piece,
    buffer: &mut [u8],
) -> Result<()> {
    let mut done = 0;
    while done < piece.len {
        let size = usize::try_from(piece.len - done).map_or(buffer.len(), |n| n.min(buffer.len()));
        let part = &mut buffer[..size];
        let at = piece.at + done;
        match capture.object {
            Some(object) => object
                .read_exact_at(part, at.wrapping_add(capture.shift))
                .map_err(Error::io("pread(shared memory)"))?,
            None => tracee.memory().read(at, part)?,
        }
        capture
            .file
            .write_all_at(part, piece.offset + done)
            .map_err(Error::io("pwrite(pages image)"))?;
        done += size as u64;
    }
    Ok(())
}

/// The stub lies over some bytes of the process: the image gets those.
fn put_back_borrowed(tracee: &Tracee, capture: &Capture<'_>) -> Result<()> {
    let Some((at, before)) = tracee.borrowed() else {
        return Ok(());
    };
    let inside = capture.inside.iter().flat_map(|transfer| transfer.rest(0));
    for piece in inside.chain(capture.outside.iter().copied()) {
        if piece.at <= at && at + before.len() as u64 <= piece.at + piece.len {
            capture
                .file
                .write_all_at(before, piece.offset + (at - piece.at))
                .map_err(Error::io("pwrite(pages image)"))?;
        }
    }
    Ok(())
}

pub(crate) fn subject(tracee: &Tracee) -> Subject {
    let comm = ProcDir::open(tracee.pid())
        .and_then(|proc| proc.stat())
        .map(|stat| stat.comm);
    Subject::Task {
        pid: tracee.pid().as_raw(),
        comm: String::from_utf8_lossy(&comm.unwrap_or_default()).into_owned(),
    }
}

impl Space {
    /// Writes `mm-P.img` and, where there is something for it, the extension beside it.
    pub fn write(&self, store: &dyn Store) -> Result<()> {
        store.write_entry(desc::MM, self.id, &self.mm)?;
        let empty = pb::MmExtEntry {
            pid: self.ext.pid,
            ..pb::MmExtEntry::default()
        };
        if self.ext != empty {
            store.write_entry(desc::MM_EXT, self.id, &self.ext)?;
        }
        Ok(())
    }
}
