//! What waits in a pipe or FIFO: copied out without taking it out, and put into a new one.
//!
//! tee(2) gives our own pipe references to the same buffers, so a dump that dies leaves the pipe as it was.
//! Ends in packet mode (`O_DIRECT`) keep messages apart: their lengths go to `criu-rs-files.img`.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use criu_image::{Bytes, Desc, Store, StoreExt, desc, pb};
use criu_kind::{DumpCx, Error, OpenFile, RestoreCx, Result};
use criu_tracee::{Local, Program, Site, Sysno};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{SysconfVar, pipe2, read, sysconf};

/// The size a pipe has at first, and what nobody needs a privilege for: `PIPE_DEF_BUFFERS` pages.
fn default_size() -> u32 {
    const PAGES: u32 = 16;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    PAGES
        * page
            .and_then(|page| u32::try_from(page).ok())
            .unwrap_or(4096)
}

/// Writes what waits behind a readable end, once a pipe.
pub(crate) fn keep(
    cx: &mut dyn DumpCx,
    file: &OpenFile,
    pipe_id: u32,
    desc: &'static Desc,
) -> Result<()> {
    let size = fcntl(&file.fd, FcntlArg::F_GETPIPE_SZ).map_err(Error::kernel("fcntl"))?;
    let (data, mut packets) = match waiting(&file.fd)? {
        0 => (Vec::new(), Vec::new()),
        _ => peek(&file.fd, size)?,
    };
    let whole = packets
        .split_last()
        .is_none_or(|(_, before)| before.iter().all(|length| *length as usize == page()));
    // A stream comes in full pieces, whatever it was written in. Only one end may be in packet mode.
    if whole && file.flags() & libc::O_DIRECT.cast_unsigned() == 0 {
        packets.clear();
    }
    let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let entry = pb::PipeDataEntry {
        pipe_id,
        bytes,
        size: Some(size.cast_unsigned()),
    };
    cx.append(desc, (), &entry, &data)?;
    if !packets.is_empty() {
        let fifo = desc.stem == desc::FIFO_DATA.stem;
        let ext = pb::PipeExtEntry {
            pipe_id,
            fifo: Some(fifo),
            packets,
        };
        let ext = pb::FilesExtEntry {
            pipe: Some(ext),
            ..pb::FilesExtEntry::default()
        };
        cx.append(desc::FILES_EXT, (), &ext, &[])?;
    }
    Ok(())
}

/// How many bytes wait.
fn waiting(end: impl AsFd) -> Result<i32> {
    let mut program = Program::new();
    let room = program.room(4);
    program.ioctl(end.as_fd().as_raw_fd(), libc::FIONREAD, room);
    let outcome = Local.run(&program)?;
    let bytes = outcome.bytes(room).try_into();
    Ok(bytes.map_or(-1, i32::from_ne_bytes))
}

/// The data, and the lengths of the pieces it comes in.
fn peek(end: impl AsFd, size: i32) -> Result<(Vec<u8>, Vec<u32>)> {
    let (ours, into) =
        pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(Error::kernel("pipe2"))?;
    // Each buffer of the pipe takes one of ours, however few bytes are in it.
    let room = match fcntl(&into, FcntlArg::F_SETPIPE_SZ(size)) {
        Ok(room) => room,
        Err(Errno::EPERM | Errno::ENOMEM) => grow(&into, size),
        Err(errno) => {
            return Err(Error::Kernel {
                call: "fcntl",
                errno,
            });
        }
    };
    let mut program = Program::new();
    let (from, to) = (end.as_fd().as_raw_fd(), into.as_raw_fd());
    let args = [
        from.into(),
        to.into(),
        i32::MAX.into(),
        libc::SPLICE_F_NONBLOCK.into(),
    ];
    let copied = program.call(Sysno::tee, args);
    program.tolerate();
    match Local.run(&program)?.get(copied) {
        Ok(_) | Err(Errno::EAGAIN) => {}
        Err(errno) => return Err(Error::Kernel { call: "tee", errno }),
    }
    let (data, lengths) = drain(&ours)?;
    if room < size && lengths.len() >= usize::try_from(room).unwrap_or(0) / page() {
        return Err(Error::unsupported(
            format!("the pipe holds more than the {room} bytes we may look at"),
            format!("write at least {size} to /proc/sys/fs/pipe-max-size"),
        ));
    }
    Ok((data, lengths))
}

/// The largest pipe we may have.
fn grow(pipe: &OwnedFd, wanted: i32) -> i32 {
    let mut size = wanted / 2;
    while size > 0 {
        if let Ok(size) = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(size)) {
            return size;
        }
        size /= 2;
    }
    0
}

/// A buffer of a pipe, and the largest packet.
fn page() -> usize {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    size.ok()
        .flatten()
        .and_then(|size| usize::try_from(size).ok())
        .unwrap_or(4096)
}

fn drain(pipe: &OwnedFd) -> Result<(Vec<u8>, Vec<u32>)> {
    let (mut data, mut lengths) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; page()];
    loop {
        match read(pipe, &mut buffer) {
            Ok(0) | Err(Errno::EAGAIN) => return Ok((data, lengths)),
            Ok(length) => {
                data.extend(&buffer[..length]);
                lengths.push(u32::try_from(length).unwrap_or(0));
            }
            Err(errno) => {
                return Err(Error::Kernel {
                    call: "read",
                    errno,
                });
            }
        }
    }
}

/// All that waits, by pipe: read once a restore.
#[derive(Debug)]
pub(crate) struct Waiting {
    pipes: HashMap<u32, Content>,
    fifos: HashMap<u32, Content>,
}

/// What waits in one pipe.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    size: Option<u32>,
    data: Bytes,
    packets: Vec<u32>,
}

impl Waiting {
    /// What waits in a pipe, or nothing.
    pub(crate) fn of(cx: &mut dyn RestoreCx, fifo: bool, pipe_id: u32) -> Result<Content> {
        let all = cx.cached(Self::load)?;
        let map = if fifo { &all.fifos } else { &all.pipes };
        Ok(map.get(&pipe_id).cloned().unwrap_or_default())
    }

    fn load(store: &dyn Store) -> Result<Self> {
        let mut all = Self {
            pipes: index(store, desc::PIPES_DATA)?,
            fifos: index(store, desc::FIFO_DATA)?,
        };
        for entry in store
            .entries::<pb::FilesExtEntry>(desc::FILES_EXT, ())?
            .unwrap_or_default()
        {
            let Some(pipe) = entry.message.pipe else {
                continue;
            };
            let map = if pipe.fifo() {
                &mut all.fifos
            } else {
                &mut all.pipes
            };
            let Some(content) = map.get_mut(&pipe.pipe_id) else {
                continue;
            };
            if pipe
                .packets
                .iter()
                .map(|length| u64::from(*length))
                .sum::<u64>()
                != content.data.len() as u64
            {
                let why = format!("packets of pipe {} are not all of its data", pipe.pipe_id);
                return Err(Error::corrupt("criu-rs-files.img", why));
            }
            content.packets = pipe.packets;
        }
        Ok(all)
    }
}

fn index(store: &dyn Store, desc: &'static Desc) -> Result<HashMap<u32, Content>> {
    let mut map = HashMap::new();
    for entry in store
        .entries::<pb::PipeDataEntry>(desc, ())?
        .unwrap_or_default()
    {
        let content = Content {
            size: entry.size,
            data: entry.extra.clone(),
            packets: Vec::new(),
        };
        if map.insert(entry.pipe_id, content).is_some() {
            let why = format!("pipe {} has data twice", entry.pipe_id);
            return Err(Error::corrupt(desc.file_name(()), why));
        }
    }
    Ok(map)
}

impl Content {
    /// Gives the pipe its size, and its data through a writable, non-blocking end. `packet_end` is one
    /// in packet mode, for content that is made of packets.
    pub(crate) fn fill(&self, end: i32, packet_end: Option<i32>, program: &mut Program) {
        if let Some(size) = self.size
            && size != default_size()
        {
            program.fcntl(end, libc::F_SETPIPE_SZ, size);
            if self.data.len() <= default_size() as usize {
                program.tolerate(); // More than the limit needs CAP_SYS_RESOURCE; the data does not.
            }
        }
        let mut data = self.data.clone();
        let packets = packet_end.filter(|_| !data.is_empty());
        let lengths: Vec<usize> = match packets {
            Some(_) if !self.packets.is_empty() => {
                self.packets.iter().map(|length| *length as usize).collect()
            }
            _ if data.is_empty() => Vec::new(),
            _ => vec![data.len()],
        };
        for length in lengths {
            let piece = data.split_to(length.min(data.len()));
            let blob = program.bytes(piece.to_vec());
            program.write(packets.unwrap_or(end), blob, piece.len());
        }
    }

    /// Whether the data is a list of packets.
    pub(crate) fn is_packets(&self) -> bool {
        !self.packets.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn looking_leaves_everything_in_place() {
        let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("a pipe");
        let mut into = std::fs::File::from(into);
        into.write_all(&[7; 10_000]).expect("room");
        for _ in 0..2 {
            assert_eq!(peek(&out, 65536).expect("tee").0, vec![7; 10_000]);
        }
        assert_eq!(drain(&out).expect("read").0.len(), 10_000);
        assert_eq!(peek(&out, 65536).expect("tee"), (vec![], vec![]));
    }

    #[test]
    fn packets_are_told_apart() {
        let (out, into) =
            pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_DIRECT).expect("a pipe");
        let mut into = std::fs::File::from(into);
        for packet in ["one", "three", "fourth"] {
            into.write_all(packet.as_bytes()).expect("room");
        }
        let (data, packets) = peek(&out, 65536).expect("tee");
        assert_eq!(
            (data.as_slice(), packets),
            (&b"onethreefourth"[..], vec![3, 5, 6])
        );
    }
}
