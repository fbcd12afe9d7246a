//! bpf(2), as much of it as the cases need. Attributes are fixed by `include/uapi/linux/bpf.h`.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use zdtm::{Result, ret};

pub(super) const HASH: u32 = 1;
pub(super) const ARRAY: u32 = 2;
pub(super) const PERCPU_HASH: u32 = 5;
pub(super) const PERCPU_ARRAY: u32 = 6;
pub(super) const LRU_HASH: u32 = 9;
pub(super) const LPM_TRIE: u32 = 11;
pub(super) const ARRAY_OF_MAPS: u32 = 12;
pub(super) const HASH_OF_MAPS: u32 = 13;
pub(super) const QUEUE: u32 = 22;
pub(super) const STACK: u32 = 23;
pub(super) const RINGBUF: u32 = 27;

pub(super) const NO_PREALLOC: u32 = 1;
pub(super) const NUMA_NODE: u32 = 1 << 2;
pub(super) const RDONLY_PROG: u32 = 1 << 7;

/// Makes a call whose attributes are these words of 8 bytes.
fn bpf(command: i32, attributes: &mut [u64]) -> io::Result<i64> {
    // SAFETY: attributes are as long as is said, and addresses in them are of live buffers of the right size.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_mut_ptr(),
            size_of_val(attributes),
        )
    };
    #[allow(clippy::useless_conversion, reason = "widths differ between machines")]
    ret(done.into())
}

fn pair(low: u32, high: u32) -> u64 {
    let (low, high) = (low.to_ne_bytes(), high.to_ne_bytes());
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&low);
    bytes[4..].copy_from_slice(&high);
    u64::from_ne_bytes(bytes)
}

fn number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: the kernel has just given it to us.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) }
}

/// A map to be made.
#[derive(Clone, Copy, Default)]
pub(super) struct New<'a> {
    pub(super) kind: u32,
    pub(super) key: u32,
    pub(super) value: u32,
    pub(super) entries: u32,
    pub(super) flags: u32,
    pub(super) name: &'a str,
    pub(super) inner: Option<&'a OwnedFd>,
}

impl New<'_> {
    /// Makes it; a kernel that does not know the type, or does not let us, skips the case.
    pub(super) fn make(self) -> Result<OwnedFd> {
        let mut attributes = [0; 9];
        attributes[0] = pair(self.kind, self.key);
        attributes[1] = pair(self.value, self.entries);
        attributes[2] = pair(self.flags, self.inner.map_or(0, number));
        let mut name = [0; 16];
        name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        let word =
            |at: usize| u32::from_ne_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
        attributes[3] = pair(0, word(0));
        attributes[4] = pair(word(4), word(8));
        attributes[5] = pair(word(12), 0);
        match bpf(0, &mut attributes) {
            Ok(fd) => Ok(owned(fd)),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => zdtm::skip("no BPF for us"),
            Err(error) => Err(error.into()),
        }
    }
}

fn element(command: i32, map: &OwnedFd, key: &[u8], value: &mut [u8]) -> io::Result<i64> {
    let address = |bytes: &[u8]| {
        if bytes.is_empty() {
            0
        } else {
            bytes.as_ptr() as u64
        }
    };
    let value = if value.is_empty() {
        0
    } else {
        value.as_mut_ptr() as u64
    };
    bpf(command, &mut [pair(number(map), 0), address(key), value, 0])
}

pub(super) fn update(map: &OwnedFd, key: &[u8], value: &[u8]) -> io::Result<()> {
    loop {
        match element(2, map, key, &mut value.to_vec()) {
            // The reserve of maps without preallocation is filled up in an interrupt, which may be the next tick.
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            other => return other.map(drop),
        }
    }
}

/// The value of a key, `size` bytes of it.
pub(super) fn lookup(map: &OwnedFd, key: &[u8], size: usize) -> io::Result<Vec<u8>> {
    let mut value = vec![0; size];
    element(1, map, key, &mut value)?;
    Ok(value)
}

/// Takes out the next value of a queue or a stack.
pub(super) fn take(map: &OwnedFd, size: usize) -> io::Result<Vec<u8>> {
    let mut value = vec![0; size];
    element(21, map, &[], &mut value)?;
    Ok(value)
}

pub(super) fn delete(map: &OwnedFd, key: &[u8]) -> io::Result<()> {
    element(3, map, key, &mut []).map(drop)
}

/// All keys, in no order.
pub(super) fn keys(map: &OwnedFd, size: usize) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = Vec::new();
    let mut next = vec![0; size];
    loop {
        let last = keys.last().cloned().unwrap_or_default();
        if element(4, map, &last, &mut next).is_err() {
            return keys;
        }
        keys.push(next.clone());
    }
}

pub(super) fn freeze(map: &OwnedFd) -> io::Result<()> {
    bpf(22, &mut [pair(number(map), 0)]).map(drop)
}

/// A map by its id.
pub(super) fn by_id(id: u32, flags: u32) -> io::Result<OwnedFd> {
    bpf(14, &mut [pair(id, 0), pair(flags, 0)]).map(owned)
}

pub(super) fn pin(object: &OwnedFd, path: &std::ffi::CStr) -> io::Result<()> {
    bpf(6, &mut [path.as_ptr() as u64, pair(number(object), 0)]).map(drop)
}

pub(super) fn open(path: &std::ffi::CStr) -> io::Result<OwnedFd> {
    bpf(7, &mut [path.as_ptr() as u64, 0]).map(owned)
}

/// Loads a socket filter that returns 0.
pub(super) fn program(name: &str) -> io::Result<OwnedFd> {
    // r0 = 0; exit
    let code: [u64; 2] = [0xb7, 0x95].map(|opcode: u64| {
        if cfg!(target_endian = "big") {
            opcode << 56
        } else {
            opcode
        }
    });
    let mut attributes = [0; 9];
    attributes[0] = pair(1, 2);
    attributes[1] = code.as_ptr() as u64;
    attributes[2] = c"GPL".as_ptr() as u64;
    let mut text = [0; 16];
    text[..name.len()].copy_from_slice(name.as_bytes());
    attributes[6] = u64::from_ne_bytes(text[..8].try_into().unwrap_or_default());
    attributes[7] = u64::from_ne_bytes(text[8..].try_into().unwrap_or_default());
    bpf(5, &mut attributes).map(owned)
}

/// A line of its fdinfo.
pub(super) fn fdinfo(object: &OwnedFd, line: &str) -> Result<String> {
    let text = zdtm::proc_text("self", &format!("fdinfo/{}", object.as_raw_fd()))?;
    let found = text
        .lines()
        .find_map(|one| one.strip_prefix(line)?.strip_prefix(':'));
    Ok(found.unwrap_or_default().trim().to_owned())
}

/// Its id.
pub(super) fn id(map: &OwnedFd) -> Result<u32> {
    Ok(fdinfo(map, "map_id")?.parse()?)
}
