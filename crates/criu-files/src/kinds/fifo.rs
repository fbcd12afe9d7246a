//! Named pipes: mkfifo(3), opened.
//!
//! Two entries: the path, which may be that of an unlinked FIFO, and the end. What waits inside is kept
//! if a reading end is among the tasks.

use criu_image::id::FileId;
use criu_image::{desc, pb};
use criu_kind::{DumpCx, Error, FileEntry, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result};
use criu_tracee::Program;

use crate::pipe_data::{self, Waiting};

const O_ACCMODE: u32 = libc::O_ACCMODE.cast_unsigned();
const O_WRONLY: u32 = libc::O_WRONLY.cast_unsigned();
const O_RDWR: u32 = libc::O_RDWR.cast_unsigned();
const O_DIRECT: u32 = libc::O_DIRECT.cast_unsigned();
const O_NONBLOCK: u32 = libc::O_NONBLOCK.cast_unsigned();
const O_PATH: u32 = libc::O_PATH.cast_unsigned();

/// An end of a named pipe.
#[derive(Debug)]
pub struct Fifo;

impl FileKind for Fifo {
    type Entry = pb::FifoEntry;
    const NAME: &'static str = "fifo";
    const SINCE: Kernel = Kernel::new(2, 6, 35);

    fn claims(&self, file: &OpenFile) -> bool {
        file.inode.format() == libc::S_IFIFO
            && file.link.starts_with(b"/")
            && file.flags() & O_PATH == 0
    }

    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        let pipe_id = u32::try_from(file.inode.ino).map_err(|_| {
            Error::unsupported(
                "a FIFO whose inode number has more than 32 bits",
                "make it anew",
            )
        })?;
        if file.flags() & O_ACCMODE != O_WRONLY && cx.first(Self::NAME, pipe_id.into()) {
            pipe_data::keep(cx, file, pipe_id, desc::FIFO_DATA)?;
        }
        let regf_id = cx.part(&mut |cx, id| cx.path(file, id).map(FileEntry::into_file))?;
        Ok(pb::FifoEntry {
            id: file.number(),
            pipe_id,
            regf_id: Some(regf_id.get()),
        })
    }

    fn twins(&self, entry: &Self::Entry) -> Option<u64> {
        Some(entry.pipe_id.into())
    }

    fn parts(&self, entry: &Self::Entry) -> Vec<FileId> {
        vec![path_of(entry)]
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let mut ends = self.open_twins(cx, &[entry])?;
        Ok(ends.remove(0))
    }

    /// An end open for both keeps all other openings from waiting for a peer, and takes the content.
    fn open_twins(&self, cx: &mut dyn RestoreCx, entries: &[&Self::Entry]) -> Result<Vec<Opened>> {
        let Some(first) = entries.first() else {
            return Ok(Vec::new());
        };
        let content = Waiting::of(cx, true, first.pipe_id)?;
        let both = cx.open_path(path_of(first), Some(O_RDWR | O_NONBLOCK))?;
        let opened: Vec<Opened> = entries
            .iter()
            .map(|entry| cx.open_path(path_of(entry), None).map(Opened::Here))
            .collect::<Result<_>>()?;
        let mut program = Program::new();
        if content.is_packets() {
            program.fcntl(both, libc::F_SETFL, O_DIRECT | O_NONBLOCK);
        }
        content.fill(both, content.is_packets().then_some(both), &mut program);
        program.close(both);
        cx.here().run(&program)?;
        Ok(opened)
    }
}

/// Before 3.6 path and end had one id.
fn path_of(entry: &pb::FifoEntry) -> FileId {
    FileId::new(entry.regf_id.unwrap_or(entry.id))
}

#[cfg(test)]
mod tests {
    use criu_kind::testing::{dumped, open_file, restored};
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_path_and_an_end() {
        let text = "pos:\t0\nflags:\t0100001\nmnt_id:\t15\nino:\t77\n";
        let entry = dumped(&Fifo, &open_file("/tmp/f", 0o010_644, text)).expect("known");
        assert_eq!((entry.id, entry.pipe_id, entry.regf_id), (1, 77, Some(2)));
        expect![[r#"
            $0 = openat(-100, "path of 2", 2050, 0)
            $0 = openat(-100, "path of 2", 0, 0)
            $0 = close(100)
            is 101
        "#]]
        .assert_eq(&restored(&Fifo, &entry).expect("a program"));
    }
}
