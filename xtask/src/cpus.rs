//! Changes of the processor that are known: from one model of the emulator to another, and what is refused then.

use crate::machine::Machine;

/// A row: dumped on the one, restored on the other, and the other way round.
#[derive(Debug)]
pub(crate) struct Change {
    machine: &'static str,
    pub(crate) kernel: &'static str,
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    /// What there is less of: cases that say they need one of these are refused in these words, and no other is.
    pub(crate) lacks: &'static [&'static str],
    /// In what words everybody is refused, there and back.
    pub(crate) all_need: &'static [&'static str],
    pub(crate) all_need_back: &'static [&'static str],
}

const CHANGES: &[Change] = &[
    Change {
        machine: "x86_64",
        kernel: "6.1",
        from: "max",
        to: "qemu64",
        lacks: &[
            "AVX",
            "protection keys",
            "avx2 is missing",
            "xsave is missing",
            "aes is missing",
            "osxsave is missing",
            "extended state",
            "word 9 is",
        ],
        all_need: &[],
        all_need_back: &[],
    },
    Change {
        machine: "aarch64",
        kernel: "6.1",
        from: "max,pauth-impdef=on",
        to: "max,pauth-impdef=on,sve=off",
        lacks: &[],
        all_need: &["may use scalable vectors (SVE)"],
        all_need_back: &[],
    },
    Change {
        machine: "aarch64",
        kernel: "6.1",
        from: "max,pauth-impdef=on",
        to: "max,pauth-impdef=on,sve-max-vq=1",
        lacks: &[],
        all_need: &["longer than any here"],
        all_need_back: &[],
    },
    Change {
        machine: "aarch64",
        kernel: "6.1",
        from: "max,pauth=off,sve=off",
        to: "neoverse-n1",
        lacks: &["marked places only (BTI)"],
        all_need: &[],
        all_need_back: &[],
    },
    Change {
        machine: "aarch64",
        kernel: "6.1",
        from: "max,pauth-impdef=on",
        to: "max,pauth=off",
        lacks: &[],
        all_need: &["no pointer authentication (PAC)"],
        all_need_back: &[],
    },
    // From this kernel on user addresses have 52 bits where the processor can.
    Change {
        machine: "aarch64",
        kernel: "6.12",
        from: "max,pauth-impdef=on",
        to: "max,pauth-impdef=on,lpa2=off",
        lacks: &[],
        all_need: &["signed in other bits"],
        all_need_back: &["signed in other bits"],
    },
];

/// The rows of a machine that `--cpu` names: `A:B`, or `all`.
pub(crate) fn named(machine: &Machine, cpu: &str) -> Vec<&'static Change> {
    let own = CHANGES
        .iter()
        .filter(|change| change.machine == machine.name);
    own.filter(|change| {
        let pair = cpu.split_once(':');
        cpu == "all" || pair == Some((change.from, change.to))
    })
    .collect()
}
