//! Thread areas: the three descriptors of the GDT that 32-bit programs keep TLS in.
//!
//! `struct user_desc`, `arch/x86/include/uapi/asm/ldt.h`; `arch/x86/kernel/tls.c`.

use criu_arch::{SetArea, ThreadAreas};

/// `GDT_ENTRY_TLS_MIN` to `GDT_ENTRY_TLS_MAX` of a 64-bit kernel.
pub(crate) const AREAS: ThreadAreas = ThreadAreas {
    get: 25,
    set: SetArea::From(26),
    slots: &[12, 13, 14],
    size: 16,
};

/// One descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserDesc {
    /// Its number in the GDT.
    pub entry: u32,
    /// Where the segment begins.
    pub base: u32,
    /// Its last byte or page.
    pub limit: u32,
    /// `seg_32bit`, `contents` (two bits), `read_exec_only`, `limit_in_pages`, `seg_not_present`,
    /// `useable`, `lm`, lowest first.
    pub bits: u32,
}

impl UserDesc {
    /// From the kernel's structure.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        Some(Self {
            entry: word(0)?,
            base: word(4)?,
            limit: word(8)?,
            bits: word(12)?,
        })
    }

    /// The kernel's structure.
    pub fn to_bytes(self) -> Vec<u8> {
        [self.entry, self.base, self.limit, self.bits]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    /// Bit `n` of the flags.
    pub fn bit(self, n: u32) -> bool {
        self.bits >> n & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_slot_reads_back() {
        let bytes = [12u32, 0, 0, 0x28].map(u32::to_le_bytes).concat();
        let desc = UserDesc::from_bytes(&bytes).expect("16 bytes");
        assert!(desc.bit(3) && desc.bit(5) && !desc.bit(6));
        assert_eq!(desc.to_bytes(), bytes);
        assert_eq!(UserDesc::from_bytes(&bytes[..15]), None);
    }
}
