//! What has a path: regular files, directories, memory devices, files of /proc and /sys, and anything
//! opened with `O_PATH`.
//!
//! The image has the path, not the content: at restore the file must be there and look the same.
//! Unlinked ones are kept whole, see `ghost.rs`.

use criu_image::id::FileId;
use criu_image::pb;
use criu_kind::{DumpCx, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result};
use criu_proc::Dev;
use criu_tracee::{Program, Ret};
use nix::sys::statfs::{FsType, fstatfs};

use crate::kinds::memfd;

/// `/dev/null`, `/dev/zero`, `/dev/urandom` …: `MEM_MAJOR` of `include/uapi/linux/major.h`.
const MEM_MAJOR: u32 = 1;
const O_PATH: u32 = libc::O_PATH.cast_unsigned();

/// A path.
#[derive(Debug)]
pub struct Regular;

impl FileKind for Regular {
    type Entry = pb::RegFileEntry;
    const NAME: &'static str = "regular";
    const SINCE: Kernel = Kernel::new(2, 6, 0);

    fn claims(&self, file: &OpenFile) -> bool {
        let memory = memfd::is_memfd(file) || memfd::is_segment(file);
        if !file.link.starts_with(b"/") || memory || memfd::is_secret(file) {
            return false;
        }
        match file.inode.format() {
            libc::S_IFREG => !is_queue(file),
            libc::S_IFDIR => true,
            libc::S_IFCHR if Dev::from_st_dev(file.inode.rdev).major == MEM_MAJOR => true,
            _ => file.flags() & O_PATH != 0,
        }
    }

    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        cx.path(file, file.id)
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        if cx.is_of_task(&entry.name) {
            return Ok(Opened::There);
        }
        if let Some(given) = cx.inherited(&entry.name) {
            return copy_given(cx, given);
        }
        let fd = cx.open_path(FileId::new(entry.id), None)?;
        if moves(entry) {
            let mut program = Program::new();
            program.lseek(fd, entry.pos, libc::SEEK_SET);
            cx.here().run(&program)?;
        }
        Ok(Opened::Here(fd))
    }

    /// A file of a process of the tree can be opened only when the process is there.
    fn open_there(&self, entry: &Self::Entry, program: &mut Program) -> Result<Ret> {
        let path = program.cstr(&entry.name);
        let fd = program.openat(libc::AT_FDCWD, path, entry.flags, 0);
        if moves(entry) {
            program.lseek(fd, entry.pos, libc::SEEK_SET);
        }
        Ok(fd)
    }
}

/// A descriptor of the user's takes the place of a file.
pub(crate) fn copy_given(cx: &mut dyn RestoreCx, given: i32) -> Result<Opened> {
    let mut program = Program::new();
    let fd = program.fcntl(given, libc::F_DUPFD_CLOEXEC, 0);
    Ok(Opened::Given(cx.here().run(&program)?.fd(fd)))
}

/// A POSIX message queue looks like a file: only its file system tells.
fn is_queue(file: &OpenFile) -> bool {
    /// `MQUEUE_MAGIC` of `ipc/mqueue.c`.
    const MAGIC: FsType = FsType(0x1980_0202);
    /// `FILENT_SIZE`, which all of them have.
    const STATUS: u64 = 80;
    file.inode.size == STATUS && fstatfs(&file.fd).is_ok_and(|fs| fs.filesystem_type() == MAGIC)
}

fn moves(entry: &pb::RegFileEntry) -> bool {
    entry.pos != 0 && entry.flags & O_PATH == 0
}

#[cfg(test)]
mod tests {
    use criu_kind::testing::{dumped, open_file, restored};
    use expect_test::expect;

    use super::*;

    fn entry(name: &str, flags: u32, pos: u64) -> pb::RegFileEntry {
        pb::RegFileEntry {
            id: 7,
            name: name.into(),
            flags,
            pos,
            ..pb::RegFileEntry::default()
        }
    }

    #[test]
    fn the_position_is_set_where_there_is_one() {
        expect![[r#"
            $0 = openat(-100, "path of 7", 0, 0)
            $0 = lseek(100, 12, 0)
            is 100
        "#]]
        .assert_eq(&restored(&Regular, &entry("/a", 0, 12)).expect("a program"));
        expect![[r#"
            $0 = openat(-100, "path of 7", 0, 0)
            is 100
        "#]]
        .assert_eq(&restored(&Regular, &entry("/a", O_PATH, 12)).expect("a program"));
    }

    #[test]
    fn a_file_of_a_task_is_opened_there() {
        expect![[r#"
            there:
            $0 = openat(-100, "/proc/42/maps", 0x8000, 0)
            is Ret(0)
        "#]]
        .assert_eq(&restored(&Regular, &entry("/proc/42/maps", 0o100_000, 0)).expect("a program"));
    }

    #[test]
    fn what_is_not_a_path_is_not_claimed() {
        let head = "pos:\t0\nflags:\t0100002\nmnt_id:\t15\nino:\t10\n";
        let file = |link, mode| open_file(link, mode, head);
        assert!(FileKind::claims(&Regular, &file("/a (deleted)", 0o100_644)));
        assert!(FileKind::claims(&Regular, &file("/d", 0o040_755)));
        assert!(!FileKind::claims(&Regular, &file("socket:[7]", 0o140_777)));
        assert!(!FileKind::claims(&Regular, &file("/f", 0o010_644)));
        assert!(!FileKind::claims(&Regular, &file("/dev/pts/3", 0o020_620)));
        for link in ["/memfd:x (deleted)", "/SYSV00000007 (deleted)"] {
            let mut memory = file(link, 0o100_777);
            memory.inode.links = 0;
            assert!(!FileKind::claims(&Regular, &memory));
        }
        assert_eq!(
            dumped(&Regular, &file("/a", 0o100_644))
                .expect("a path")
                .name,
            b"/a"
        );
    }
}
