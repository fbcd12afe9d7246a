//! The machines that have guests: a row each.

use anyhow::{Result, bail};

/// A machine, by the names that everybody else has for it.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    /// Debian's name, and what its kernels of ours end in.
    pub(crate) debian: &'static str,
    pub(crate) flavours: &'static [&'static str],
    pub(crate) kernels: &'static [&'static str],
    /// Rust's name, and the C compiler that links for it.
    pub(crate) target: &'static str,
    pub(crate) linker: &'static str,
    /// What linking takes, each a program or a file and its package: compilers only recommend libraries.
    pub(crate) linking: &'static [(&'static str, &'static str)],
    /// The emulator, its package, and what machine it shall be.
    pub(crate) qemu: (&'static str, &'static str),
    pub(crate) board: &'static [&'static str],
    pub(crate) cpu: &'static str,
    /// For `--upgrade`, a processor on which all its kernels have user addresses of one size, if that takes another one.
    pub(crate) same: Option<&'static str>,
    pub(crate) cpus: usize,
    pub(crate) console: &'static str,
}

/// All of them. More than one processor pays nowhere but on x86_64 and aarch64; malta does not boot with two.
pub(crate) const MACHINES: &[Machine] = &[
    Machine {
        name: "x86_64",
        debian: "amd64",
        flavours: &["cloud-amd64", "amd64"],
        kernels: &["6.1", "6.12"],
        target: "x86_64-unknown-linux-gnu",
        linker: "cc",
        linking: &[("cc", "gcc"), ("/usr/include/stdlib.h", "libc6-dev")],
        qemu: ("qemu-system-x86_64", "qemu-system-x86"),
        board: &["-machine", "q35"],
        cpu: "max",
        same: None,
        cpus: 2,
        console: "ttyS0",
    },
    Machine {
        name: "aarch64",
        debian: "arm64",
        flavours: &["cloud-arm64", "arm64"],
        kernels: &["6.1", "6.12", "6.12-16k"],
        target: "aarch64-unknown-linux-gnu",
        linker: "aarch64-linux-gnu-gcc",
        linking: &[
            ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
            ("/usr/aarch64-linux-gnu/lib/crt1.o", "libc6-dev-arm64-cross"),
        ],
        qemu: ("qemu-system-aarch64", "qemu-system-arm"),
        board: &["-machine", "virt,gic-version=3"],
        cpu: "max,pauth-impdef=on",
        same: Some("max,pauth-impdef=on,lpa2=off"),
        cpus: 2,
        console: "ttyAMA0",
    },
    Machine {
        name: "armv7",
        debian: "armhf",
        flavours: &["armmp-lpae"],
        kernels: &["6.1", "6.12"],
        target: "armv7-unknown-linux-gnueabihf",
        linker: "arm-linux-gnueabihf-gcc",
        linking: &[
            ("arm-linux-gnueabihf-gcc", "gcc-arm-linux-gnueabihf"),
            (
                "/usr/arm-linux-gnueabihf/lib/crt1.o",
                "libc6-dev-armhf-cross",
            ),
        ],
        qemu: ("qemu-system-arm", "qemu-system-arm"),
        board: &["-machine", "virt,highmem=off"],
        cpu: "cortex-a15",
        same: None,
        cpus: 1,
        console: "ttyAMA0",
    },
    Machine {
        name: "mips64",
        debian: "mips64el",
        flavours: &["5kc-malta"],
        kernels: &["6.1"],
        target: "mips64el-unknown-linux-gnuabi64",
        linker: "mips64el-linux-gnuabi64-gcc",
        linking: &[
            ("mips64el-linux-gnuabi64-gcc", "gcc-mips64el-linux-gnuabi64"),
            (
                "/usr/mips64el-linux-gnuabi64/lib/crt1.o",
                "libc6-dev-mips64el-cross",
            ),
        ],
        qemu: ("qemu-system-mips64el", "qemu-system-mips"),
        board: &["-machine", "malta"],
        cpu: "5KEc",
        same: None,
        cpus: 1,
        console: "ttyS0",
    },
];

/// The machines of `NAME[,NAME]...` or `all`.
pub(crate) fn named(text: &str) -> Result<Vec<&'static Machine>> {
    if text == "all" {
        return Ok(MACHINES.iter().collect());
    }
    let mut machines = Vec::new();
    for name in text.split(',') {
        let Some(machine) = MACHINES.iter().find(|machine| machine.name == name) else {
            let known: Vec<&str> = MACHINES.iter().map(|machine| machine.name).collect();
            bail!("no machine {name}; there are {} and all", known.join(", "));
        };
        machines.push(machine);
    }
    Ok(machines)
}
