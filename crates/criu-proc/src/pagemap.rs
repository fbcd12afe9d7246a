//! The entries of `/proc/PID/pagemap`: 64 bits for each page, by virtual page number.

/// One page. `Documentation/admin-guide/mm/pagemap.rst`, `fs/proc/task_mmu.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageEntry(pub u64);

impl PageEntry {
    /// Bit 63: in memory.
    pub fn present(self) -> bool {
        self.bit(63)
    }

    /// Bit 62: swapped out, or a marker (migration, guard) in the place of a page.
    pub fn swapped(self) -> bool {
        self.bit(62)
    }

    /// Bit 61: a page of a file or of shared anonymous memory; Linux 3.5.
    pub fn file_or_shared(self) -> bool {
        self.bit(61)
    }

    /// Bit 58: a guard page, `MADV_GUARD_INSTALL`; Linux 6.15.
    pub fn guard(self) -> bool {
        self.bit(58)
    }

    /// Bit 57: write-protected by userfaultfd(2); Linux 5.13.
    pub fn uffd_write_protected(self) -> bool {
        self.bit(57)
    }

    /// Bit 56: mapped by this process alone; Linux 4.2.
    pub fn exclusive(self) -> bool {
        self.bit(56)
    }

    /// Bit 55: written since `clear_refs` was last written 4; Linux 3.11. `Documentation/admin-guide/mm/soft-dirty.rst`.
    pub fn soft_dirty(self) -> bool {
        self.bit(55)
    }

    /// Bits 0 to 54 of a page in memory: its frame. 0 to readers without `CAP_SYS_ADMIN`.
    pub fn frame(self) -> Option<u64> {
        self.present().then_some(self.0 & ((1 << 55) - 1))
    }

    /// Bits 0 to 4 and 5 to 54 of a page that is swapped out: the swap area, and the slot in it.
    pub fn swap_slot(self) -> Option<(u8, u64)> {
        // Five bits always fit.
        let area = u8::try_from(self.0 & 0x1f).ok()?;
        self.swapped()
            .then_some((area, (self.0 >> 5) & ((1 << 50) - 1)))
    }

    fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }
}

/// The entries in what was read of the file; a torn entry at the end is left out.
pub fn page_entries(pagemap: &[u8]) -> impl Iterator<Item = PageEntry> {
    pagemap
        .as_chunks()
        .0
        .iter()
        .map(|bytes| PageEntry(u64::from_ne_bytes(*bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits() {
        let present = PageEntry(1 << 63 | 1 << 61 | 1 << 56 | 1 << 55 | 0x1234);
        assert!(
            present.present()
                && present.file_or_shared()
                && present.exclusive()
                && present.soft_dirty()
        );
        assert!(!present.swapped() && !present.guard() && !present.uffd_write_protected());
        assert_eq!((present.frame(), present.swap_slot()), (Some(0x1234), None));
        let swapped = PageEntry(1 << 62 | 7 << 5 | 3);
        assert_eq!((swapped.frame(), swapped.swap_slot()), (None, Some((3, 7))));
        assert!(PageEntry(1 << 58).guard());
    }

    #[test]
    fn a_torn_entry_is_left_out() {
        assert_eq!(page_entries(&[0xff; 17]).count(), 2);
    }
}
