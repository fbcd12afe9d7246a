//! `smaps` of a process with many mappings: one thread reads, as the other looks at what was read.
//!
//! The kernel takes microseconds to write down one mapping, and does so while it is read.

use std::fs::File;
use std::io::{self, Read};
use std::sync::mpsc::sync_channel;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::{Error, ProcDir, Smap, Smaps};

/// Bytes in one piece: some ninety mappings. Whoever has fewer is read without another thread.
const PIECE: usize = 64 << 10;

/// Pieces that may wait.
const WAITING: usize = 16;

const NAME: &str = "smaps";

impl ProcDir {
    /// The mappings with what smaps adds, lowest first, up to the first that `take` refuses. They are those of one
    /// moment only if the process is stopped.
    pub fn smaps<E: From<Error>>(
        &self,
        mut take: impl FnMut(Smap<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut file = File::from(self.open_file(NAME, OFlag::O_RDONLY)?);
        let mut text = Vec::with_capacity(PIECE);
        let mut line = 0;
        let mut parse = |text: &[u8]| {
            let mut smaps = Smaps::behind(line, text);
            for smap in smaps.by_ref() {
                take(smap.map_err(Error::from)?)?;
            }
            line = smaps.line();
            Ok(())
        };
        if piece(&mut file, &mut text).map_err(|error| self.io(&error))? {
            return parse(&text);
        }
        thread::scope(|scope| {
            let (send, receive) = sync_channel(WAITING);
            scope.spawn(move || {
                let mut ended = false;
                while !ended {
                    let rest = text.split_off(whole(&text));
                    // Nobody listens any more to whom a mapping was one too many.
                    if send.send(Ok(std::mem::replace(&mut text, rest))).is_err() {
                        return;
                    }
                    match piece(&mut file, &mut text) {
                        Ok(end) => ended = end,
                        Err(error) => return drop(send.send(Err(error))),
                    }
                }
                drop(send.send(Ok(text)));
            });
            for text in receive {
                parse(&text.map_err(|error| self.io(&error))?)?;
            }
            Ok(())
        })
    }

    fn io(&self, error: &io::Error) -> Error {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        self.error("read", NAME, errno)
    }
}

/// Reads until there is a whole piece; whether the file has ended.
fn piece(file: &mut File, text: &mut Vec<u8>) -> io::Result<bool> {
    let missing = PIECE.saturating_sub(text.len()).max(PIECE / 2);
    text.reserve(missing);
    let read = file.take(missing as u64).read_to_end(text)?;
    Ok(read < missing)
}

/// Up to where the mappings are whole: each ends with its `VmFlags:` line.
fn whole(text: &[u8]) -> usize {
    const LAST: &[u8] = b"\nVmFlags:";
    let mut before = text.len();
    loop {
        let at = text[..before]
            .windows(LAST.len())
            .rposition(|words| words == LAST);
        let Some(at) = at else { return 0 };
        let line = &text[at + 1..];
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            return at + 1 + end + 1;
        }
        before = at;
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn only_whole_mappings() {
        let one = "1000-2000 rw-p 00000000 00:00 0\nRss: 4 kB\nVmFlags: rd wr\n";
        let text = format!("{one}{one}");
        for cut in 0..text.len() {
            let expected = if cut < one.len() { 0 } else { one.len() };
            assert_eq!(whole(&text.as_bytes()[..cut]), expected, "{cut}");
        }
        assert_eq!(whole(text.as_bytes()), text.len());
    }

    /// A program with more mappings than fit in a piece: as many as maps tells, in its order.
    #[test]
    fn many_mappings() {
        use std::io::{BufRead as _, BufReader, Write as _};
        use std::process::{Command, Stdio};

        // Every other page of one mapping has another protection.
        let script = "import ctypes, mmap, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
page = mmap.PAGESIZE
at = libc.mmap(None, 1000 * page, 3, 0x22, -1, 0)
for number in range(0, 1000, 2): libc.mprotect(at + number * page, page, 1)
print('ready', flush=True)
sys.stdin.read()";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is there");
        let mut line = String::new();
        let said = child.stdout.take().expect("a pipe");
        BufReader::new(said).read_line(&mut line).expect("it talks");
        assert_eq!(line, "ready\n");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("pids are small"));
        let dir = ProcDir::open(pid).expect("it lives");
        let maps = dir.read("maps").expect("maps");
        let maps: Vec<_> = crate::Vmas::new(&maps)
            .map(|vma| vma.map(|vma| (vma.start, vma.end)))
            .collect::<Result<_, _>>()
            .expect("maps");
        let mut all = Vec::new();
        dir.smaps(|smap| {
            all.push((smap.vma.start, smap.vma.end));
            Ok::<(), Error>(())
        })
        .expect("smaps");
        assert!(all.len() > 1000);
        assert_eq!(all, maps);
        // Whoever gives up is not read for any longer.
        let mut taken = 0;
        let refused = dir.smaps(|_| {
            taken += 1;
            if taken == 10 {
                return Err(Error::Gone(pid));
            }
            Ok(())
        });
        assert_eq!((refused, taken), (Err(Error::Gone(pid)), 10));
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.flush().expect("a pipe");
        drop(stdin);
        assert!(child.wait().expect("our child").success());
    }
}
