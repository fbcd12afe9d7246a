//! Thread-local storage: `TPIDR_EL0`, and `TPIDR2_EL0` on processors with SME.

/// `NT_ARM_TLS`: one or two words.
pub(crate) const NT_ARM_TLS: u32 = 0x401;

/// The first word of the regset.
#[cfg(feature = "image")]
pub(crate) fn pointer(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?))
}

/// The second word: of the SME procedure call standard, 0 unless ZA is to be saved by whom it calls.
#[cfg(feature = "image")]
pub(crate) fn second(bytes: &[u8]) -> u64 {
    let word = bytes.get(8..16).and_then(|word| word.try_into().ok());
    word.map_or(0, u64::from_le_bytes)
}
