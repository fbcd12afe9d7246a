//! `/proc/PID`, held open.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, readlinkat};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::{Error, value};

/// Bytes that most files of proc fit into, and that the kernel gives of the others in one go.
const CHUNK: usize = 4096;

/// A pinned `/proc/PID` or `/proc/PID/task/TID`: an `O_PATH` descriptor of the directory.
///
/// The directory stays that of the task it was opened for. When the task is reaped its files are gone
/// ([`Error::Gone`]), even if another task gets the same pid: `proc_pid_lookup` in `fs/proc/base.c` finds a `struct
/// pid`, not a number. Holding the descriptor does not keep the task.
#[derive(Debug)]
pub struct ProcDir {
    dir: OwnedFd,
    pid: Pid,
}

impl ProcDir {
    /// `/proc/PID`. A task that the mount option `hidepid` hides from us looks gone: proc(5).
    pub fn open(pid: Pid) -> Result<Self, Error> {
        Self::open_path(AT_FDCWD, &format!("/proc/{pid}"), pid)
    }

    /// `/proc/PID/task/TID`: the thread `tid` of the process `pid`.
    pub fn task(pid: Pid, tid: Pid) -> Result<Self, Error> {
        Self::open_path(AT_FDCWD, &format!("/proc/{pid}/task/{tid}"), tid)
    }

    /// The directory of `pid` in another mount of proc, such as one of an inner pid namespace.
    pub fn open_at(proc: BorrowedFd<'_>, pid: Pid) -> Result<Self, Error> {
        Self::open_path(proc, &pid.to_string(), pid)
    }

    /// The thread `tid` of this process.
    pub fn thread(&self, tid: Pid) -> Result<Self, Error> {
        Self::open_path(self.dir.as_fd(), &format!("task/{tid}"), tid)
    }

    fn open_path(at: BorrowedFd<'_>, path: &str, pid: Pid) -> Result<Self, Error> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match openat(at, path, flags, Mode::empty()) {
            Ok(dir) => Ok(Self { dir, pid }),
            Err(Errno::ENOENT | Errno::ESRCH) => Err(Error::Gone(pid)),
            Err(errno) => Err(Error::Kernel {
                call: "openat",
                name: path.to_owned(),
                errno,
            }),
        }
    }

    /// The task it was opened for.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Opens a file of the task, always with `O_CLOEXEC`.
    pub fn open_file(&self, name: &str, flags: OFlag) -> Result<OwnedFd, Error> {
        openat(&self.dir, name, flags | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| self.error("openat", name, errno))
    }

    /// All the bytes of a file.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.read_into(name, &mut bytes)?;
        Ok(bytes)
    }

    /// The same, into a buffer that keeps its memory: for who reads many files.
    pub fn read_into(&self, name: &str, bytes: &mut Vec<u8>) -> Result<(), Error> {
        bytes.clear();
        bytes.reserve(CHUNK);
        let mut file = File::from(self.open_file(name, OFlag::O_RDONLY)?);
        if is_one_record(name) {
            bytes.resize(CHUNK, 0);
            let read = file.read(bytes).map_err(|error| {
                let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
                self.error("read", name, errno)
            })?;
            bytes.truncate(read);
            if read < CHUNK {
                return Ok(());
            }
        }
        // `take` keeps it from being asked for its size, which no file of proc knows.
        let mut file = file.take(u64::MAX);
        file.read_to_end(bytes).map(drop).map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            self.error("read", name, errno)
        })
    }

    /// Where a link points: `exe`, `cwd`, `fd/3`, `ns/net`.
    pub fn readlink(&self, name: &str) -> Result<OsString, Error> {
        readlinkat(&self.dir, name).map_err(|errno| self.error("readlinkat", name, errno))
    }

    /// The names in a directory, without `.` and `..`.
    pub fn list(&self, name: &str) -> Result<Vec<Vec<u8>>, Error> {
        let error = |errno| self.error("getdents64", name, errno);
        let fd = self.open_file(name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let mut names = Vec::new();
        for entry in Dir::from_fd(fd).map_err(error)?.iter() {
            let entry = entry.map_err(error)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        Ok(names)
    }

    /// The threads, from `task`; the list is stable only while all are stopped.
    pub fn threads(&self) -> Result<Vec<Pid>, Error> {
        Ok(self
            .numbers("task")?
            .into_iter()
            .map(Pid::from_raw)
            .collect())
    }

    /// The descriptors, from `fd`, lowest first. Of this very process, the one that listed them is among them.
    pub fn fds(&self) -> Result<Vec<RawFd>, Error> {
        self.numbers("fd")
    }

    /// The children, of every thread of a process or of this thread alone; `CONFIG_PROC_CHILDREN`. Exact only while
    /// the task and its children are stopped: proc_tid_children(5).
    pub fn children(&self) -> Result<Vec<Pid>, Error> {
        match self.read("children") {
            Ok(children) => Ok(value::pids("children", &children)?),
            Err(Error::Kernel {
                errno: Errno::ENOENT,
                ..
            }) => self.children_of(&self.threads()?),
            Err(error) => Err(error),
        }
    }

    /// The children of these threads of the process. A thread that has ended has none: others of the process have
    /// them (`forget_original_parent` in `kernel/exit.c`).
    pub fn children_of(&self, threads: &[Pid]) -> Result<Vec<Pid>, Error> {
        let (mut all, mut text) = (Vec::new(), Vec::new());
        for tid in threads {
            match self.read_into(&format!("task/{tid}/children"), &mut text) {
                Ok(()) => all.extend(value::pids("children", &text)?),
                Err(_) if !self.is_gone() && matches!(self.thread(*tid), Err(Error::Gone(_))) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Whether the task was reaped. A zombie is not gone.
    pub fn is_gone(&self) -> bool {
        matches!(
            openat(
                &self.dir,
                "stat",
                OFlag::O_PATH | OFlag::O_CLOEXEC,
                Mode::empty()
            ),
            Err(Errno::ENOENT | Errno::ESRCH)
        )
    }

    fn numbers(&self, name: &'static str) -> Result<Vec<i32>, Error> {
        let names = self.list(name)?;
        let mut numbers = names
            .iter()
            .map(|entry| value::dec(name, entry))
            .collect::<Result<Vec<i32>, _>>()?;
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// ENOENT means either that this kernel has no such file or that there is no task any more.
    pub(crate) fn error(&self, call: &'static str, name: &str, errno: Errno) -> Error {
        match errno {
            Errno::ESRCH => Error::Gone(self.pid),
            Errno::ENOENT if self.is_gone() => Error::Gone(self.pid),
            errno => Error::Kernel {
                call,
                name: name.to_owned(),
                errno,
            },
        }
    }
}

/// Whether the kernel makes all of the file at once: then a read that does not fill its buffer was the last.
fn is_one_record(name: &str) -> bool {
    matches!(name, "stat" | "status" | "limits") || name.starts_with("fdinfo/")
}

impl AsFd for ProcDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn child() -> (Child, ProcDir) {
        let child = Command::new("sleep")
            .arg("60")
            .stdin(Stdio::null())
            .spawn()
            .expect("sleep runs");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("pids are small"));
        (child, ProcDir::open(pid).expect("it lives"))
    }

    #[test]
    fn a_reaped_task_is_gone() {
        let (mut child, dir) = child();
        assert!(!dir.is_gone());
        child.kill().expect("our child");
        child.wait().expect("our child");
        assert_eq!(dir.read("stat"), Err(Error::Gone(dir.pid())));
        assert_eq!(dir.readlink("exe"), Err(Error::Gone(dir.pid())));
        assert_eq!(dir.threads(), Err(Error::Gone(dir.pid())));
        assert!(matches!(ProcDir::open(dir.pid()), Err(Error::Gone(_))));
    }

    #[test]
    fn children_and_threads() {
        let (mut child, dir) = child();
        let me = ProcDir::open(Pid::this()).expect("we live");
        assert!(me.children().expect("a list").contains(&dir.pid()));
        assert_eq!(dir.threads(), Ok(vec![dir.pid()]));
        let thread = dir.thread(dir.pid()).expect("its first thread");
        assert_eq!(thread.children(), Ok(vec![]));
        let ended = Pid::from_raw(i32::MAX);
        assert_eq!(dir.children_of(&[ended, dir.pid()]), Ok(vec![]));
        assert!(dir.fds().expect("a list").contains(&0));
        assert_eq!(dir.readlink("fd/0").expect("open"), "/dev/null");
        child.kill().expect("our child");
        child.wait().expect("our child");
        assert_eq!(dir.children_of(&[dir.pid()]), Err(Error::Gone(dir.pid())));
    }

    #[test]
    fn a_file_the_kernel_lacks_is_not_a_lost_task() {
        let me = ProcDir::open(Pid::this()).expect("we live");
        let name = "nothing".to_owned();
        assert_eq!(
            me.read("nothing"),
            Err(Error::Kernel {
                call: "openat",
                name,
                errno: Errno::ENOENT
            })
        );
    }
}
