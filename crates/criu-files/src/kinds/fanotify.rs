//! Groups that hear of events in file systems: fanotify(7).
//!
//! A group has marks on files, mounts and file systems, each with a mask of what is heard and a mask of what is
//! not. Marks are set here, last of all: nobody hears what the restore itself opens. CRIU has no marks on file systems.
//!
//! Events that wait cannot be taken: they hold open files, and whoever reads them has read them. In their place is one
//! that says that some were lost, `FAN_Q_OVERFLOW`, which programs must expect anyway; but not those that asked for a
//! queue without a limit, which are refused with the number of their events. Not preserved: that a group was made without privilege,
//! and therefore is told less.

use std::collections::{HashMap, HashSet};
use std::fs;

use criu_image::id::FileId;
use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{DumpCx, Error, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result};
use criu_proc::{InfoLine, Mount, ProcDir};
use criu_tracee::{Program, Sysno};

use crate::watched::{self, Place};
use crate::{handle, overflow};

// `include/uapi/linux/fanotify.h`.
const FAN_CLOEXEC: u32 = 1;
const CLASSES: u32 = 0xc;
const UNLIMITED_QUEUE: u32 = 0x10;
/// Those whose queue can be filled with events that bring no more than a file: not `FAN_REPORT_PIDFD`, and none of
/// mounts or that is not known.
const FILLABLE: u32 = 0xf | 0x20 | 0x40 | 0x100 | 0x200 | 0x400 | 0x800 | 0x1000;
const MARK_ADD: u32 = 1;
const MARK_MOUNT: u32 = 0x10;
const MARK_IGNORED_MASK: u32 = 0x20;
const MARK_IGNORED_SURV_MODIFY: u32 = 0x40;
const MARK_FILESYSTEM: u32 = 0x100;
const MARK_EVICTABLE: u32 = 0x200;
const MARK_IGNORE: u32 = 0x400;
/// `struct fanotify_event_metadata`.
const EVENT: u32 = 24;

/// A group.
#[derive(Debug)]
pub struct Fanotify;

impl FileKind for Fanotify {
    type Entry = pb::FanotifyFileEntry;
    const NAME: &'static str = "fanotify";
    const SINCE: Kernel = Kernel::new(3, 8, 0);
    const RELATES: bool = true;

    fn claims(&self, file: &OpenFile) -> bool {
        file.is_anon_inode("[fanotify]")
    }

    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        let mut lines = file.info.lines_of("fanotify");
        let head = lines.next().ok_or_else(|| {
            Error::unsupported(
                "a group of which the kernel tells nothing",
                "use a kernel with CONFIG_PROC_FS and CONFIG_FANOTIFY, or let the task close it",
            )
        })?;
        let entry = pb::FanotifyFileEntry {
            id: file.number(),
            flags: file.flags(),
            fown: file.owner,
            faflags: head.hex("flags")?,
            evflags: head.hex("event-flags")?,
            mark: lines.map(|line| mark(file, line)).collect::<Result<_>>()?,
        };
        note_events(cx, file, &entry)?;
        Ok(entry)
    }

    fn relations(
        &self,
        cx: &mut dyn DumpCx,
        file: &OpenFile,
        entry: &mut Self::Entry,
    ) -> Result<()> {
        // Others, the dump among them, may have made some meanwhile.
        note_events(cx, file, entry)?;
        let mounts = ProcDir::open(file.pid)?.mountinfo()?;
        for (index, mark) in entry.mark.iter_mut().enumerate() {
            if let Some(place) = inode(mark) {
                let (id, path) = watched::describe(cx, file.pid, &place)?;
                if let Some(ie) = &mut mark.ie {
                    ie.f_handle.path = Some(path);
                }
                let ext = pb::FanotifyExtEntry {
                    fanotify_id: entry.id,
                    index: u32::try_from(index).unwrap_or(u32::MAX),
                    file_id: id.get(),
                };
                let ext = pb::FilesExtEntry {
                    fanotify: Some(ext),
                    ..pb::FilesExtEntry::default()
                };
                cx.append(desc::FILES_EXT, (), &ext, &[])?;
            } else if let Some(me) = &mut mark.me {
                let whole = mark.r#type == i32::from(pb::MarkType::Filesystem);
                let wanted = |mount: &&Mount| {
                    if whole {
                        mount.dev.to_kernel() == Some(mark.s_dev)
                    } else {
                        u32::try_from(mount.id.0) == Ok(me.mnt_id)
                    }
                };
                let Some(mount) = mounts.iter().find(wanted) else {
                    return Err(Error::unsupported(
                        "it has a mark on a mount that its process does not see",
                        "let the task remove the mark before the dump",
                    ));
                };
                me.mnt_id = u32::try_from(mount.id.0).unwrap_or(0);
                me.path = Some(mount.mountpoint.to_vec());
                // Marks of mounts have no device of their own; CRIU writes that of the mount.
                mark.s_dev = mount.dev.to_kernel().unwrap_or(0);
            }
        }
        Ok(())
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let mut program = Program::new();
        let args = [(entry.faflags | FAN_CLOEXEC).into(), entry.evflags.into()];
        let fd = program.call(Sysno::fanotify_init, args);
        let fd = cx.here().run(&program)?.fd(fd);
        if cx.cached(Notes::load)?.lost.contains(&entry.id) {
            overflow::leave(cx, fd)?;
        }
        Ok(Opened::Here(fd))
    }

    fn last(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry, fd: i32) -> Result<Program> {
        let notes = cx.cached(Notes::load)?;
        let mut program = Program::new();
        let mut held = Vec::new();
        for (index, mark) in entry.mark.iter().enumerate() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let (on, target) = match inode(mark) {
                Some(place) => {
                    let file = notes.files.get(&(entry.id, index)).copied();
                    (0, watched::open(cx, file, &place)?)
                }
                None => mounted(cx, mark)?,
            };
            held.push(target);
            let keep = mark.mflags & MARK_EVICTABLE;
            let ignored = if mark.mflags & MARK_IGNORE != 0 {
                MARK_IGNORE
            } else {
                MARK_IGNORED_MASK
            } | mark.mflags & MARK_IGNORED_SURV_MODIFY;
            for (flags, mask) in [(0, mark.mask), (ignored, mark.ignored_mask)] {
                if mask != 0 {
                    add(&mut program, fd, MARK_ADD | on | keep | flags, mask, target);
                }
            }
        }
        for target in held {
            program.close(target);
        }
        Ok(program)
    }
}

fn add(program: &mut Program, fd: i32, flags: u32, mask: u32, target: i32) {
    let path = program.cstr(format!("/proc/self/fd/{target}"));
    program.fanotify_mark(fd, flags, mask.into(), libc::AT_FDCWD, path);
}

/// Opens what a mark of a mount or a file system is on, as a place.
fn mounted(cx: &mut dyn RestoreCx, mark: &pb::FanotifyMarkEntry) -> Result<(u32, i32)> {
    let corrupt = |why: &str| Error::corrupt("files.img", format!("a mark of fanotify {why}"));
    let on = match pb::MarkType::try_from(mark.r#type) {
        Ok(pb::MarkType::Mount) => MARK_MOUNT,
        Ok(pb::MarkType::Filesystem) => MARK_FILESYSTEM,
        _ => return Err(corrupt("is on nothing")),
    };
    let path = mark.me.as_ref().and_then(|me| me.path.as_ref());
    let mut opening = Program::new();
    let path = opening.cstr(path.ok_or_else(|| corrupt("has no path"))?);
    let flags = (libc::O_PATH | libc::O_CLOEXEC).cast_unsigned();
    let fd = opening.openat(libc::AT_FDCWD, path, flags, 0);
    Ok((on, cx.here().run(&opening)?.fd(fd)))
}

fn mark(file: &OpenFile, line: &InfoLine) -> Result<pb::FanotifyMarkEntry> {
    let mut mark = pb::FanotifyMarkEntry {
        id: file.number(),
        mflags: line.hex("mflags")?,
        mask: line.hex("mask")?,
        ignored_mask: line.hex("ignored_mask")?,
        ..pb::FanotifyMarkEntry::default()
    };
    if line.field("ino").is_some() {
        mark.r#type = pb::MarkType::Inode.into();
        mark.s_dev = line.hex("sdev")?;
        mark.ie = Some(pb::FanotifyInodeMarkEntry {
            i_ino: line.hex("ino")?,
            f_handle: handle::parse(line)?,
        });
        return Ok(mark);
    }
    let mut me = pb::FanotifyMountMarkEntry::default();
    if line.field("mnt_id").is_some() {
        mark.r#type = pb::MarkType::Mount.into();
        me.mnt_id = line.hex("mnt_id")?;
    } else {
        mark.r#type = pb::MarkType::Filesystem.into();
        mark.s_dev = line.hex("sdev")?;
    }
    mark.me = Some(me);
    Ok(mark)
}

fn inode(mark: &pb::FanotifyMarkEntry) -> Option<Place<'_>> {
    let inode = mark.ie.as_ref()?;
    Some(Place {
        dev: mark.s_dev,
        inode: inode.i_ino,
        handle: &inode.f_handle,
    })
}

/// Says that the events of a group are lost, if there are any.
fn note_events(cx: &mut dyn DumpCx, file: &OpenFile, entry: &pb::FanotifyFileEntry) -> Result<()> {
    if !waits(file, entry)? || !cx.first("events of fanotify", entry.id.into()) {
        return Ok(());
    }
    let ext = pb::FilesExtEntry {
        fanotify_lost: Some(entry.id),
        ..pb::FilesExtEntry::default()
    };
    cx.append(desc::FILES_EXT, (), &ext, &[])
}

/// Whether a group has events that can be replaced. Refuses one with others, and one that somebody waits for.
fn waits(file: &OpenFile, entry: &pb::FanotifyFileEntry) -> Result<bool> {
    let waiting = watched::bytes_wait(file)?.div_ceil(EVENT);
    if waiting > 0 && entry.faflags & !FILLABLE != 0 {
        let why = if entry.faflags & UNLIMITED_QUEUE != 0 {
            "it is never told that some were lost (FAN_UNLIMITED_QUEUE)"
        } else {
            "its queue cannot be filled to say that some were lost"
        };
        return Err(Error::unsupported(
            format!("{waiting} of its events wait to be read, and {why}"),
            "try again when the program has read its events",
        ));
    }
    let asked = if entry.faflags & CLASSES != 0 {
        blocked()?
    } else {
        0
    };
    if asked > 0 {
        return Err(Error::unsupported(
            format!("{asked} tasks wait for the permission of a group like it"),
            "try again when the program has answered",
        ));
    }
    Ok(waiting > 0)
}

/// Tasks of this machine that wait for an answer of somebody's to a permission event.
fn blocked() -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir("/proc")
        .map_err(Error::io("getdents64"))?
        .flatten()
    {
        let name = entry.file_name();
        if !name
            .to_string_lossy()
            .starts_with(|letter: char| letter.is_ascii_digit())
        {
            continue;
        }
        // Who has gone meanwhile waits for nobody.
        let tasks = fs::read_dir(entry.path().join("task"))
            .into_iter()
            .flatten();
        let waits = tasks.flatten().filter(|task| {
            let place = fs::read_to_string(task.path().join("wchan")).unwrap_or_default();
            place.starts_with("fanotify_")
        });
        count += waits.count();
    }
    Ok(count)
}

/// What the images say beyond CRIU's fields.
#[derive(Default)]
struct Notes {
    /// Files of marks, by group and index.
    files: HashMap<(u32, u32), FileId>,
    /// Groups that have lost events.
    lost: HashSet<u32>,
}

impl Notes {
    fn load(store: &dyn Store) -> Result<Self> {
        let mut notes = Self::default();
        let entries = store.entries::<pb::FilesExtEntry>(desc::FILES_EXT, ())?;
        for entry in entries.unwrap_or_default() {
            notes.lost.extend(entry.message.fanotify_lost);
            if let Some(note) = entry.message.fanotify {
                let mark = (note.fanotify_id, note.index);
                notes.files.insert(mark, FileId::new(note.file_id));
            }
        }
        Ok(notes)
    }
}

#[cfg(test)]
mod tests {
    use criu_kind::testing::{Paper, open_file, restored};
    use expect_test::expect;

    use super::*;

    const INFO: &str = "pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t1039\n\
        fanotify flags:2 event-flags:8000\n\
        fanotify sdev:fe00000 mflags:0 mask:20 ignored_mask:0\n\
        fanotify mnt_id:1b mflags:0 mask:40000002 ignored_mask:0\n\
        fanotify ino:98e0ad sdev:fe00000 mflags:440 mask:28 ignored_mask:2 fhandle-bytes:8 \
        fhandle-type:1 f_handle:ade098007b511e0e\n";

    #[test]
    fn marks_of_three_sorts() {
        let file = open_file("anon_inode:[fanotify]", 0o600, INFO);
        assert!(FileKind::claims(&Fanotify, &file));
        let mut entry =
            FileKind::dump(&Fanotify, &mut Paper::default(), &file).expect("well formed");
        assert_eq!(
            (entry.faflags, entry.evflags, entry.mark.len()),
            (2, 0x8000, 3)
        );
        assert_eq!(entry.mark[0].s_dev, 254 << 20);
        assert_eq!(entry.mark[1].me.as_ref().map(|me| me.mnt_id), Some(0x1b));
        assert_eq!(
            entry.mark[2].ie.as_ref().map(|ie| ie.i_ino),
            Some(0x98_e0ad)
        );
        for mark in &mut entry.mark {
            if let Some(me) = &mut mark.me {
                me.path = Some(b"/mnt".to_vec());
            }
            if let Some(ie) = &mut mark.ie {
                ie.f_handle.path = Some(b"/tmp/a".to_vec());
            }
        }
        expect![[r#"
            $0 = fanotify_init(3, 0x8000)
            is 100
            last:
            $0 = openat(-100, "/mnt", 0x280000, 0)
            $0 = openat(-100, "/mnt", 0x280000, 0)
            $0 = openat(-100, "/tmp/a", 0x2a0000, 0)
            $0 = fanotify_mark(3, 257, 32, -100, "/proc/self/fd/101")
            $1 = fanotify_mark(3, 17, 0x40000002, -100, "/proc/self/fd/102")
            $2 = fanotify_mark(3, 1, 40, -100, "/proc/self/fd/103")
            $3 = fanotify_mark(3, 1089, 2, -100, "/proc/self/fd/103")
            $4 = close(101)
            $5 = close(102)
            $6 = close(103)
        "#]]
        .assert_eq(&restored(&Fanotify, &entry).expect("a program"));
    }
}
