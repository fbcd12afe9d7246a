//! Memory with known content: every page different, every bit predictable.

use std::io;
use std::ptr::NonNull;

use crate::Result;

/// The page size of every machine we run on but a few arm64 kernels.
pub const PAGE: usize = 4096;

/// Bytes in a page of this machine, for cases about single ones.
pub fn page_size() -> usize {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    let size = size.ok().flatten().map(usize::try_from);
    size.and_then(std::result::Result::ok).unwrap_or(PAGE)
}

/// The size of a huge page, with so many of them free; `None` if the machine gives none.
///
/// Debian's Linux 6.1 for mips64el kills whoever looks at a process that has some ("unhandled kernel unaligned access").
pub fn huge_pages(needed: u64) -> Result<Option<usize>> {
    if std::env::consts::ARCH == "mips64" {
        return Ok(None);
    }
    let field = |name: &str| -> Result<u64> {
        let text = std::fs::read_to_string("/proc/meminfo")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let word = line.and_then(|line| line.split_whitespace().next());
        Ok(word.and_then(|word| word.parse().ok()).unwrap_or(0))
    };
    let missing = needed.saturating_sub(field("HugePages_Free:")?);
    if missing > 0 {
        let all = field("HugePages_Total:")? + missing;
        // Who may not, or gets fewer, is told below.
        std::fs::write("/proc/sys/vm/nr_hugepages", all.to_string()).ok();
    }
    if field("HugePages_Free:")? < needed {
        return Ok(None);
    }
    Ok(Some(usize::try_from(field("Hugepagesize:")? * 1024)?))
}

/// The generator behind all patterns (SplitMix64): 64 bits of state, any seed is good.
pub fn pattern(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}

/// Fills the bytes with the pattern of this seed.
pub fn fill(bytes: &mut [u8], seed: u64) {
    let mut next = pattern(seed);
    for chunk in bytes.chunks_mut(8) {
        let word = next().to_ne_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// Checks that the bytes are those of [`fill`], all of them.
pub fn verify(bytes: &[u8], seed: u64) -> Result<()> {
    let mut next = pattern(seed);
    for (index, chunk) in bytes.chunks(8).enumerate() {
        let word = next().to_ne_bytes();
        if chunk != &word[..chunk.len()] {
            crate::bail!(
                "byte {:#x} of {:#x} at {:p}: {chunk:02x?}, should be {:02x?}",
                index * 8,
                bytes.len(),
                chunk.as_ptr(),
                &word[..chunk.len()]
            );
        }
    }
    Ok(())
}

/// A checksum (FNV-1a) to say "unchanged" of content we did not choose.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// An mmap of ours. Not unmapped on drop: a case's mappings live as long as the case.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping is memory of the whole process; what is done there is up to the methods' callers.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps anew, at an address of the kernel's choice.
    pub fn new(length: usize, protection: i32, flags: i32, fd: i32, offset: i64) -> Result<Self> {
        Self::at(0, length, protection, flags, fd, offset)
    }

    /// Maps at a hint, or there and nowhere else with MAP_FIXED_NOREPLACE.
    pub fn at(
        hint: usize,
        length: usize,
        protection: i32,
        flags: i32,
        fd: i32,
        offset: i64,
    ) -> Result<Self> {
        assert_eq!(
            flags & libc::MAP_FIXED,
            0,
            "MAP_FIXED could replace memory in use"
        );
        let hint = std::ptr::without_provenance_mut(hint);
        // SAFETY: without MAP_FIXED a new mapping takes only free addresses.
        let start = unsafe { libc::mmap64(hint, length, protection, flags, fd, offset) };
        match NonNull::new(start.cast::<u8>()) {
            Some(_) if start == libc::MAP_FAILED => Err(io::Error::last_os_error().into()),
            Some(start) => Ok(Self { start, length }),
            None => crate::bail!("mmap returned zero"),
        }
    }

    /// Private anonymous memory, read-write.
    pub fn anonymous(length: usize) -> Result<Self> {
        Self::new(
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    }

    /// Shared anonymous memory, read-write.
    pub fn shared(length: usize) -> Result<Self> {
        Self::new(
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    }

    /// Its first address.
    pub fn address(&self) -> usize {
        self.start.as_ptr().addr()
    }

    /// Its first byte.
    pub fn pointer(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Its length in bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Part of it, as a mapping of its own.
    pub fn part(&self, offset: usize, length: usize) -> Self {
        assert!(
            offset + length <= self.length,
            "part outside of the mapping"
        );
        // SAFETY: the offset is inside the mapping, as just asserted.
        let start = unsafe { self.start.add(offset) };
        Self { start, length }
    }

    /// Its bytes. Faults if they are not readable.
    #[allow(
        clippy::mut_from_ref,
        reason = "one mapping may be seen at two addresses anyway; cases are sequential"
    )]
    pub fn bytes(&self) -> &mut [u8] {
        // SAFETY: the range is mapped until the program ends, and a case looks through one slice at a time.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }

    /// Its words, shared between processes or threads.
    pub fn words(&self) -> &[std::sync::atomic::AtomicU32] {
        // SAFETY: mapped until the program ends, aligned to a page, any bits are a valid atomic.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length / 4) }
    }

    /// Changes the protection.
    pub fn protect(&self, protection: i32) -> Result<()> {
        // SAFETY: it is our own mapping; a case that then touches it the wrong way wants the fault.
        crate::ret(unsafe { libc::mprotect(self.start.as_ptr().cast(), self.length, protection) })?;
        Ok(())
    }

    /// Gives advice.
    pub fn advise(&self, advice: i32) -> io::Result<()> {
        // SAFETY: it is our own mapping; destructive advice is what the case asks for.
        crate::ret(unsafe { libc::madvise(self.start.as_ptr().cast(), self.length, advice) })
            .map(drop)
    }

    /// Removes it.
    pub fn unmap(self) -> Result<()> {
        // SAFETY: our own mapping, and the handle is given up.
        crate::ret(unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) })?;
        Ok(())
    }
}
