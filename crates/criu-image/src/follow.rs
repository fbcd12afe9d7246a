//! Checksums of images that are still being written, taken behind who writes.
//!
//! Pages are written by the processes they are of, one after the other, while this program waits. So another thread
//! of it reads again what is final by then: from the cache of the processor rather than from memory, and before the
//! tasks are let go instead of after.
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::manifest::sum_range;

/// Bytes that are read at a time: they stay in the cache between the copy from the kernel and the sum.
pub(crate) const BUFFER: usize = 128 << 10;

/// What is summed of an image: all before `len`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prefix {
    pub(crate) len: u64,
    pub(crate) sum: crc32fast::Hasher,
}

/// By name, what is summed of images.
pub(crate) type Prefixes = BTreeMap<String, Prefix>;

enum Part {
    /// What lies before the end is final.
    Final(String, File, u64),
    /// The image is made anew.
    Forget(String),
}

/// The thread that sums.
#[derive(Debug)]
pub(crate) struct Follower {
    parts: Sender<Part>,
    thread: JoinHandle<Prefixes>,
}

impl Follower {
    pub(crate) fn start() -> io::Result<Self> {
        let (parts, incoming) = channel();
        let thread = std::thread::Builder::new().spawn(move || follow(&incoming))?;
        Ok(Self { parts, thread })
    }

    /// Sums an image on to its new end.
    pub(crate) fn go_on(&self, name: &str, image: File, end: u64) {
        // It fails only if the thread has panicked, which `finish` tells.
        let _ = self.parts.send(Part::Final(name.to_owned(), image, end));
    }

    /// Nothing is known of an image any more.
    pub(crate) fn forget(&self, name: &str) {
        // As above.
        let _ = self.parts.send(Part::Forget(name.to_owned()));
    }

    /// What was summed, when it is.
    pub(crate) fn finish(self) -> Prefixes {
        drop(self.parts);
        self.thread.join().expect("summing does not panic")
    }
}

fn follow(parts: &Receiver<Part>) -> Prefixes {
    let mut known = Prefixes::new();
    let mut buffer = vec![0; BUFFER];
    for part in parts {
        match part {
            Part::Final(name, image, end) => {
                let prefix = known.entry(name).or_default();
                let len = end.saturating_sub(prefix.len);
                // What cannot be read now is tried again with the rest, which tells why.
                if let Ok((sum, read)) = sum_range(&image, prefix.len, len, &mut buffer) {
                    prefix.sum.combine(&sum);
                    prefix.len += read;
                }
            }
            Part::Forget(name) => drop(known.remove(&name)),
        }
    }
    known
}
