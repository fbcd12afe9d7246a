//! Watches on files and directories: inotify(7).
//!
//! A watch is an inode, a mask and a number. Beside the kernel's handle of the inode the images have its
//! path, as that of a file of its own: so a watch on a file that lost its name finds it again. Watches are
//! set here, last of all: nobody hears what the restore itself opens. Not preserved: events that wait; in
//! their place is one that says that some were lost, `IN_Q_OVERFLOW`, which programs must expect anyway.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use criu_image::id::FileId;
use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{
    DumpCx, Error, FileEntry, FileKind, Inode, Kernel, OpenFile, Opened, RestoreCx, Result, Slot,
};
use criu_proc::{Dev, ProcDir};
use criu_tracee::stat::fstat;
use criu_tracee::{Local, Program, Site};
use nix::fcntl::{OFlag, open, readlink};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::handle;

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
const O_PATH: u32 = libc::O_PATH.cast_unsigned();
const O_NOFOLLOW: u32 = libc::O_NOFOLLOW.cast_unsigned();
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
        if events_wait(file)? {
            note(cx, file.number(), |ext| ext.events_lost = Some(true))?;
        }
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
        for watch in &mut entry.wd {
            let target = target(cx, file.pid, watch)?;
            let mut path = Vec::new();
            let id = cx.part(&mut |cx, id| {
                let target = opened(&target, id, file.pid)?;
                let mut entry = cx.path(&target, id)?;
                entry.flags = O_PATH | O_NOFOLLOW;
                // It may change while it is watched: that is the point.
                entry.size = None;
                path.clone_from(&entry.name);
                Ok(entry.into_file())
            })?;
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
            let mut opening = Program::new();
            let target = match notes.files.get(&(entry.id, watch.wd)) {
                Some(file) => {
                    let missing = || Error::corrupt("files.img", "a watched file is not open");
                    let file = cx.file(*file)?.ok_or_else(missing)?;
                    opening.fcntl(file, libc::F_DUPFD_CLOEXEC, 0)
                }
                None => match &watch.f_handle.path {
                    Some(path) => {
                        let path = opening.cstr(path);
                        let flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
                        opening.openat(libc::AT_FDCWD, path, flags, 0)
                    }
                    None => {
                        let me = ProcDir::open(Pid::this())?;
                        let found = handle::inode(&me, watch.s_dev, &watch.f_handle)?;
                        let found = found.ok_or_else(|| unknown(watch))?;
                        let target = opening.fcntl(found.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0);
                        let target = cx.here().run(&opening)?.fd(target);
                        add(&mut program, fd, watch, target);
                        held.push(target);
                        continue;
                    }
                },
            };
            let target = cx.here().run(&opening)?.fd(target);
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

/// Whether events wait to be read.
fn events_wait(file: &OpenFile) -> Result<bool> {
    let mut program = Program::new();
    let bytes = program.room(4);
    program.ioctl(file.fd.as_raw_fd(), libc::FIONREAD, bytes);
    program.tolerate();
    Ok(Local
        .run(&program)?
        .bytes(bytes)
        .iter()
        .any(|byte| *byte != 0))
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

fn unknown(watch: &pb::InotifyWdEntry) -> Error {
    let dev = Dev::from_kernel(watch.s_dev);
    Error::unsupported(
        format!(
            "it watches inode {} of device {dev}, of which the kernel does not tell the path",
            watch.i_ino
        ),
        "let the task have it open too, or remove the watch before the dump",
    )
}

/// The watched inode: by its handle, or from among the files of the tasks.
fn target(cx: &mut dyn DumpCx, pid: Pid, watch: &pb::InotifyWdEntry) -> Result<OwnedFd> {
    let proc = ProcDir::open(pid)?;
    if let Some(found) = handle::inode(&proc, watch.s_dev, &watch.f_handle)? {
        return Ok(found);
    }
    let same = |fd: &OwnedFd| {
        let inode = fstat(fd).map(|stat| Inode::from(&stat));
        inode.is_ok_and(|inode| {
            inode.ino == watch.i_ino && Dev::from_st_dev(inode.dev).to_kernel() == Some(watch.s_dev)
        })
    };
    let through = |slot: Slot| {
        let path = format!("/proc/{}/fd/{}", slot.pid, slot.fd);
        open(
            path.as_str(),
            OFlag::O_PATH | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .ok()
    };
    let mut found = None;
    cx.find(pid, -1, Some(watch.i_ino), &mut |slot| {
        found = through(slot).filter(same);
        Ok(found.is_some())
    })?;
    found.ok_or_else(|| unknown(watch))
}

/// The target as a file of its own.
fn opened(target: &OwnedFd, id: FileId, pid: Pid) -> Result<OpenFile> {
    let fd = target.try_clone().map_err(Error::io("fcntl"))?;
    let number = fd.as_raw_fd();
    let link = readlink(format!("/proc/self/fd/{number}").as_str());
    let mut info = ProcDir::open(Pid::this())?.fdinfo(number)?;
    info.flags = O_PATH | O_NOFOLLOW;
    Ok(OpenFile {
        id,
        link: link.map_err(Error::kernel("readlinkat"))?.into_vec(),
        inode: Inode::from(&fstat(&fd).map_err(Error::kernel("fstat"))?),
        fd,
        info,
        owner: pb::FownEntry::default(),
        pid,
        slot: None,
    })
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
