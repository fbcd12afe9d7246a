//! Processes held by a descriptor: pidfd_open(2).
//!
//! Of a process or thread of the tree it is opened in a task, when all are there. Of one that has
//! gone it is opened on a process made to be gone: all such files of one process have one inode.
//! Not preserved: the exit status that Linux 6.15 keeps for the gone (`PIDFD_GET_INFO`).

use std::os::fd::IntoRawFd;

use criu_image::pb;
use criu_kind::{DumpCx, Error, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result};
use criu_tracee::{Program, Ret, pidfds_of_the_gone};
use nix::unistd::Pid;

/// `PIDFD_THREAD`, Linux 6.9.
const PIDFD_THREAD: u32 = libc::O_EXCL.cast_unsigned();
const O_RDWR: u32 = libc::O_RDWR.cast_unsigned();
/// What pidfd_open(2) takes.
const OPENING: u32 = libc::O_NONBLOCK.cast_unsigned() | PIDFD_THREAD;

/// A pidfd.
#[derive(Debug)]
pub struct Pidfd;

impl FileKind for Pidfd {
    type Entry = pb::PidfdEntry;
    const NAME: &'static str = "pidfd";
    const SINCE: Kernel = Kernel::new(5, 3, 0);

    fn claims(&self, file: &OpenFile) -> bool {
        file.is_anon_inode("[pidfd]")
    }

    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        let nspid = match file.info.int::<i32>("Pid")? {
            pid if pid > 0 && cx.in_tree(Pid::from_raw(pid)) => {
                cx.vpid(Pid::from_raw(pid)).as_raw()
            }
            gone @ -1 => gone,
            other => {
                let who = if other > 0 {
                    format!("process {other}, which is outside of the tree")
                } else {
                    "a process outside of this pid namespace".to_owned()
                };
                return Err(Error::unsupported(
                    format!("a descriptor of {who}"),
                    "dump that process too, or let the task close the descriptor",
                ));
            }
        };
        Ok(pb::PidfdEntry {
            id: file.number(),
            ino: u32::try_from(file.inode.ino & 0xffff_ffff).unwrap_or(0),
            // CRIU gives them all to pidfd_open(2).
            flags: file.flags() & !O_RDWR,
            nspid,
            fown: file.owner,
        })
    }

    fn twins(&self, entry: &Self::Entry) -> Option<u64> {
        (entry.nspid < 0).then_some(entry.ino.into())
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let mut all = self.open_twins(cx, &[entry])?;
        Ok(all.remove(0))
    }

    fn open_twins(&self, cx: &mut dyn RestoreCx, entries: &[&Self::Entry]) -> Result<Vec<Opened>> {
        if entries.iter().all(|entry| entry.nspid < 0) {
            let flags: Vec<u32> = entries.iter().map(|entry| entry.flags & OPENING).collect();
            let fds = pidfds_of_the_gone(&flags)?;
            return Ok(fds
                .into_iter()
                .map(|fd| Opened::Here(fd.into_raw_fd()))
                .collect());
        }
        for entry in entries {
            if !cx.is_of_task(format!("/proc/{}/", entry.nspid).as_bytes()) {
                let why = format!(
                    "a descriptor of process {}, which is not there",
                    entry.nspid
                );
                return Err(Error::corrupt("files.img", why));
            }
        }
        Ok(vec![Opened::There; entries.len()])
    }

    fn open_there(&self, entry: &Self::Entry, program: &mut Program) -> Result<Ret> {
        Ok(program.pidfd_open(entry.nspid, entry.flags & OPENING))
    }
}

#[cfg(test)]
mod tests {
    use criu_kind::testing::{dumped, open_file, restored};
    use expect_test::expect;

    use super::*;

    fn file(pid: &str, flags: &str) -> OpenFile {
        let text = format!(
            "pos:\t0\nflags:\t{flags}\nmnt_id:\t15\nino:\t1063\nPid:\t{pid}\nNSpid:\t{pid}\n"
        );
        open_file("anon_inode:[pidfd]", 0o600, &text)
    }

    #[test]
    fn a_process_of_the_tree() {
        let entry = dumped(&Pidfd, &file("42", "04002")).expect("known");
        assert_eq!((entry.nspid, entry.flags), (42, 0x800));
        assert_eq!(FileKind::twins(&Pidfd, &entry), None);
        expect![[r#"
            there:
            $0 = pidfd_open(42, 2048)
            is Ret(0)
        "#]]
        .assert_eq(&restored(&Pidfd, &entry).expect("a program"));
        let stranger = pb::PidfdEntry { nspid: 43, ..entry };
        restored(&Pidfd, &stranger).expect_err("not of the tree");
    }

    #[test]
    fn strangers_are_refused() {
        let refusal = |pid| {
            dumped(&Pidfd, &file(pid, "02"))
                .expect_err("refused")
                .to_string()
        };
        assert!(
            refusal("4711").contains("process 4711"),
            "{}",
            refusal("4711")
        );
        assert!(refusal("0").contains("this pid namespace"));
    }

    #[test]
    fn the_gone_share_an_inode() {
        let entry = dumped(&Pidfd, &file("-1", "02")).expect("known");
        assert_eq!(FileKind::twins(&Pidfd, &entry), Some(1063));
        let fds = pidfds_of_the_gone(&[0, libc::O_NONBLOCK.cast_unsigned()]).expect("a process");
        for fd in &fds {
            let info = std::fs::read_to_string(format!(
                "/proc/self/fdinfo/{}",
                std::os::fd::AsRawFd::as_raw_fd(fd)
            ));
            assert!(info.expect("ours").contains("Pid:\t-1"));
        }
    }
}
