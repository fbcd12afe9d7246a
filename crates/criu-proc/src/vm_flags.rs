//! The `VmFlags:` line of smaps: a list of two-letter codes.

use crate::ParseError;
use crate::text::Line;

/// The flags of a VMA, as smaps tells them.
///
/// `show_smap_vma_flags` in `fs/proc/task_mmu.c` and `Documentation/filesystems/proc.rst`. A code this build does
/// not know is kept in [`unknown`](Self::unknown) (a kernel that meets a flag it has no code for prints `??`): who
/// must not guess looks there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct VmFlags {
    known: u64,
    /// Codes without a constant here, in the kernel's order.
    pub unknown: Vec<[u8; 2]>,
}

macro_rules! codes {
    ($($bit:literal $name:ident $code:literal $doc:literal;)*) => {
        #[doc = "The codes, each with its kernel flag."]
        impl VmFlags {
            $(#[doc = concat!("`", $code, "`: ", $doc)] pub const $name: u64 = 1 << $bit;)*
        }

        /// Every code and its bit.
        const CODES: &[(&str, u64)] = &[$(($code, 1 << $bit)),*];

        fn bit(code: [u8; 2]) -> Option<u64> {
            // A match on a value of two bytes compiles to a jump, where a search of the table would cost more than
            // the rest of the line.
            $(const $name: [u8; 2] = two($code);)*
            match code {
                $($name => Some(1 << $bit),)*
                _ => None,
            }
        }
    };
}

const fn two(code: &str) -> [u8; 2] {
    let bytes = code.as_bytes();
    [bytes[0], bytes[1]]
}

codes! {
    0 READ "rd" "`VM_READ`.";
    1 WRITE "wr" "`VM_WRITE`.";
    2 EXEC "ex" "`VM_EXEC`.";
    3 SHARED "sh" "`VM_SHARED`. Not set for a shared mapping of a file opened read-only: see [`MAYSHARE`](Self::MAYSHARE).";
    4 MAYREAD "mr" "`VM_MAYREAD`.";
    5 MAYWRITE "mw" "`VM_MAYWRITE`.";
    6 MAYEXEC "me" "`VM_MAYEXEC`.";
    7 MAYSHARE "ms" "`VM_MAYSHARE`: mapped with `MAP_SHARED`.";
    8 GROWSDOWN "gd" "`VM_GROWSDOWN`: a stack.";
    9 PFNMAP "pf" "`VM_PFNMAP`: bare page frames.";
    10 DENYWRITE "dw" "`VM_DENYWRITE`, of older kernels.";
    11 LOCKED "lo" "`VM_LOCKED`: mlock(2).";
    12 IO "io" "`VM_IO`: device memory.";
    13 SEQ_READ "sr" "`VM_SEQ_READ`: `MADV_SEQUENTIAL`.";
    14 RAND_READ "rr" "`VM_RAND_READ`: `MADV_RANDOM`.";
    15 DONTCOPY "dc" "`VM_DONTCOPY`: `MADV_DONTFORK`.";
    16 DONTEXPAND "de" "`VM_DONTEXPAND`: mremap(2) cannot grow it.";
    17 LOCKONFAULT "lf" "`VM_LOCKONFAULT`: `MLOCK_ONFAULT`, mlock2(2). Older kernels have no code for it, and for no other flag around.";
    18 ACCOUNT "ac" "`VM_ACCOUNT`: counts against the commit limit.";
    19 NORESERVE "nr" "`VM_NORESERVE`: `MAP_NORESERVE`.";
    20 HUGETLB "ht" "`VM_HUGETLB`: hugetlbfs pages.";
    21 SYNC "sf" "`VM_SYNC`: `MAP_SYNC`, DAX.";
    22 ARCH_1 "ar" "`VM_ARCH_1`: means something else on each architecture (PAT on x86).";
    23 WIPEONFORK "wf" "`VM_WIPEONFORK`: `MADV_WIPEONFORK`.";
    24 DONTDUMP "dd" "`VM_DONTDUMP`: `MADV_DONTDUMP`.";
    25 SOFTDIRTY "sd" "`VM_SOFTDIRTY`: new since soft-dirty was last cleared.";
    26 MIXEDMAP "mm" "`VM_MIXEDMAP`: struct pages and bare frames.";
    27 HUGEPAGE "hg" "`VM_HUGEPAGE`: `MADV_HUGEPAGE`.";
    28 NOHUGEPAGE "nh" "`VM_NOHUGEPAGE`: `MADV_NOHUGEPAGE`.";
    29 MERGEABLE "mg" "`VM_MERGEABLE`: `MADV_MERGEABLE`.";
    30 UFFD_MISSING "um" "`VM_UFFD_MISSING`: userfaultfd(2) reports missing pages.";
    31 UFFD_WP "uw" "`VM_UFFD_WP`: userfaultfd(2) reports writes.";
    32 UFFD_MINOR "ui" "`VM_UFFD_MINOR`: userfaultfd(2) reports minor faults.";
    33 SHADOW_STACK "ss" "`VM_SHADOW_STACK`: x86 CET, arm64 GCS.";
    34 SEALED "sl" "`VM_SEALED`: mseal(2).";
    35 DROPPABLE "dp" "`VM_DROPPABLE`: `MAP_DROPPABLE`.";
    36 MAYBE_GUARD "gu" "`VM_MAYBE_GUARD`: may hold `MADV_GUARD_INSTALL` pages; newer than Linux 6.18.";
    37 ARM64_BTI "bt" "`VM_ARM64_BTI`: `PROT_BTI`.";
    38 MTE "mt" "`VM_MTE`: `PROT_MTE`.";
    39 MPX "mp" "`VM_MPX`: x86 MPX, of older kernels.";
    40 NONLINEAR "nl" "`VM_NONLINEAR`: remap_file_pages(2), of older kernels.";
}

/// What a kernel prints for a flag that it has no code for.
const NAMELESS: [u8; 2] = *b"??";

/// What is printed behind `VM_LOCKONFAULT`: codes come in the order of the kernel's bits.
const LATER: u64 = (VmFlags::MERGEABLE << 1) - VmFlags::ACCOUNT;

impl VmFlags {
    /// Whether all of `flags` (an or of the constants) are set.
    pub fn contains(&self, flags: u64) -> bool {
        self.known & flags == flags
    }

    /// The known flags, an or of the constants of this type: not the kernel's bits.
    pub fn bits(&self) -> u64 {
        self.known
    }

    /// The codes of the known flags, in this table's order.
    pub fn codes(&self) -> impl Iterator<Item = &'static str> {
        CODES
            .iter()
            .filter(|(_, bit)| self.known & bit != 0)
            .map(|(code, _)| *code)
    }

    /// The rest of the line after `VmFlags:`.
    pub(crate) fn parse(mut line: Line<'_>) -> Result<Self, ParseError> {
        let mut flags = Self::default();
        loop {
            let word = line.word();
            if word.is_empty() {
                return Ok(flags);
            }
            let code: [u8; 2] = word
                .try_into()
                .map_err(|_| line.error("codes of two letters"))?;
            match bit(code) {
                Some(bit) => flags.known |= bit,
                None if code == NAMELESS
                    && flags.known & (Self::LOCKED | LATER) == Self::LOCKED =>
                {
                    flags.known |= Self::LOCKONFAULT;
                }
                None => flags.unknown.push(code),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_and_unknown_codes() {
        let flags = VmFlags::parse(Line::new("smaps", 1, b" rd wr mr mw me ?? gd ac zz "))
            .expect("two letters each");
        assert!(flags.contains(VmFlags::READ | VmFlags::GROWSDOWN));
        assert!(!flags.contains(VmFlags::READ | VmFlags::EXEC));
        assert_eq!(flags.unknown, [*b"??", *b"zz"]);
        assert_eq!(
            flags.codes().collect::<Vec<_>>(),
            ["rd", "wr", "mr", "mw", "me", "gd", "ac"]
        );
        VmFlags::parse(Line::new("smaps", 1, b" rd wrr")).expect_err("three letters");
    }

    #[test]
    fn a_lock_on_fault_without_a_code() {
        let parse = |text: &'static str| {
            VmFlags::parse(Line::new("smaps", 1, text.as_bytes())).expect("two letters each")
        };
        let on_fault = parse(" rd wr mr mw me lo ?? ac sd");
        assert!(on_fault.contains(VmFlags::LOCKED | VmFlags::LOCKONFAULT));
        assert!(on_fault.unknown.is_empty());
        for other in ["rd lo ac ??", "rd ?? lo ac", "rd ?? ac"] {
            assert!(!parse(other).contains(VmFlags::LOCKONFAULT), "{other}");
        }
    }

    #[test]
    fn each_code_has_its_own_bit() {
        let all = CODES.iter().fold(0_u64, |all, (_, bit)| all | bit);
        assert_eq!(all.count_ones() as usize, CODES.len());
    }
}
