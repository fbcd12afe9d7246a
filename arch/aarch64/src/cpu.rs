//! What not every processor has of the state of a thread.

use criu_arch::Lack;

use crate::fpu::{self, NT_ARM_FPMR, NT_ARM_POE, NT_ARM_SVE, NT_ARM_TAGGED_ADDR_CTRL};
use crate::{NT_PAC_ENABLED_KEYS, NT_PAC_MASK, NT_PACA_KEYS, NT_PACG_KEYS};

/// All regsets that a new thread may lack.
pub(crate) const BORN: &[u32] = &[
    NT_PAC_MASK,
    NT_PACA_KEYS,
    NT_PACG_KEYS,
    NT_PAC_ENABLED_KEYS,
    NT_ARM_TAGGED_ADDR_CTRL,
    NT_ARM_FPMR,
    NT_ARM_POE,
    NT_ARM_SVE,
];

const AT_HWCAP: u32 = 16;
const AT_HWCAP2: u32 = 26;
const HWCAP_ATOMICS: u64 = 1 << 8;
const HWCAP_SVE: u64 = 1 << 22;
const HWCAP2_MOPS: u64 = 1 << 43;
const HWCAP2_BTI: u64 = 1 << 17;
const HWCAP2_MTE: u64 = 1 << 18;
/// `PROT_BTI`.
const PROT_BTI: u32 = 0x10;
/// `PR_PAC_APIAKEY` and the three others: with what a thread starts.
const ALL_KEYS: u64 = 0xf;
/// `POR_EL0_INIT`: all is allowed in the first key, nothing in the others.
const POE_INIT: u64 = 7;
/// `PR_TAGGED_ADDR_ENABLE`: of `NT_ARM_TAGGED_ADDR_CTRL` what every processor has.
const TAGGED_ADDR_ENABLE: u64 = 1;

/// What the kernel tells programs of the processor: two words of the auxiliary vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    first: u64,
    second: u64,
}

/// What is used by every program that is told of it, for its libraries do.
const UNASKED: &[(Abilities, Lack)] = &[
    (
        Abilities::first(HWCAP_SVE),
        Lack {
            fact: "its C library may use scalable vectors (SVE)",
            remedy: "restore it on a processor with SVE",
        },
    ),
    (
        Abilities::first(HWCAP_ATOMICS),
        Lack {
            fact: "its libraries may use atomic instructions (LSE)",
            remedy: "restore it on a processor with LSE",
        },
    ),
    (
        Abilities::second(HWCAP2_MOPS),
        Lack {
            fact: "its C library may use instructions that copy memory (MOPS)",
            remedy: "restore it on a processor with MOPS",
        },
    ),
];

impl Abilities {
    const fn first(first: u64) -> Self {
        Self { first, second: 0 }
    }

    const fn second(second: u64) -> Self {
        Self { first: 0, second }
    }

    pub(crate) fn identify(identify: &dyn Fn(u32, u32) -> [u32; 4]) -> Self {
        let word = |key| {
            let [low, high, ..] = identify(key, 0);
            u64::from(high) << 32 | u64::from(low)
        };
        Self {
            first: word(AT_HWCAP),
            second: word(AT_HWCAP2),
        }
    }

    fn has(self, all: Self) -> bool {
        self.first & all.first == all.first && self.second & all.second == all.second
    }

    /// [`criu_arch::Arch::lack_of_told`].
    pub(crate) fn lack_of_told(self, auxv: &[u64]) -> Option<Lack> {
        let (pairs, _) = auxv.as_chunks::<2>();
        let word = |key: u32| {
            let pair = pairs.iter().find(|[known, _]| *known == u64::from(key));
            pair.map_or(0, |[_, word]| *word)
        };
        let told = Self {
            first: word(AT_HWCAP),
            second: word(AT_HWCAP2),
        };
        let mut all = UNASKED.iter();
        all.find_map(|(what, lack)| (told.has(*what) && !self.has(*what)).then_some(*lack))
    }

    pub(crate) fn protections(self) -> u32 {
        if !self.has(Self::second(HWCAP2_BTI)) {
            0
        } else {
            PROT_BTI
        }
    }
}

/// [`criu_arch::Arch::lack`].
pub(crate) fn lack(
    note: u32,
    bytes: &[u8],
    here: Option<&[u8]>,
    abilities: Abilities,
) -> Option<Lack> {
    let number = word(bytes);
    match (note, here) {
        // Whether a pointer was ever signed nobody knows: the kernel gives keys to every program.
        (NT_PAC_MASK | NT_PACA_KEYS | NT_PACG_KEYS, None) => Some(Lack {
            fact: "it has keys to sign pointers with, and here is no pointer authentication (PAC)",
            remedy: "restore it on a processor with PAC",
        }),
        (NT_PAC_MASK, Some(here)) if here != bytes => Some(Lack {
            fact: "its pointers are signed in other bits than here (NT_ARM_PAC_MASK)",
            remedy: "restore it under a kernel, and on a processor, with user addresses of the same size",
        }),
        (NT_PAC_ENABLED_KEYS, None) if number != ALL_KEYS => Some(Lack {
            fact: "it does without some of its keys for pointers (PR_PAC_SET_ENABLED_KEYS)",
            remedy: "restore it under Linux 5.13 or later",
        }),
        (NT_ARM_TAGGED_ADDR_CTRL, _)
            if number & !TAGGED_ADDR_ENABLE != 0
                && !abilities.has(Abilities::second(HWCAP2_MTE)) =>
        {
            Some(Lack {
                fact: "it has its memory checked by tags (MTE)",
                remedy: "restore it on a processor with MTE",
            })
        }
        (NT_ARM_TAGGED_ADDR_CTRL, None) if number != 0 => Some(Lack {
            fact: "it gives the kernel addresses with tags (PR_SET_TAGGED_ADDR_CTRL)",
            remedy: "restore it under Linux 5.4 or later",
        }),
        (NT_ARM_FPMR, None) if number != 0 => Some(Lack {
            fact: "it has set how to compute with 8-bit numbers (FPMR)",
            remedy: "restore it on a processor with FP8",
        }),
        (NT_ARM_POE, None) if number != POE_INIT => Some(Lack {
            fact: "it has keys to protect memory by (POE)",
            remedy: "restore it on a processor with POE",
        }),
        (NT_ARM_SVE, _) => lack_of_sve(bytes, here),
        _ => None,
    }
}

/// Frames of handlers tell how long the vectors are, even where nothing is in them, and are good for no other length: so
/// that has to be possible here, whoever uses them.
fn lack_of_sve(bytes: &[u8], here: Option<&[u8]>) -> Option<Lack> {
    match here {
        None if fpu::is_full(bytes) => Some(Lack {
            fact: "it has scalable vectors in its registers (SVE)",
            remedy: "restore it on a processor with SVE",
        }),
        Some(here) if fpu::longest(here) < fpu::length(bytes) => Some(Lack {
            fact: "its scalable vectors are longer than any here (SVE)",
            remedy: "restore it on a processor with vectors of that length",
        }),
        _ => None,
    }
}

fn word(bytes: &[u8]) -> u64 {
    let bytes = bytes.iter().take(8).rev();
    bytes.fold(0, |all, byte| all << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fpu::tests::sve;

    fn fact(note: u32, bytes: &[u8], here: Option<&[u8]>) -> Option<&'static str> {
        lack(note, bytes, here, Abilities::default()).map(|lack| lack.fact)
    }

    #[test]
    fn vectors_need_room() {
        let (idle, full) = (sve(64, 64, 0), sve(64, 64, 1));
        assert_eq!(fact(NT_ARM_SVE, &idle, None), None);
        assert!(fact(NT_ARM_SVE, &full, None).is_some_and(|fact| fact.contains("registers (SVE)")));
        let small = sve(16, 16, 0);
        assert!(fact(NT_ARM_SVE, &idle, Some(&small)).is_some_and(|fact| fact.contains("longer")));
        assert_eq!(fact(NT_ARM_SVE, &full, Some(&sve(16, 256, 0))), None);
        assert_eq!(fact(NT_ARM_SVE, &sve(16, 64, 1), Some(&small)), None);
    }

    #[test]
    fn keys_need_somebody_who_signs() {
        let keys = [1; 64];
        assert!(fact(NT_PACA_KEYS, &keys, None).is_some_and(|fact| fact.contains("PAC")));
        assert_eq!(fact(NT_PACA_KEYS, &keys, Some(&[2; 64])), None);
        assert!(
            fact(NT_PAC_MASK, &[1; 16], Some(&[2; 16]))
                .is_some_and(|fact| fact.contains("other bits"))
        );
        assert_eq!(fact(NT_PAC_MASK, &[1; 16], Some(&[1; 16])), None);
    }

    #[test]
    fn what_libraries_use_unasked_must_be_there() {
        let told = [33, 1, 16, HWCAP_SVE | HWCAP_ATOMICS | 1 << 30, 26, 1 << 20];
        let here = |first| Abilities { first, second: 0 };
        let fact = |first| here(first).lack_of_told(&told).map(|lack| lack.fact);
        assert!(fact(HWCAP_ATOMICS).is_some_and(|fact| fact.contains("SVE")));
        assert!(fact(HWCAP_SVE).is_some_and(|fact| fact.contains("LSE")));
        assert_eq!(fact(HWCAP_SVE | HWCAP_ATOMICS), None);
        assert_eq!(here(0).lack_of_told(&[16, 1 << 30]), None);
        assert_eq!(here(0).lack_of_told(&[]), None);
        assert!(here(0).lack_of_told(&[26, HWCAP2_MOPS]).is_some());
    }

    #[test]
    fn what_a_thread_starts_with_is_not_in_use() {
        let bytes = |word: u64| word.to_le_bytes();
        assert_eq!(fact(NT_PAC_ENABLED_KEYS, &bytes(ALL_KEYS), None), None);
        assert!(fact(NT_PAC_ENABLED_KEYS, &bytes(1), None).is_some());
        assert_eq!(fact(NT_ARM_POE, &bytes(POE_INIT), None), None);
        assert!(fact(NT_ARM_POE, &bytes(0), None).is_some());
        assert_eq!(
            fact(NT_ARM_TAGGED_ADDR_CTRL, &bytes(1), Some(&bytes(0))),
            None
        );
        let checked = fact(NT_ARM_TAGGED_ADDR_CTRL, &bytes(0x3), Some(&bytes(0)));
        assert!(checked.is_some_and(|fact| fact.contains("MTE")));
        let able = Abilities::second(HWCAP2_MTE);
        assert_eq!(
            lack(NT_ARM_TAGGED_ADDR_CTRL, &bytes(0x3), Some(&bytes(0)), able),
            None
        );
    }
}
