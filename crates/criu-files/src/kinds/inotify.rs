//! Watches on files and directories: inotify(7).
//!
//! A watch is an inode, a mask and a number. Beside the kernel's handle of the inode the images have its
//! path, as that of a file of its own: so a watch on a file that lost its name finds it again. Watches are
//! set here, last of all: nobody hears what the restore itself opens. Not preserved: events that wait; in
//! their place is one that says that some were lost, `IN_Q_OVERFLOW`, which programs must expect anyway.

use std::collections::HashMap;

use criu_image::id::FileId;
use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{DumpCx, Error, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result};
use criu_tracee::Program;

use crate::handle;
use crate::watched::{self, Place};

/// Those bits of a mask that inotify_add_watch(2) takes and that are not about the adding: events,
/// `IN_EXCL_UNLINK`, `IN_ONESHOT`.
const MASK: u32 = 0xfff | 1 << 26 | 1 << 31;
/// `INOTIFY_IOC_SETNEXTWD`, Linux 4.18, CONFIG_CHECKPOINT_RESTORE.
const SET_NEXT: libc::Ioctl = libc::_IOW::<i32>(b'I' as u32, 0);
const IN_MODIFY: u32 = 0x2;
const IN_ATTRIB: u32 = 0x4;
/// Bytes of an event without a name.
const EVENT: usize = 16;
const O_NONBLOCK: u32 = libc::O_NONBLOCK.cast_unsigned();
const O_WRONLY: u32 = libc::O_WRONLY.cast_unsigned();
const O_CLOEXEC: u32 = libc::O_CLOEXEC.cast_unsigned();

/// A set of watches.
#[derive(Debug)]
pub struct Inotify;

impl FileKind for Inotify {
    type Entry = pb::InotifyFileEntry;
    const NAME: &'static str = "inotify";
    const SINCE: Kernel = Kernel::new(4, 18, 0);
    const RELATES: bool = true;

    fn claims(&self, file: &OpenFile) -> bool {
        file.is_anon_inode("inotify")
    }

    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        let wd = file.info.lines_of("inotify").map(|line| {
            Ok(pb::InotifyWdEntry {
                id: file.number(),
                i_ino: line.hex("ino")?,
                mask: line.hex("mask")?,
                ignored_mask: line.hex("ignored_mask")?,
                s_dev: line.hex("sdev")?,
                wd: line.hex("wd")?,
                f_handle: handle::parse(line)?,
            })
        });
        let wd = wd.collect::<Result<Vec<_>>>()?;
        note_events(cx, file)?;
        Ok(pb::InotifyFileEntry {
            id: file.number(),
            flags: file.flags(),
            fown: file.owner,
            wd,
        })
    }

    fn relations(
        &self,
        cx: &mut dyn DumpCx,
        file: &OpenFile,
        entry: &mut Self::Entry,
    ) -> Result<()> {
        // Others, the dump among them, may have made some meanwhile.
        note_events(cx, file)?;
        for watch in &mut entry.wd {
            let (id, path) = watched::describe(cx, file.pid, &Place::of(watch))?;
            watch.f_handle.path = Some(path);
            let wd = watch.wd;
            note(cx, entry.id, |ext| {
                (ext.wd, ext.file_id) = (Some(wd), Some(id.get()));
            })?;
        }
        Ok(())
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let mut program = Program::new();
        let fd = program.inotify_init1(O_NONBLOCK | O_CLOEXEC);
        let fd = cx.here().run(&program)?.fd(fd);
        if cx.cached(Notes::load)?.lost.contains(&entry.id) {
            overflow(cx, fd)?;
        }
        Ok(Opened::Here(fd))
    }

    fn last(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry, fd: i32) -> Result<Program> {
        let notes = cx.cached(Notes::load)?;
        let mut program = Program::new();
        let mut held = Vec::new();
        for watch in &entry.wd {
            let file = notes.files.get(&(entry.id, watch.wd)).copied();
            let target = watched::open(cx, file, &Place::of(watch))?;
            add(&mut program, fd, watch, target);
            held.push(target);
        }
        for target in held {
            program.close(target);
        }
        Ok(program)
    }
}

fn add(program: &mut Program, fd: i32, watch: &pb::InotifyWdEntry, target: i32) {
    program.ioctl(fd, SET_NEXT, watch.wd);
    let path = program.cstr(format!("/proc/self/fd/{target}"));
    program.inotify_add_watch(fd, path, watch.mask & MASK);
}

impl<'e> Place<'e> {
    fn of(watch: &'e pb::InotifyWdEntry) -> Self {
        Self {
            dev: watch.s_dev,
            inode: watch.i_ino,
            handle: &watch.f_handle,
        }
    }
}

/// Says that the events that wait are lost, if there are any.
fn note_events(cx: &mut dyn DumpCx, file: &OpenFile) -> Result<()> {
    let id = file.number();
    if watched::bytes_wait(file)? == 0 || !cx.first("events of inotify", id.into()) {
        return Ok(());
    }
    note(cx, id, |ext| ext.events_lost = Some(true))
}

fn note(
    cx: &mut dyn DumpCx,
    inotify_id: u32,
    set: impl FnOnce(&mut pb::InotifyExtEntry),
) -> Result<()> {
    let mut inotify = pb::InotifyExtEntry {
        inotify_id,
        ..pb::InotifyExtEntry::default()
    };
    set(&mut inotify);
    let ext = pb::FilesExtEntry {
        inotify: Some(inotify),
        ..pb::FilesExtEntry::default()
    };
    cx.append(desc::FILES_EXT, (), &ext, &[])
}

/// Leaves in the queue that something was lost: fills it with events of a file made for it, one too many,
/// and reads all but the last. The file goes while the queue is full, so nobody hears that either.
fn overflow(cx: &mut dyn RestoreCx, fd: i32) -> Result<()> {
    const AT_ONCE: usize = 4096;
    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events");
    let limit = limit.map_err(Error::io("read(max_queued_events)"))?;
    let limit: usize = limit.trim().parse().unwrap_or(16384);
    let mut program = Program::new();
    let name = program.cstr("lost");
    let file = program.memfd_create(name, libc::MFD_CLOEXEC);
    let file = cx.here().run(&program)?.fd(file);
    let mut program = Program::new();
    let path = program.cstr(format!("/proc/self/fd/{file}"));
    program.inotify_add_watch(fd, path, IN_MODIFY | IN_ATTRIB);
    // Nobody hears of writes through the descriptor that memfd_create(2) gives, since Linux 6.14.
    let writer = program.openat(libc::AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    let writer = cx.here().run(&program)?.fd(writer);
    for first in (0..=limit).step_by(AT_ONCE) {
        let mut program = Program::new();
        let byte = program.bytes([0]);
        for index in first..(first + AT_ONCE).min(limit + 1) {
            // The same event twice in a row would be one.
            if index % 2 == 0 {
                program.pwrite64(writer, byte, 1, 0);
            } else {
                program.fchmod(file, 0o600);
            }
        }
        cx.here().run(&program)?;
    }
    let mut program = Program::new();
    program.close(writer);
    program.close(file);
    for first in (0..limit).step_by(AT_ONCE) {
        let bytes = AT_ONCE.min(limit - first) * EVENT;
        let room = program.room(bytes);
        program.read(fd, room, bytes);
    }
    cx.here().run(&program)?;
    Ok(())
}

/// What the images say beyond CRIU's fields.
#[derive(Default)]
struct Notes {
    files: HashMap<(u32, u32), FileId>,
    lost: Vec<u32>,
}

impl Notes {
    fn load(store: &dyn Store) -> Result<Self> {
        let mut notes = Self::default();
        let entries = store.entries::<pb::FilesExtEntry>(desc::FILES_EXT, ())?;
        for note in entries
            .unwrap_or_default()
            .into_iter()
            .filter_map(|entry| entry.message.inotify)
        {
            if let (Some(wd), Some(file)) = (note.wd, note.file_id) {
                notes.files.insert((note.inotify_id, wd), FileId::new(file));
            }
            if note.events_lost() {
                notes.lost.push(note.inotify_id);
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

    #[test]
    fn watches_with_their_numbers() {
        let text = "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1063\n\
            inotify wd:3 ino:9e7e sdev:800013 mask:8000afce ignored_mask:0 fhandle-bytes:8 \
            fhandle-type:1 f_handle:7e9e0000640d1b6d\n";
        let file = open_file("anon_inode:inotify", 0o600, text);
        let mut entry = FileKind::dump(&Inotify, &mut Paper::default(), &file).expect("known");
        let watch = &mut entry.wd[0];
        assert_eq!((watch.wd, watch.i_ino, watch.s_dev), (3, 0x9e7e, 0x80_0013));
        assert_eq!(watch.f_handle.handle[0].to_ne_bytes()[..2], [0x7e, 0x9e]);
        assert_eq!((watch.f_handle.bytes, watch.f_handle.handle.len()), (8, 16));
        watch.f_handle.path = Some(b"/tmp/x".to_vec());
        expect![[r#"
            $0 = inotify_init1(0x80800)
            is 100
            last:
            $0 = openat(-100, "/tmp/x", 0x2a0000, 0)
            $0 = ioctl(3, 0x40044900, 3)
            $1 = inotify_add_watch(3, "/proc/self/fd/101", 0x80000fce)
            $2 = close(101)
        "#]]
        .assert_eq(&restored(&Inotify, &entry).expect("a program"));
    }
}
