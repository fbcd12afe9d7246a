//! Inodes by their handles: open_by_handle_at(2).

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use criu_image::pb;
use criu_kind::{Error, Result};
use criu_proc::{InfoLine, ProcDir};
use criu_tracee::{Local, Program, Site, Sysno};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// Words that CRIU has room for.
const WORDS: usize = 16;
const O_PATH: u32 = libc::O_PATH.cast_unsigned();
const O_CLOEXEC: u32 = libc::O_CLOEXEC.cast_unsigned();

/// The handle in a line of fdinfo: `fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d`.
pub(crate) fn parse(line: &InfoLine) -> Result<pb::FhEntry> {
    let digits = line.field("f_handle").unwrap_or_default();
    let digit = |byte: &u8| {
        char::from(*byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let nibbles: Option<Vec<u8>> = digits.iter().map(digit).collect();
    let bytes = nibbles.map(|nibbles| {
        nibbles
            .chunks(2)
            .map(|pair| pair.iter().fold(0, |byte, nibble| byte << 4 | nibble))
            .collect::<Vec<u8>>()
    });
    let mut bytes = bytes.ok_or_else(|| line.error("f_handle: hexadecimal digits"))?;
    bytes.resize(bytes.len().next_multiple_of(8).max(WORDS * 8), 0);
    let word = |chunk: &[u8]| {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        u64::from_ne_bytes(word)
    };
    Ok(pb::FhEntry {
        bytes: line.hex("fhandle-bytes")?,
        r#type: line.hex("fhandle-type")?,
        handle: bytes.chunks(8).map(word).collect(),
        path: None,
        mnt_id: None,
    })
}

/// The inode of a handle, through any mount of its file system that the process sees; `None` if there
/// is no such mount, or the file system knows no handles, or not this one.
pub(crate) fn inode(proc: &ProcDir, dev: u32, handle: &pb::FhEntry) -> Result<Option<OwnedFd>> {
    let bytes: Vec<u8> = handle
        .handle
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    let length = usize::try_from(handle.bytes).unwrap_or(usize::MAX);
    let Some(bytes) = bytes.get(..length) else {
        return Err(Error::corrupt("files.img", "a file handle is too short"));
    };
    let head = [handle.bytes.to_ne_bytes(), handle.r#type.to_ne_bytes()].concat();
    for mount in proc.mountinfo()? {
        if mount.dev.to_kernel() != Some(dev) {
            continue;
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let Ok(root) = open(OsStr::from_bytes(&mount.mountpoint), flags, Mode::empty()) else {
            continue;
        };
        let mut program = Program::new();
        let place = program.bytes([&head[..], bytes].concat());
        let flags = O_PATH | O_CLOEXEC;
        let args = [root.as_raw_fd().into(), place.into(), flags.into()];
        let fd = program.call(Sysno::open_by_handle_at, args);
        program.tolerate();
        let outcome = Local.run(&program)?;
        if outcome.get(fd).is_err() {
            continue;
        }
        let raw = outcome.fd(fd);
        let path = format!("/proc/self/fd/{raw}");
        let owned = open(
            path.as_str(),
            OFlag::O_PATH | OFlag::O_CLOEXEC,
            Mode::empty(),
        );
        let mut program = Program::new();
        program.close(raw);
        Local.run(&program)?;
        return owned.map(Some).map_err(Error::kernel("openat"));
    }
    Ok(None)
}
