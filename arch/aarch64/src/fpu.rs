//! FP and SIMD state: `struct user_fpsimd_state`, and what newer processors have besides.
//!
//! `arch/arm64/include/uapi/asm/ptrace.h`. A call destroys the upper parts of the SVE registers, so they
//! are read before any and set after the last.

/// `NT_PRFPREG`: V0 to V31, FPSR, FPCR, padding.
pub(crate) const NT_PRFPREG: u32 = 2;
/// Bytes of it.
pub(crate) const FPSIMD: usize = 528;
/// `NT_ARM_SVE`: a header, then the registers in full, or those of `NT_PRFPREG` if that is all there is.
pub(crate) const NT_ARM_SVE: u32 = 0x405;
pub(crate) const NT_ARM_TAGGED_ADDR_CTRL: u32 = 0x409;
const NT_ARM_SSVE: u32 = 0x40b;
const NT_ARM_ZA: u32 = 0x40c;
pub(crate) const NT_ARM_FPMR: u32 = 0x40e;
pub(crate) const NT_ARM_POE: u32 = 0x40f;
const NT_ARM_GCS: u32 = 0x410;

/// The image format has no field for any of these.
pub(crate) const EXTRA: &[u32] = &[
    NT_ARM_TAGGED_ADDR_CTRL,
    NT_ARM_FPMR,
    NT_ARM_POE,
    // After NT_PRFPREG, of which it has everything.
    NT_ARM_SVE,
    NT_ARM_SSVE,
    NT_ARM_ZA,
    NT_ARM_GCS,
];

/// `struct user_sve_header`: size, max_size, vl, max_vl, flags, reserved.
const HEADER: usize = 16;
/// `SVE_PT_REGS_SVE`.
const FULL: u8 = 1;

/// Whether the SVE registers have more in them than the V registers.
pub(crate) fn is_full(sve: &[u8]) -> bool {
    sve.get(12).is_some_and(|flags| flags & FULL != 0)
}

/// Two bytes of the header.
fn half(sve: &[u8], at: usize) -> u16 {
    let bytes = sve.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u16::from_le_bytes)
}

/// Bytes of one scalable vector.
pub(crate) fn length(sve: &[u8]) -> u16 {
    half(sve, 8)
}

/// Bytes of the longest vectors that the thread may have.
pub(crate) fn longest(sve: &[u8]) -> u16 {
    half(sve, 10)
}

/// Bytes that follow the header, by the header: without ZA, or outside of streaming mode, none.
fn has_payload(bytes: &[u8]) -> bool {
    let size = bytes.get(..4).and_then(|size| size.try_into().ok());
    size.is_some_and(|size| u32::from_le_bytes(size) as usize > HEADER)
}

/// Whether a regset holds anything that a new thread lacks. SVE always does: its vector length.
pub(crate) fn is_extra(note: u32, bytes: &[u8]) -> bool {
    match note {
        NT_ARM_SVE | NT_ARM_POE => true,
        NT_ARM_SSVE => is_full(bytes) && has_payload(bytes),
        NT_ARM_ZA => has_payload(bytes),
        _ => bytes.iter().any(|byte| *byte != 0),
    }
}

/// What of a thread nobody can put back, by name.
#[cfg(feature = "image")]
pub(crate) fn unsupported(note: u32, bytes: &[u8]) -> Option<&'static str> {
    match note {
        _ if !is_extra(note, bytes) => None,
        NT_ARM_SSVE => Some("the thread is in streaming mode (SME)"),
        NT_ARM_ZA => Some("the thread uses the ZA array (SME)"),
        NT_ARM_GCS => Some("the thread has a guarded control stack"),
        _ => None,
    }
}

pub(crate) fn lost_in_calls(kept: &[(u32, Vec<u8>)]) -> Option<&(u32, Vec<u8>)> {
    kept.iter()
        .find(|(note, bytes)| *note == NT_ARM_SVE && is_full(bytes))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A regset of vectors of so many bytes, of at most so many.
    pub(crate) fn sve(length: u16, longest: u16, flags: u8) -> Vec<u8> {
        let mut bytes = of_size(16, flags);
        bytes[8..10].copy_from_slice(&length.to_le_bytes());
        bytes[10..12].copy_from_slice(&longest.to_le_bytes());
        bytes
    }

    fn of_size(size: u32, flags: u8) -> Vec<u8> {
        let mut bytes = size.to_le_bytes().to_vec();
        bytes.extend([0, 0, 0, 0, 16, 0, 16, 0, flags, 0, 0, 0]);
        bytes.resize(size as usize, 0);
        bytes
    }

    #[test]
    fn only_full_registers_are_lost_in_calls() {
        let kept = vec![(NT_PRFPREG, vec![0; FPSIMD]), (NT_ARM_SVE, of_size(560, 0))];
        assert_eq!(lost_in_calls(&kept), None);
        let kept = vec![(NT_ARM_SVE, of_size(656, FULL))];
        assert_eq!(lost_in_calls(&kept), kept.first());
    }

    #[test]
    fn what_a_new_thread_has_anyway_is_no_extra() {
        assert!(!is_extra(NT_ARM_TAGGED_ADDR_CTRL, &[0; 8]));
        assert!(is_extra(NT_ARM_TAGGED_ADDR_CTRL, &[1, 0, 0, 0, 0, 0, 0, 0]));
        assert!(!is_extra(NT_ARM_ZA, &of_size(16, 0)) && is_extra(NT_ARM_ZA, &of_size(272, 0)));
        assert!(is_extra(NT_ARM_SVE, &of_size(560, 0)));
    }
}
