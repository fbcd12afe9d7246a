//! Reading and writing the structures of syscalls: words and ints of the machine.

use criu_tracee::Native;
use criu_tracee::arch::Arch;

/// Bytes of a word.
pub(crate) const WORD: usize = Native::WORD;

/// Bytes of seconds, and of nanoseconds: calls with 32-bit times are not made
/// ([`criu_tracee::arch::Calls::wider`]).
pub(crate) const TIME: usize = 8;

/// The word at byte `at`; 0 past the end.
pub(crate) fn word(bytes: &[u8], at: usize) -> u64 {
    number(bytes, at, WORD)
}

/// The int at byte `at`.
pub(crate) fn int(bytes: &[u8], at: usize) -> u32 {
    u32::try_from(number(bytes, at, 4)).unwrap_or(0)
}

/// An unsigned number of `width` bytes, at most 8.
pub(crate) fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    let mut wide = [0; 8];
    let from = bytes.get(at..at + width).unwrap_or_default();
    // All four architectures are little-endian.
    wide[..from.len()].copy_from_slice(from);
    u64::from_le_bytes(wide)
}

/// Writes a number of `width` bytes.
pub(crate) fn put(bytes: &mut [u8], at: usize, width: usize, value: u64) {
    bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
}

/// Words one after the other.
pub(crate) fn words(values: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * WORD];
    for (index, value) in values.iter().enumerate() {
        put(&mut bytes, index * WORD, WORD, *value);
    }
    bytes
}

/// Halves of times one after the other.
pub(crate) fn times(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// Ints one after the other.
pub(crate) fn ints(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// A signal set of the kernel as the two numbers of an image: MIPS has 128 signals.
pub(crate) fn sigset(bytes: &[u8]) -> (u64, Option<u64>) {
    let extended = (bytes.len() > 8).then(|| number(bytes, 8, 8));
    (number(bytes, 0, bytes.len().min(8)), extended)
}

/// The same back.
pub(crate) fn to_sigset(low: u64, extended: Option<u64>) -> Vec<u8> {
    let mut bytes = low.to_le_bytes().to_vec();
    bytes.extend(extended.unwrap_or(0).to_le_bytes());
    bytes.truncate(Native::SIGSET);
    bytes
}
