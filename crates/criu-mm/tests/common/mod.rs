//! A victim and the seams that other crates fill.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};

use criu_image::id::FileId;
use criu_kind::{FileFds, MappedFiles, Result};
use nix::unistd::Pid;

/// A python3 process that has run `setup` and waits.
pub(crate) struct Victim(pub(crate) Child);

impl Victim {
    pub(crate) fn start(setup: &str) -> Self {
        let script = format!("{PRELUDE}\n{setup}\nprint('ready', flush=True)\ntime.sleep(1000)\n");
        let mut child = Command::new("python3")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("a line");
        assert_eq!(line, "ready\n");
        let victim = Self(child);
        // One that runs on is not waited for.
        let asleep = libc_clock_nanosleep().to_string();
        while !victim.blocked_in().starts_with(&asleep) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        victim
    }

    fn blocked_in(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/syscall", self.pid())).expect("it lives")
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }
}

fn libc_clock_nanosleep() -> i32 {
    criu_tracee::Sysno::clock_nanosleep.id()
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.0.kill().expect("our child");
        self.0.wait().expect("our child");
    }
}

const PRELUDE: &str = r#"
import ctypes, mmap, os, sys, tempfile, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
P = 4096
def anon(pages, flags=0x22, prot=3, addr=0):
    at = libc.mmap(addr, pages * P, prot, flags, -1, 0)
    assert at and at != 2**64 - 1, ctypes.get_errno()
    return at
def put(at, page, text):
    ctypes.memmove(at + page * P, text, len(text))
"#;

/// Files by the order of their appearance.
#[derive(Default)]
pub(crate) struct Files {
    pub(crate) links: BTreeMap<u32, String>,
    pub(crate) open: BTreeMap<u32, File>,
}

impl Files {
    fn take(&mut self, link: String, writable: bool) -> FileId {
        let path = std::fs::read_link(&link).expect("a link");
        let name = format!("{writable} {}", path.display());
        if let Some((id, _)) = self.links.iter().find(|(_, known)| **known == name) {
            return FileId::new(*id);
        }
        let id = u32::try_from(self.links.len()).expect("few") + 1;
        let file = File::options()
            .read(true)
            .write(writable)
            .open(&link)
            .expect("it can be opened");
        self.links.insert(id, name);
        self.open.insert(id, file);
        FileId::new(id)
    }
}

impl MappedFiles for Files {
    fn mapped(&mut self, pid: Pid, range: Range<u64>, writable: bool) -> Result<FileId> {
        Ok(self.take(
            format!("/proc/{pid}/map_files/{:x}-{:x}", range.start, range.end),
            writable,
        ))
    }

    fn exe(&mut self, pid: Pid) -> Result<FileId> {
        Ok(self.take(format!("/proc/{pid}/exe"), false))
    }
}

impl FileFds for Files {
    fn fd(&self, id: FileId) -> Result<i32> {
        Ok(self.open[&id.get()].as_raw_fd())
    }
}
