//! Pipes: pipe(2).
//!
//! The state is the size, and what waits inside. All ends of a pipe are made at once; one beyond the first
//! reader and the first writer is opened through `/proc`, as it was by the task. What waits is kept if
//! a reading end is among the tasks: otherwise it belongs to somebody else.

use criu_image::{desc, pb};
use criu_kind::{DumpCx, Error, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result};
use criu_tracee::Program;

use crate::kinds::regular::copy_given;
use crate::pipe_data::{self, Waiting};

const O_ACCMODE: u32 = libc::O_ACCMODE.cast_unsigned();
const O_RDONLY: u32 = libc::O_RDONLY.cast_unsigned();
const O_WRONLY: u32 = libc::O_WRONLY.cast_unsigned();
const O_DIRECT: u32 = libc::O_DIRECT.cast_unsigned();
const O_NONBLOCK: u32 = libc::O_NONBLOCK.cast_unsigned();
const O_CLOEXEC: u32 = libc::O_CLOEXEC.cast_unsigned();
const O_PATH: u32 = libc::O_PATH.cast_unsigned();

/// An end of a pipe.
#[derive(Debug)]
pub struct Pipe;

impl FileKind for Pipe {
    type Entry = pb::PipeEntry;
    const NAME: &'static str = "pipe";
    const SINCE: Kernel = Kernel::new(2, 6, 35);

    fn claims(&self, file: &OpenFile) -> bool {
        file.link.starts_with(b"pipe:[") && file.flags() & O_PATH == 0
    }

    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        let pipe_id = u32::try_from(file.inode.ino).map_err(|_| {
            Error::unsupported("a pipe whose number has more than 32 bits", "make it anew")
        })?;
        if file.flags() & O_ACCMODE != O_WRONLY && cx.first(Self::NAME, pipe_id.into()) {
            pipe_data::keep(cx, file, pipe_id, desc::PIPES_DATA)?;
        }
        Ok(pb::PipeEntry {
            id: file.number(),
            pipe_id,
            flags: file.flags(),
            fown: file.owner,
        })
    }

    fn twins(&self, entry: &Self::Entry) -> Option<u64> {
        Some(entry.pipe_id.into())
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let mut ends = self.open_twins(cx, &[entry])?;
        Ok(ends.remove(0))
    }

    fn open_twins(&self, cx: &mut dyn RestoreCx, entries: &[&Self::Entry]) -> Result<Vec<Opened>> {
        let Some(first) = entries.first() else {
            return Ok(Vec::new());
        };
        if let Some(given) = cx.inherited(format!("pipe:[{}]", first.pipe_id).as_bytes()) {
            return entries.iter().map(|_| copy_given(cx, given)).collect();
        }
        let content = Waiting::of(cx, false, first.pipe_id)?;
        let mut program = Program::new();
        let both = program.room(8);
        program.pipe2(both, O_NONBLOCK | O_CLOEXEC);
        let (reader, writer) = two(cx.here().run(&program)?.bytes(both));

        let mut program = Program::new();
        let packets = content.is_packets().then_some(writer);
        if packets.is_some() {
            program.fcntl(writer, libc::F_SETFL, O_DIRECT | O_NONBLOCK);
        }
        content.fill(writer, packets, &mut program);
        cx.here().run(&program)?;

        let (mut unused_reader, mut unused_writer) = (Some(reader), Some(writer));
        let mut opened = Vec::with_capacity(entries.len());
        for entry in entries {
            let spare = match entry.flags & O_ACCMODE {
                O_RDONLY => &mut unused_reader,
                O_WRONLY => &mut unused_writer,
                _ => &mut None,
            };
            opened.push(match spare.take() {
                Some(end) => Opened::Here(end),
                None => reopen(cx, reader, entry.flags)?,
            });
        }
        let mut program = Program::new();
        for end in [unused_reader, unused_writer].into_iter().flatten() {
            program.close(end);
        }
        cx.here().run(&program)?;
        Ok(opened)
    }
}

/// One more end, through any other.
fn reopen(cx: &mut dyn RestoreCx, end: i32, flags: u32) -> Result<Opened> {
    let mut program = Program::new();
    let path = program.cstr(format!("/proc/self/fd/{end}"));
    let fd = program.openat(libc::AT_FDCWD, path, flags | O_NONBLOCK | O_CLOEXEC, 0);
    Ok(Opened::Here(cx.here().run(&program)?.fd(fd)))
}

/// The two descriptors that pipe2(2) stores.
fn two(bytes: &[u8]) -> (i32, i32) {
    let word = |at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&bytes[at..at + 4]);
        i32::from_ne_bytes(word)
    };
    (word(0), word(4))
}

#[cfg(test)]
mod tests {
    use criu_image::{Memory, Store, StoreExt};
    use criu_kind::testing::{Paper, restored_with};
    use expect_test::expect;

    use super::*;

    fn end(id: u32, flags: u32) -> pb::PipeEntry {
        pb::PipeEntry {
            id,
            pipe_id: 9,
            flags,
            fown: pb::FownEntry::default(),
        }
    }

    /// Images with a pipe of this content.
    fn images(data: &[u8], size: u32, packets: &[u32]) -> Memory {
        let images = Memory::new();
        let bytes = u32::try_from(data.len()).expect("small");
        let mut image = images.writer(desc::PIPES_DATA, ()).expect("memory");
        image
            .write_with_extra(
                &pb::PipeDataEntry {
                    pipe_id: 9,
                    bytes,
                    size: Some(size),
                },
                data,
            )
            .expect("memory");
        image.finish().expect("memory");
        if !packets.is_empty() {
            let pipe = pb::PipeExtEntry {
                pipe_id: 9,
                fifo: Some(false),
                packets: packets.to_vec(),
            };
            let ext = pb::FilesExtEntry {
                pipe: Some(pipe),
                ..pb::FilesExtEntry::default()
            };
            images
                .write_entry(desc::FILES_EXT, (), &ext)
                .expect("memory");
        }
        images.finish().expect("memory");
        images
    }

    fn listing(entries: &[&pb::PipeEntry], images: Memory) -> String {
        let mut paper = Paper::default();
        paper.images = images;
        restored_with(&Pipe, entries, paper).expect("a program")
    }

    #[test]
    fn both_ends_and_another_writer() {
        expect![[r#"
            $0 = pipe2([8], 0x80800)
            $0 = fcntl(0, 1031, 0x100000) ?
            $1 = write(0, <68656c6c6f>, 5)
            $0 = openat(-100, "/proc/self/fd/0", 0x80801, 0)
            is 0
            is 0
            is 103
        "#]]
        .assert_eq(&listing(
            &[&end(1, 0), &end(2, 1), &end(3, 1)],
            images(b"hello", 1 << 20, &[]),
        ));
    }

    #[test]
    fn packets_are_written_one_by_one() {
        expect![[r#"
            $0 = pipe2([8], 0x80800)
            $0 = fcntl(0, 4, 0x4800)
            $1 = write(0, <6f6e65>, 3)
            $2 = write(0, <74776f21>, 4)
            $0 = close(0)
            is 0
        "#]]
        .assert_eq(&listing(
            &[&end(1, O_DIRECT)],
            images(b"onetwo!", 1 << 16, &[3, 4]),
        ));
    }
}
