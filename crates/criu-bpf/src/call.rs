//! bpf(2) as data: its attributes, built by offset.
//!
//! All of them are fixed by `include/uapi/linux/bpf.h` (v6.18), and the same on every machine: pointers have 64 bits.

use criu_kind::Result;
use criu_tracee::{Arg, Blob, Program, Ret, Site};
use nix::errno::Errno;

/// Commands of bpf(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    MapCreate = 0,
    Lookup = 1,
    Update = 2,
    NextKey = 4,
    ObjPin = 6,
    ObjGet = 7,
    MapById = 14,
    Info = 15,
    BtfLoad = 18,
    BtfById = 19,
    LookupAndDelete = 21,
    MapFreeze = 22,
    LookupBatch = 24,
    UpdateBatch = 26,
}

/// The attributes of one call.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    bytes: Vec<u8>,
    links: Vec<(usize, Arg)>,
}

impl Attributes {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            bytes: vec![0; size],
            links: Vec::new(),
        }
    }

    pub(crate) fn word(mut self, at: usize, value: u32) -> Self {
        self.bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    pub(crate) fn fd(self, at: usize, fd: i32) -> Self {
        self.word(at, fd.cast_unsigned())
    }

    pub(crate) fn long(mut self, at: usize, value: u64) -> Self {
        self.bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    pub(crate) fn text(mut self, at: usize, room: usize, text: &[u8]) -> Self {
        let text = &text[..text.len().min(room - 1)];
        self.bytes[at..at + text.len()].copy_from_slice(text);
        self
    }

    pub(crate) fn pointer(mut self, at: usize, blob: Blob) -> Self {
        self.links.push((at, blob.into()));
        self
    }

    /// Adds the call; the blob is the attributes, which some calls write to.
    pub(crate) fn call(self, program: &mut Program, command: Command) -> (Ret, Blob) {
        let size = self.bytes.len();
        let blob = program.in_out(self.bytes);
        for (at, arg) in self.links {
            program.link(blob, at, arg);
        }
        (program.bpf(command as i32, blob, size), blob)
    }

    /// Makes a call that gives a descriptor, or nothing.
    pub(crate) fn make(
        self,
        site: &mut dyn Site,
        mut program: Program,
        command: Command,
    ) -> Result<i32, Errno> {
        let (ret, _) = self.call(&mut program, command);
        program.tolerate();
        let outcome = site.run(&program);
        let outcome = outcome.map_err(|error| error.errno().unwrap_or(Errno::EIO))?;
        i32::try_from(outcome.get(ret)?).map_err(|_| Errno::EBADF)
    }
}

/// An element call: map, key, and value or next key.
pub(crate) fn element(map: i32, key: Option<Blob>, value: Option<Blob>) -> Attributes {
    let mut attributes = Attributes::new(32).fd(0, map);
    if let Some(key) = key {
        attributes = attributes.pointer(8, key);
    }
    if let Some(value) = value {
        attributes = attributes.pointer(16, value);
    }
    attributes
}

/// A word of what a call wrote.
pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_ne_bytes)
}

/// A long of what a call wrote.
pub(crate) fn long(bytes: &[u8], at: usize) -> u64 {
    let long = bytes.get(at..at + 8).and_then(|long| long.try_into().ok());
    long.map_or(0, u64::from_ne_bytes)
}

/// A string of what a call wrote.
pub(crate) fn text(bytes: &[u8], at: usize, room: usize) -> Vec<u8> {
    let text = bytes.get(at..at + room).unwrap_or_default();
    text.iter().copied().take_while(|byte| *byte != 0).collect()
}

/// What the kernel says of an open object: `struct bpf_map_info` and its like.
pub(crate) fn info(site: &mut dyn Site, fd: i32, size: usize) -> Result<Vec<u8>> {
    let mut program = Program::new();
    let room = program.room(size);
    let length = u32::try_from(size).unwrap_or(u32::MAX);
    let attributes = Attributes::new(16)
        .fd(0, fd)
        .word(4, length)
        .pointer(8, room);
    attributes.call(&mut program, Command::Info);
    Ok(site.run(&program)?.bytes(room).to_vec())
}

/// An object by its id: a new descriptor.
pub(crate) fn by_id(
    site: &mut dyn Site,
    command: Command,
    id: u32,
    flags: u32,
) -> Result<i32, Errno> {
    let attributes = Attributes::new(12).word(0, id).word(8, flags);
    attributes.make(site, Program::new(), command)
}

/// Closes a descriptor.
pub(crate) fn close(site: &mut dyn Site, fd: i32) -> Result<()> {
    let mut program = Program::new();
    program.close(fd);
    site.run(&program)?;
    Ok(())
}
