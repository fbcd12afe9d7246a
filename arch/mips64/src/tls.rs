//! Thread-local storage: one word, which programs read as the hardware register UserLocal.
//!
//! `set_thread_area(2)` of the thread itself sets it, `PTRACE_GET_THREAD_AREA` reads it
//! (`arch/mips/kernel/ptrace.c`).

use criu_arch::{SetArea, ThreadAreas};

/// There is one area, and it has no number.
pub(crate) const AREAS: ThreadAreas = ThreadAreas {
    get: 25,
    set: SetArea::Itself,
    slots: &[0],
    size: 8,
};

/// `set_thread_area`.
#[cfg(feature = "image")]
pub(crate) const SET: u32 = 5242;

/// The word that ptrace gives.
#[cfg(feature = "image")]
pub(crate) fn from_bytes(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.first_chunk()?))
}

/// The area of an image.
#[cfg(feature = "image")]
pub(crate) fn to_bytes(word: u64) -> Vec<u8> {
    word.to_le_bytes().to_vec()
}
