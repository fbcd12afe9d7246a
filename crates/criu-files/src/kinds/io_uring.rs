//! Queues of requests shared with the kernel: io_uring_setup(2). CRIU refuses them.
//!
//! Kept: both queues with all that nobody has taken yet, their counts, registered files, buffers and
//! eventfd. A ring that the kernel still works for is refused with the number of requests. Mappings are
//! those of a file, and each process may have them; where they lie is for `criu-mm`.
//! Not preserved: setup flags that only promise the kernel something (`COOP_TASKRUN`, `NO_SQARRAY` …),
//! that an eventfd is for asynchronous completions only, and whose limit registered memory counts for. `SUBMIT_ALL` is set where the kernel has it.

use std::os::fd::{AsFd, IntoRawFd};

use criu_image::id::FileId;
use criu_image::pb;
use criu_kind::{DumpCx, Error, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result, Slot, Tie};
use criu_proc::{Fdinfo, ProcDir, unescape};
use criu_tracee::{
    Program, RingState, RingTraits, Sysno, make_ring, ring_layout, ring_state, ring_traits,
};
use nix::unistd::Pid;

// `enum io_uring_register_op`.
const REGISTER_BUFFERS: u32 = 0;
const REGISTER_FILES: u32 = 2;
const REGISTER_EVENTFD: u32 = 4;
const EVENTFD: &[u8] = b"anon_inode:[eventfd]";

/// A ring.
#[derive(Debug)]
pub struct IoUring;

/// Whether a link leads to a ring.
pub(crate) fn is_ring(link: &[u8]) -> bool {
    link == b"anon_inode:[io_uring]"
}

impl FileKind for IoUring {
    type Entry = pb::IoUringEntry;
    const NAME: &'static str = "io_uring";
    const SINCE: Kernel = Kernel::new(5, 17, 0);
    const RELATES: bool = true;
    // Since Linux 6.8 (`__scm_send` in `net/core/scm.c`).
    const SENT: bool = false;

    fn claims(&self, file: &OpenFile) -> bool {
        is_ring(&file.link)
    }

    fn dump(&self, _: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        // Linux shows them since it has rings: a mask is one less than the size.
        let size = |key| Ok::<u32, Error>(file.info.hex::<u32>(key)?.saturating_add(1));
        let traits = ring_traits(file.fd.as_fd());
        refuse(&traits)?;
        let Some(mut state) = ring_state(file.fd.as_fd(), size("SqMask")?, size("CqMask")?)? else {
            return Err(Error::unsupported(
                "a ring of larger entries, or in memory of the program's own (IORING_SETUP_SQE128, \
                 IORING_SETUP_CQE32, IORING_SETUP_NO_MMAP)",
                REMEDY,
            ));
        };
        let tables = Tables::read(&file.info)?;
        idle(&file.info, &state, &tables)?;
        tables.refuse()?;
        if state.sq_array.iter().all(|place| *place == 0) && !tables.has_places {
            // Without an array requests are taken in order; where there is one, its places are written
            // before they are used.
            state.sq_array = (0..state.sq_entries).collect();
        }
        Ok(entry(file, state, &tables))
    }

    /// Registered files are known by their names only, the eventfd not at all: both must be open too.
    fn relations(
        &self,
        cx: &mut dyn DumpCx,
        file: &OpenFile,
        entry: &mut Self::Entry,
    ) -> Result<()> {
        for (index, link) in Tables::read(&file.info)?.files {
            let found = open_as(cx, file.pid, &link)?;
            let [id] = found[..] else {
                let name = String::from_utf8_lossy(&link);
                let how = if found.is_empty() {
                    "not"
                } else {
                    "more than once"
                };
                return Err(Error::unsupported(
                    format!("its registered file {index} ({name}) is {how} open in the task"),
                    "let the task keep one descriptor of the file, or unregister it",
                ));
            };
            let file_id = id.get();
            entry.files.push(pb::IoUringFileEntry { index, file_id });
        }
        if entry.eventfd_id.is_some() {
            let [id] = open_as(cx, file.pid, EVENTFD)?[..] else {
                return Err(Error::unsupported(
                    "it tells an eventfd of completions, and which one the kernel does not tell",
                    "let the task have only one eventfd open, or unregister it",
                ));
            };
            entry.eventfd_id = Some(id.get());
        }
        Ok(())
    }

    fn open(&self, _: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let far = entry.sq_head.max(entry.cq_tail);
        if far > SLOW {
            tracing::warn!(
                requests = far,
                "a ring that was busy for long takes its time"
            );
        }
        // Older images do not say it.
        if !entry.layout.is_empty()
            && entry.layout != ring_layout(entry.sq_entries, entry.cq_entries)?
        {
            return Err(Error::unsupported(
                "this kernel has the words of a ring at other places than that of the dump, where the program expects them",
                "restore it on the kernel of the dump, or run the program without io_uring",
            ));
        }
        let ring = make_ring(&RingState {
            sq_entries: entry.sq_entries,
            cq_entries: entry.cq_entries,
            sq_head: entry.sq_head,
            sq_tail: entry.sq_tail,
            cq_head: entry.cq_head,
            cq_tail: entry.cq_tail,
            sq_dropped: entry.sq_dropped(),
            cq_overflow: entry.cq_overflow(),
            cq_flags: entry.cq_flags(),
            sq_array: entry.sq_array.clone(),
            sqes: entry.sqes.clone(),
            cqes: entry.cqes.clone(),
            layout: entry.layout.clone(),
        })?;
        Ok(Opened::Here(ring.into_raw_fd()))
    }

    fn ties(&self, _: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Vec<Tie>> {
        let files = entry.files.iter().map(|file| file.file_id);
        let mut ties: Vec<u32> = files.chain(entry.eventfd_id).collect();
        if entry.files_size.is_some_and(|size| size > 0) || entry.eventfd_id.is_some() {
            ties.push(entry.id);
        }
        Ok(ties.into_iter().map(|id| (FileId::new(id), None)).collect())
    }

    fn relate(
        &self,
        cx: &mut dyn RestoreCx,
        entry: &Self::Entry,
        program: &mut Program,
    ) -> Result<()> {
        let number = |id: u32| {
            let missing =
                || Error::corrupt("files.img", format!("file {id} of a ring is not open"));
            cx.file(FileId::new(id))?.ok_or_else(missing)
        };
        let ring = number(entry.id)?;
        if let Some(size) = entry.files_size.filter(|size| *size > 0) {
            let mut table = vec![-1; places(size)?];
            for file in &entry.files {
                *slot(&mut table, file.index)? = number(file.file_id)?;
            }
            let bytes: Vec<u8> = table.into_iter().flat_map(i32::to_ne_bytes).collect();
            register(program, ring.into(), REGISTER_FILES, bytes, size);
        }
        if let Some(id) = entry.eventfd_id {
            let bytes = number(id)?.to_ne_bytes().to_vec();
            register(program, ring.into(), REGISTER_EVENTFD, bytes, 1);
        }
        Ok(())
    }

    /// Buffers are memory of the process, which by now is what it will be.
    fn arm(
        &self,
        _: &mut dyn RestoreCx,
        entry: &Self::Entry,
        fd: i32,
        program: &mut Program,
    ) -> Result<()> {
        let Some(size) = entry.buffers_size.filter(|size| *size > 0) else {
            return Ok(());
        };
        let mut table = vec![(0, 0); places(size)?];
        for buffer in &entry.buffers {
            *slot(&mut table, buffer.index)? = (buffer.address, buffer.length);
        }
        let word = |word: u64| word.to_ne_bytes();
        let narrow = |word: u64| u32::try_from(word).unwrap_or(u32::MAX).to_ne_bytes();
        let iovecs = table.into_iter().flat_map(|(address, length)| {
            if size_of::<usize>() == 8 {
                [word(address), word(length)].concat()
            } else {
                [narrow(address), narrow(length)].concat()
            }
        });
        register(program, fd.into(), REGISTER_BUFFERS, iovecs.collect(), size);
        Ok(())
    }
}

/// Requests from which on a restore is noticeably slower.
const SLOW: u32 = 50_000_000;
const REMEDY: &str = "run the program without io_uring, or let it close the ring before the dump";

fn register(program: &mut Program, ring: criu_tracee::Arg, what: u32, bytes: Vec<u8>, size: u32) {
    let bytes = program.bytes(bytes);
    program.call(
        Sysno::io_uring_register,
        [ring, what.into(), bytes.into(), size.into()],
    );
}

/// The most that the kernel registers: `IORING_MAX_FIXED_FILES`, `IORING_MAX_REG_BUFFERS`.
fn places(size: u32) -> Result<usize> {
    match usize::try_from(size) {
        Ok(places) if size <= 1 << 20 => Ok(places),
        _ => Err(Error::corrupt(
            "files.img",
            format!("a ring's table of {size} places"),
        )),
    }
}

fn slot<T>(table: &mut [T], index: u32) -> Result<&mut T> {
    let missing = || Error::corrupt("files.img", format!("a ring's table has no place {index}"));
    usize::try_from(index)
        .ok()
        .and_then(|index| table.get_mut(index))
        .ok_or_else(missing)
}

fn entry(file: &OpenFile, state: RingState, tables: &Tables) -> pb::IoUringEntry {
    let some = |size: u32| (size != 0).then_some(size);
    let buffers = tables
        .buffers
        .iter()
        .map(|(index, address, length)| pb::IoUringBufferEntry {
            index: *index,
            address: *address,
            length: *length,
        });
    pb::IoUringEntry {
        id: file.number(),
        flags: file.flags(),
        fown: file.owner,
        sq_entries: state.sq_entries,
        cq_entries: state.cq_entries,
        sq_head: state.sq_head,
        sq_tail: state.sq_tail,
        cq_head: state.cq_head,
        cq_tail: state.cq_tail,
        sq_dropped: some(state.sq_dropped),
        cq_overflow: some(state.cq_overflow),
        cq_flags: some(state.cq_flags),
        sq_array: state.sq_array,
        sqes: state.sqes,
        cqes: state.cqes,
        layout: state.layout,
        files_size: some(tables.files_size),
        files: Vec::new(),
        buffers_size: some(tables.buffers_size),
        buffers: buffers.collect(),
        // Which one is found when all files are known.
        eventfd_id: ring_traits(file.fd.as_fd()).eventfd.then_some(0),
    }
}

fn refuse(traits: &RingTraits) -> Result<()> {
    let facts = [
        (
            traits.disabled,
            "a ring that is not enabled yet (IORING_SETUP_R_DISABLED)",
        ),
        (
            traits.single_issuer,
            "a ring that answers to one thread only (IORING_SETUP_SINGLE_ISSUER)",
        ),
        (
            traits.restricted,
            "a ring with restrictions (IORING_REGISTER_RESTRICTIONS)",
        ),
        (
            traits.polled,
            "a ring that polls devices (IORING_SETUP_IOPOLL)",
        ),
        (
            traits.provided_buffers,
            "a ring with provided buffers (IORING_REGISTER_PBUF_RING)",
        ),
    ];
    match facts.iter().find(|(is, _)| *is) {
        Some((_, fact)) => Err(Error::unsupported(*fact, REMEDY)),
        None => Ok(()),
    }
}

/// Refuses a ring that the kernel still works for. Each request has one completion, but for those that
/// ask for none or for many; a ring of such requests looks busy.
fn idle(info: &Fdinfo, state: &RingState, tables: &Tables) -> Result<()> {
    let taken = info
        .dec::<u32>("CachedSqHead")?
        .wrapping_sub(state.sq_dropped);
    let completed = info.dec::<u32>("CachedCqTail")?;
    let left = taken.wrapping_sub(completed).cast_signed();
    let polls = i32::try_from(tables.polls).unwrap_or(i32::MAX);
    let fact = match (left, polls) {
        (0, 0) => return Ok(()),
        (left, polls) if left > 0 || polls > 0 => {
            format!("{} of its requests are in flight", left.max(polls))
        }
        (left, _) => format!(
            "it has completed {} requests more than once, so whether others are in flight is unknown",
            left.unsigned_abs()
        ),
    };
    Err(Error::busy(
        fact,
        "try again when the program has no request under way",
    ))
}

/// Whether a link of /proc/PID/fd is of what fdinfo names: of the last part only, before Linux 6.13.
fn is_named(link: &[u8], name: &[u8]) -> bool {
    let whole = |byte: &u8| matches!(byte, b'/' | b':');
    if link == name || name.iter().any(whole) {
        return link == name;
    }
    let link = link.strip_suffix(b" (deleted)").unwrap_or(link);
    link.rsplit(whole).next() == Some(name)
}

/// Files that a process has open under a name.
fn open_as(cx: &mut dyn DumpCx, pid: Pid, name: &[u8]) -> Result<Vec<FileId>> {
    use std::os::unix::ffi::OsStrExt;
    let proc = ProcDir::open(pid)?;
    let mut found = Vec::new();
    for fd in proc.fds()? {
        let link = proc.readlink(&format!("fd/{fd}"))?;
        if !is_named(link.as_bytes(), name) {
            continue;
        }
        let this = Slot { pid, fd };
        if let Some((id, _)) = cx.find(pid, fd, None, &mut |slot| Ok(slot == this))?
            && !found.contains(&id)
        {
            found.push(id);
        }
    }
    Ok(found)
}

/// What fdinfo lists, a section after the other.
#[derive(Debug, Default)]
struct Tables {
    files_size: u32,
    files: Vec<(u32, Vec<u8>)>,
    buffers_size: u32,
    buffers: Vec<(u32, u64, u64)>,
    /// Requests that are made and not taken are listed by their places, where there are places.
    has_places: bool,
    personalities: usize,
    polls: usize,
    overflown: usize,
    polled_by_thread: bool,
}

impl Tables {
    fn read(info: &Fdinfo) -> Result<Self> {
        let mut tables = Self {
            files_size: info.dec("UserFiles")?,
            buffers_size: info.dec("UserBufs")?,
            polled_by_thread: info.int::<i32>("SqThread").is_ok_and(|thread| thread != -1),
            ..Self::default()
        };
        let mut section: &[u8] = b"";
        for line in &info.lines {
            let text: &[u8] = &line.text;
            if !text.starts_with(b" ") {
                section = text.split(|byte| *byte == b':').next().unwrap_or_default();
                continue;
            }
            let numbered = || {
                let at = text.iter().position(|byte| *byte == b':')?;
                let index = std::str::from_utf8(text[..at].trim_ascii())
                    .ok()?
                    .parse()
                    .ok()?;
                Some((index, text[at + 1..].trim_ascii()))
            };
            match section {
                b"SQEs" => tables.has_places = true,
                b"UserFiles" | b"UserBufs" => {
                    let (index, what) = numbered().ok_or_else(|| line.error("INDEX: WHAT"))?;
                    if what == b"<none>" {
                    } else if section == b"UserFiles" {
                        tables.files.push((index, unescape(what)));
                    } else {
                        let (address, length) =
                            buffer(what).ok_or_else(|| line.error("ADDRESS/LENGTH"))?;
                        tables.buffers.push((index, address, length));
                    }
                }
                b"Personalities" => tables.personalities += 1,
                b"PollList" => tables.polls += 1,
                b"CqOverflowList" => tables.overflown += 1,
                _ => {}
            }
        }
        Ok(tables)
    }

    fn refuse(&self) -> Result<()> {
        let (fact, remedy) = if self.polled_by_thread {
            (
                "a ring with a thread of the kernel's (IORING_SETUP_SQPOLL)".to_owned(),
                "run the program without that, for libuv with UV_USE_IO_URING=0",
            )
        } else if self.personalities > 0 {
            (
                format!("{} credentials are registered with it", self.personalities),
                REMEDY,
            )
        } else if self.overflown > 0 {
            (
                format!("{} completions did not fit its queue", self.overflown),
                "try again when the program has taken its completions",
            )
        } else {
            return Ok(());
        };
        Err(Error::unsupported(fact, remedy))
    }
}

/// `0x7f0012340000/4096`.
fn buffer(text: &[u8]) -> Option<(u64, u64)> {
    let (address, length) = std::str::from_utf8(text).ok()?.split_once('/')?;
    let address = u64::from_str_radix(address.strip_prefix("0x")?, 16).ok()?;
    Some((address, length.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use criu_kind::testing::open_file;

    use super::*;

    const INFO: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1063\nSqMask:\t0x7\nSqHead:\t5\n\
        SqTail:\t6\nCachedSqHead:\t5\nCqMask:\t0xf\nCqHead:\t3\nCqTail:\t5\nCachedCqTail:\t5\nSQEs:\t1\n    \
        5: opcode:NOP, fd:0, flags:0, off:0, addr:0x0, rw_flags:0x0, buf_index:0 user_data:0\nCQEs:\t2\n    \
        3: user_data:1, res:0, flags:0\n    4: user_data:2, res:0, flags:0\nSqThread:\t-1\n\
        SqThreadCpu:\t-1\nUserFiles:\t3\n    0: /a\\040b\n    2: <none>\nUserBufs:\t1\n    \
        0: 0x7f0012340000/4096\nPollList:\n  op=6, task_works=0\nCqOverflowList:\nNAPI:\tdisabled\n";

    #[test]
    fn what_fdinfo_lists() {
        let file = open_file("anon_inode:[io_uring]", 0o600, INFO);
        assert!(FileKind::claims(&IoUring, &file));
        let tables = Tables::read(&file.info).expect("well formed");
        assert_eq!(
            (tables.files_size, &tables.files[..]),
            (3, &[(0, b"/a b".to_vec())][..])
        );
        assert_eq!(tables.buffers, [(0, 0x7f00_1234_0000, 4096)]);
        assert!(tables.has_places && !tables.polled_by_thread);
        assert_eq!(
            (tables.polls, tables.overflown, tables.personalities),
            (1, 0, 0)
        );
        tables.refuse().expect("nothing of that");
        let error = idle(&file.info, &RingState::default(), &tables).expect_err("busy");
        assert_eq!(error.to_string(), "1 of its requests are in flight");
    }

    #[test]
    fn names_of_old_kernels_are_the_last_part() {
        assert!(is_named(b"/a/b", b"/a/b") && is_named(b"/a/b", b"b"));
        assert!(
            is_named(b"/a/b (deleted)", b"b") && is_named(b"anon_inode:[eventfd]", b"[eventfd]")
        );
        assert!(!is_named(b"/a/b", b"/b") && !is_named(b"/a/b", b"a") && !is_named(b"/a/bb", b"b"));
        assert!(!is_named(b"pipe:[5]", b"") && !is_named(b"/a/b (deleted)", b"/a/b"));
    }

    #[test]
    fn busy_rings_are_counted() {
        let info = |taken: &str| {
            let text = INFO
                .replace("CachedSqHead:\t5", taken)
                .replace("  op=6, task_works=0\n", "");
            open_file("anon_inode:[io_uring]", 0o600, &text).info
        };
        let say = |taken, dropped| {
            let info = info(taken);
            let state = RingState {
                sq_dropped: dropped,
                ..RingState::default()
            };
            let tables = Tables::read(&info).expect("well formed");
            idle(&info, &state, &tables)
                .err()
                .map(|error| error.to_string())
        };
        assert_eq!(say("CachedSqHead:\t5", 0), None);
        assert_eq!(say("CachedSqHead:\t7", 2), None);
        assert!(
            say("CachedSqHead:\t9", 0)
                .expect("busy")
                .starts_with("4 of its")
        );
        assert!(
            say("CachedSqHead:\t3", 0)
                .expect("unclear")
                .contains("2 requests more")
        );
    }

    #[test]
    fn tables_with_gaps_are_registered_in_tasks() {
        use criu_kind::testing::Paper;
        let entry = pb::IoUringEntry {
            id: 7,
            files_size: Some(3),
            files: vec![pb::IoUringFileEntry {
                index: 1,
                file_id: 4,
            }],
            buffers_size: Some(1),
            buffers: vec![pb::IoUringBufferEntry {
                index: 0,
                address: 0x1000,
                length: 0x2000,
            }],
            eventfd_id: Some(5),
            ..pb::IoUringEntry::default()
        };
        let mut program = Program::new();
        let mut paper = Paper::default();
        FileKind::relate(&IoUring, &mut paper, &entry, &mut program).expect("files are open");
        FileKind::arm(&IoUring, &mut paper, &entry, 3, &mut program).expect("buffers");
        let listing = program.to_string();
        let lines: Vec<&str> = listing.lines().collect();
        assert_eq!(lines.len(), 3, "{listing}");
        assert!(
            lines[0].starts_with("$0 = io_uring_register(1007, 2, <ffffffff"),
            "{listing}"
        );
        assert!(
            lines[1].starts_with("$1 = io_uring_register(1007, 4, <"),
            "{listing}"
        );
        assert!(
            lines[2].starts_with("$2 = io_uring_register(3, 0, <"),
            "{listing}"
        );
        let wild = pb::IoUringFileEntry {
            index: 9,
            file_id: 4,
        };
        let entry = pb::IoUringEntry {
            files: vec![wild],
            ..entry
        };
        FileKind::relate(&IoUring, &mut paper, &entry, &mut program).expect_err("no such place");
    }
}
