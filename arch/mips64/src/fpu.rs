//! The FPU: `NT_PRFPREG`, the registers in 64 bits each (FR=1, as n64 code has them), and the control
//! register. A processor without an FPU has them too: the kernel emulates one.
//!
//! Beside it the extensions: `NT_MIPS_DSP`, three accumulators and a control register; `NT_MIPS_MSA`, the
//! FPU's registers in 128 bits, which ptrace can read but not give to a thread that has never used them: the
//! kernel fills their upper halves anew at the first use (`enable_restore_fp_context`).
//!
//! `arch/mips/kernel/ptrace.c` (`fpr_get`, `dsp64_get`, `msa_get`).

/// `NT_PRFPREG`: f0 to f31, fcr31, fcr0.
pub(crate) const NT_PRFPREG: u32 = 2;
/// `NT_MIPS_DSP`: the accumulators and the control register of the DSP extension.
pub(crate) const NT_MIPS_DSP: u32 = 0x800;
/// `NT_MIPS_MSA`: the vector registers.
pub(crate) const NT_MIPS_MSA: u32 = 0x802;

/// The image format has no field for these.
pub(crate) const EXTRA: &[u32] = &[NT_MIPS_DSP];

#[cfg(feature = "image")]
/// Where `struct msa_control_regs` lies behind the vector registers: its third int identifies the unit.
const MSA_IR: usize = 32 * 16 + 8;

/// `NT_PRFPREG`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FpRegs {
    /// f0 to f31.
    pub f: [u64; 32],
    /// fcr31: rounding, exceptions, conditions.
    pub fcsr: u32,
    /// fcr0: which FPU this is; not written back.
    pub fir: u32,
}

impl FpRegs {
    /// Bytes of the kernel's structure.
    pub const SIZE: usize = 33 * 8;

    /// From the kernel's structure.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::SIZE {
            return None;
        }
        let mut regs = Self::default();
        let (words, control) = bytes.split_at(32 * 8);
        for (word, chunk) in regs.f.iter_mut().zip(words.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().ok()?);
        }
        regs.fcsr = u32::from_le_bytes(control[..4].try_into().ok()?);
        regs.fir = u32::from_le_bytes(control[4..].try_into().ok()?);
        Some(regs)
    }

    /// The kernel's structure.
    pub fn to_bytes(&self) -> Vec<u8> {
        let words = self.f.iter().flat_map(|word| word.to_le_bytes());
        let control = [self.fcsr, self.fir].map(u32::to_le_bytes);
        words.chain(control.concat()).collect()
    }
}

/// `break 514`, by which the kernel gets back to itself: `BREAK_MATH`.
const BREAK: [u8; 4] = 0x0202_000du32.to_le_bytes();

/// Whether a thread stands in a frame of the FPU's emulator (`arch/mips/math-emu/dsemul.c`). An instruction in
/// the delay slot of an emulated branch is run in a page of its own, followed by a trap; what comes after that
/// only the kernel knows.
pub(crate) fn is_emulated(code: &[u8; 8]) -> bool {
    code[4..] == BREAK || code[..4] == BREAK
}

/// Whether a regset holds anything that a new thread lacks.
pub(crate) fn is_extra(note: u32, bytes: &[u8]) -> bool {
    note == NT_MIPS_DSP && bytes.iter().any(|byte| *byte != 0)
}

/// Whether the thread has used MSA, by `NT_MIPS_MSA`. Who has not has ones in the upper halves; a processor
/// without MSA has no number.
#[cfg(feature = "image")]
pub(crate) fn uses_vectors(bytes: &[u8]) -> bool {
    let mut registers = bytes.get(..32 * 16).unwrap_or_default().chunks_exact(16);
    let unit = bytes.get(MSA_IR..MSA_IR + 4).unwrap_or_default();
    unit.iter().any(|byte| *byte != 0) && registers.any(|register| register[8..] != [0xff; 8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip() {
        let mut regs = FpRegs {
            fcsr: 0x0080_0003,
            fir: 0x00f3_0000,
            ..FpRegs::default()
        };
        (regs.f[0], regs.f[31]) = (1, u64::MAX - 1);
        assert_eq!(FpRegs::from_bytes(&regs.to_bytes()), Some(regs));
        assert_eq!(FpRegs::from_bytes(&[0; 256]), None);
    }

    #[test]
    fn a_frame_of_the_emulator_ends_in_its_trap() {
        let addiu = [1, 0, 0x4a, 0x65];
        let code =
            |first: [u8; 4], second: [u8; 4]| [first, second].concat().try_into().expect("8");
        assert!(is_emulated(&code(addiu, BREAK)) && is_emulated(&code(BREAK, [0; 4])));
        assert!(!is_emulated(&code(addiu, addiu)));
    }

    #[test]
    fn a_new_thread_has_empty_accumulators() {
        assert!(!is_extra(NT_MIPS_DSP, &[0; 56]));
        assert!(is_extra(NT_MIPS_DSP, &[1; 56]));
    }

    #[cfg(feature = "image")]
    #[test]
    fn vectors_are_in_use_when_their_upper_halves_are() {
        let mut msa = [0xff; 32 * 16 + 16];
        msa[..8].fill(3);
        assert!(!uses_vectors(&msa));
        msa[8] = 3;
        assert!(uses_vectors(&msa));
        // What the kernel makes up on a processor without MSA.
        msa[MSA_IR..MSA_IR + 4].fill(0);
        assert!(!uses_vectors(&msa) && !uses_vectors(&[]));
    }
}
