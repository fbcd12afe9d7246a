//! The abilities of an x86 CPU in CRIU's image format: 19 words of bits, each from one answer of CPUID.
//!
//! The layout is Linux's of some release, frozen (`capability_ver` 2). Pure: the answers are a function's.

use criu_arch::CpuChecks;
use criu_image::pb::CpuinfoX86Entry;
use criu_image::pb::cpuinfo_x86_entry::Vendor;

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// Where the words come from: word, leaf, subleaf, register. Words 2, 5, 7, 8 are not used; word 3 is Linux's own.
const SOURCES: &[(usize, u32, u32, usize)] = &[
    (0, 1, 0, EDX),
    (1, 0x8000_0001, 0, EDX),
    (4, 1, 0, ECX),
    (6, 0x8000_0001, 0, ECX),
    (9, 7, 0, EBX),
    (10, 0xd, 1, EAX),
    (11, 7, 0, ECX),
    (12, 0xf, 1, EDX),
    (13, 0x8000_0008, 0, EBX),
    (14, 6, 0, EAX),
    (15, 0x8000_000a, 0, EDX),
    (16, 0xf, 0, EDX),
    (17, 0x8000_0007, 0, EBX),
    (18, 7, 0, EDX),
];
const WORDS: usize = 19;
/// Words of `capability_ver` 1.
const OLD_WORDS: usize = 12;

/// What programs can see of a CPU: word, then bits with their names.
#[rustfmt::skip]
const INSTRUCTIONS: &[(usize, &[(u32, &str)])] = &[
    (0, &[(0, "fpu"), (4, "tsc"), (8, "cx8"), (11, "sep"), (15, "cmov"), (19, "clflush"), (23, "mmx"), (24, "fxsr"), (25, "sse"), (26, "sse2")]),
    (1, &[(11, "syscall"), (22, "mmxext"), (27, "rdtscp"), (30, "3dnowext"), (31, "3dnow")]),
    (3, &[(16, "rep_good"), (20, "nopl")]),
    (4, &[(0, "pni"), (1, "pclmulqdq"), (3, "monitor"), (9, "ssse3"), (13, "cx16"), (19, "sse4_1"), (20, "sse4_2"), (22, "movbe"),
          (23, "popcnt"), (25, "aes"), (26, "xsave"), (27, "osxsave"), (28, "avx"), (29, "f16c"), (30, "rdrand")]),
    (6, &[(5, "abm"), (6, "sse4a"), (7, "misalignsse"), (8, "3dnowprefetch"), (11, "xop"), (16, "fma4"), (21, "tbm")]),
    (9, &[(0, "fsgsbase"), (3, "bmi1"), (4, "hle"), (5, "avx2"), (8, "bmi2"), (9, "erms"), (11, "rtm"), (14, "mpx"), (16, "avx512f"),
          (17, "avx512dq"), (18, "rdseed"), (19, "adx"), (23, "clflushopt"), (26, "avx512pf"), (27, "avx512er"), (28, "avx512cd"),
          (29, "sha_ni"), (30, "avx512bw"), (31, "avx512vl")]),
    (10, &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1")]),
    (11, &[(1, "avx512vbmi"), (6, "avx512_vbmi2"), (8, "gfni"), (9, "vaes"), (10, "vpclmulqdq"), (11, "avx512_vnni"), (12, "avx512_bitalg"),
           (13, "tme"), (14, "avx512_vpopcntdq"), (22, "rdpid")]),
    (13, &[(0, "clzero")]),
    (18, &[(2, "avx512_4vnniw"), (3, "avx512_4fmaps")]),
];

/// What the floating point state depends on.
const FPU: &[(usize, &[(u32, &str)])] = &[
    (0, &[(0, "fpu"), (24, "fxsr")]),
    (4, &[(27, "osxsave")]),
    (10, &[(3, "xsaves")]),
];

/// The ability without which a part of the extended state counts as absent: part, word, bit.
const STATE_NEEDS: &[(u32, usize, u32)] = &[
    (0, 0, 0),
    (1, 0, 25),
    (2, 4, 28),
    (3, 9, 14),
    (4, 9, 14),
    (5, 9, 16),
    (6, 9, 16),
    (7, 9, 16),
    (9, 11, 3),
];
/// The parts of the extended state that CRIU 4.2 records: x87, AVX, MPX's second, AVX-512, protection keys.
/// SSE and MPX's first are missing by an oversight there, and it refuses images that have them.
const STATE_RECORDED: u64 = 0b10_1111_0101;

/// Describes a CPU; `None` if neither Intel nor AMD made it.
pub(crate) fn describe(cpuid: &dyn Fn(u32, u32) -> [u32; 4]) -> Option<CpuinfoX86Entry> {
    let [highest, b, c, d] = cpuid(0, 0);
    let vendor = [b, d, c].map(u32::to_le_bytes).concat();
    let vendor = match vendor.as_slice() {
        b"GenuineIntel" => Vendor::Intel,
        b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
        _ => return None,
    };
    let highest_extended = cpuid(0x8000_0000, 0)[EAX];
    let exists = |leaf| {
        if leaf < 0x8000_0000 {
            leaf <= highest
        } else {
            leaf <= highest_extended
        }
    };
    let signature = cpuid(1, 0)[EAX];
    let bits = |shift: u32, mask: u32| signature >> shift & mask;
    let family = bits(8, 0xf)
        + if bits(8, 0xf) == 0xf {
            bits(20, 0xff)
        } else {
            0
        };
    let model = bits(4, 0xf) + if family >= 6 { bits(16, 0xf) << 4 } else { 0 };

    let mut words = vec![0; WORDS];
    for (word, leaf, subleaf, register) in SOURCES {
        if exists(*leaf) {
            words[*word] = cpuid(*leaf, *subleaf)[*register];
        }
    }
    if words[16] >> 1 & 1 == 0 {
        words[12] = 0;
    }
    // Linux's own: CPUID itself and long NOPs are always there on 64 bits, fast `rep` on what is not ancient.
    words[3] = 1 << 25 | 1 << 20;
    if (vendor == Vendor::Intel && family == 6) || (vendor == Vendor::Amd && family >= 0x10) {
        words[3] |= 1 << 16;
    }
    if vendor == Vendor::Amd {
        words[0] &= !(1 << 31);
    }
    let has = |word: usize, bit: u32| words[word] >> bit & 1 == 1;
    let state = exists(0xd) && has(4, 26);
    let [low, size, largest, high] = if state { cpuid(0xd, 0) } else { [0; 4] };
    let mut mask = (u64::from(high) << 32 | u64::from(low)) & STATE_RECORDED;
    for (part, word, bit) in STATE_NEEDS {
        if !has(*word, *bit) {
            mask &= !(1 << part);
        }
    }
    Some(CpuinfoX86Entry {
        vendor_id: vendor.into(),
        cpu_family: family,
        model,
        stepping: bits(0, 0xf),
        capability_ver: 2,
        capability: words,
        model_id: exists(0x8000_0004).then(|| brand(cpuid)),
        xfeatures_mask: Some(mask),
        xsave_size: Some(size),
        xsave_size_max: Some(largest),
    })
}

fn brand(cpuid: &dyn Fn(u32, u32) -> [u32; 4]) -> String {
    let bytes: Vec<u8> = (0x8000_0002..=0x8000_0004)
        .flat_map(|leaf| cpuid(leaf, 0))
        .flat_map(u32::to_le_bytes)
        .collect();
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text)
        .trim_start_matches(' ')
        .to_owned()
}

/// What a task from `written` could miss `here`, by name. More abilities are no difference, except where exactness is asked for.
pub(crate) fn compare(
    written: &CpuinfoX86Entry,
    here: &CpuinfoX86Entry,
    checks: CpuChecks,
) -> Vec<String> {
    let words = match written.capability_ver {
        1 => OLD_WORDS,
        2 => WORDS,
        other => return vec![format!("its description has the unknown version {other}")],
    };
    if written.capability.len() != words || here.capability.len() != WORDS {
        return vec![format!(
            "its description has {} words instead of {words}",
            written.capability.len()
        )];
    }
    let lacks = |word: usize, bit: u32| {
        word < words && (written.capability[word] & !here.capability[word]) >> bit & 1 == 1
    };
    let missing = |table: &[(usize, &[(u32, &'static str)])]| -> Vec<String> {
        let bits = table
            .iter()
            .flat_map(|(word, bits)| bits.iter().map(move |(bit, name)| (*word, *bit, *name)));
        bits.filter(|(word, bit, _)| lacks(*word, *bit))
            .map(|(_, _, name)| format!("{name} is missing"))
            .collect()
    };
    let mut all = Vec::new();
    if checks.fpu {
        all.extend(missing(FPU));
        let state = written.xfeatures_mask.unwrap_or(0) & !here.xfeatures_mask.unwrap_or(0);
        if state != 0 {
            all.push(format!("extended state {state:#x} is missing"));
        }
        for (name, then, now) in [
            ("the", written.xsave_size, here.xsave_size),
            ("the largest", written.xsave_size_max, here.xsave_size_max),
        ] {
            // Of a CPU without extended state there is nothing to fit.
            if let (Some(then @ 1..), Some(now)) = (then, now)
                && then != now
            {
                all.push(format!(
                    "{name} extended state has {now} bytes instead of {then}"
                ));
            }
        }
    }
    if checks.instructions {
        all.extend(missing(INSTRUCTIONS));
    }
    if checks.exact {
        for word in (0..words).filter(|word| written.capability[*word] != here.capability[*word]) {
            all.push(format!(
                "word {word} is {:#x} instead of {:#x}",
                here.capability[word], written.capability[word]
            ));
        }
    }
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    /// A family 6, model 0x55 Intel with AVX but not AVX-512.
    fn intel(leaf: u32, subleaf: u32) -> [u32; 4] {
        let name = |text: &[u8; 4]| u32::from_le_bytes(*text);
        match (leaf, subleaf) {
            (0, _) => [0xd, name(b"Genu"), name(b"ntel"), name(b"ineI")],
            (1, _) => [
                0x0005_0657,
                0,
                1 << 28 | 1 << 27 | 1 << 26,
                1 << 26 | 1 << 25 | 1 << 24 | 1,
            ],
            (7, 0) => [0, 1 << 5, 0, 0],
            (0xd, 0) => [0b111, 832, 2696, 0],
            (0xd, 1) => [0b1111, 0, 0, 0],
            (0x8000_0000, _) => [0x8000_0004, 0, 0, 0],
            (0x8000_0002, _) => [name(b"  Xe"), name(b"on\0\0"), 0, 0],
            _ => [0; 4],
        }
    }

    const CHECKS: CpuChecks = CpuChecks {
        exact: false,
        fpu: true,
        instructions: true,
    };

    #[test]
    fn a_cpu_is_described() {
        let entry = describe(&intel).expect("it is an Intel");
        expect!["1 6 55 7 Some(\"Xeon\") 5 832 2696"].assert_eq(&format!(
            "{} {} {:x} {} {:?} {:x} {} {}",
            entry.vendor_id,
            entry.cpu_family,
            entry.model,
            entry.stepping,
            entry.model_id,
            entry.xfeatures_mask(),
            entry.xsave_size(),
            entry.xsave_size_max(),
        ));
        assert_eq!(entry.capability[3], 0x0211_0000);
        assert_eq!(entry.capability.len(), WORDS);
        assert!(
            compare(
                &entry,
                &entry,
                CpuChecks {
                    exact: true,
                    ..CHECKS
                }
            )
            .is_empty()
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let here = describe(&intel).expect("it is an Intel");
        let mut written = here.clone();
        written.capability[9] |= 1 << 16;
        written.xfeatures_mask = Some(0b1110_0111);
        written.xsave_size = Some(2696);
        expect!["avx512f is missing; extended state 0xe2 is missing; the extended state has 832 bytes instead of 2696"]
            .assert_eq(&compare(&written, &here, CHECKS).join("; "));
        assert!(
            compare(
                &written,
                &here,
                CpuChecks {
                    fpu: false,
                    instructions: false,
                    ..CHECKS
                }
            )
            .is_empty()
        );
        (
            written.capability_ver,
            written.xsave_size,
            written.xfeatures_mask,
        ) = (1, None, None);
        written.capability.truncate(OLD_WORDS);
        expect!["avx512f is missing"].assert_eq(&compare(&written, &here, CHECKS).join("; "));
    }
}
