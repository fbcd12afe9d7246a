//! The machine this build runs on: the one file that asks.

use std::sync::OnceLock;

use criu_arch::Arch;

/// The architecture of the tracer.
#[cfg(target_arch = "x86_64")]
pub type Native = criu_arch_x86_64::X86_64;

/// The architecture of the tracer.
#[cfg(target_arch = "aarch64")]
pub type Native = criu_arch_aarch64::Aarch64;

/// The architecture of the tracer.
#[cfg(target_arch = "arm")]
pub type Native = criu_arch_armv7::Armv7;

/// The architecture of the tracer.
#[cfg(target_arch = "mips64")]
pub type Native = criu_arch_mips64::Mips64;

/// Its registers.
pub type NativeRegs = <Native as Arch>::Regs;

/// Where its processor keeps extended state.
pub type FpLayout = <Native as Arch>::FpLayout;

/// The layout of extended state on this very processor.
pub fn fp_layout() -> &'static FpLayout {
    // To ask a processor leaves a virtual machine: some microseconds for each of a dozen questions.
    static LAYOUT: OnceLock<FpLayout> = OnceLock::new();
    LAYOUT.get_or_init(|| Native::fp_layout(&identify))
}

/// What the processor says of itself, as the architecture's crate asks it: on x86 this is CPUID, a
/// function of leaf and subleaf that gives eax, ebx, ecx, edx.
#[cfg(target_arch = "x86_64")]
pub fn identify(leaf: u32, subleaf: u32) -> [u32; 4] {
    let answer = std::arch::x86_64::__cpuid_count(leaf, subleaf);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

/// What the processor says of itself, as the kernel passes it on: a word of the auxiliary vector, by its key.
#[cfg(target_arch = "aarch64")]
#[allow(unsafe_code, reason = "getauxval(3) is C")]
pub fn identify(key: u32, _: u32) -> [u32; 4] {
    // SAFETY: takes a number, and reads what never changes.
    let word: u64 = unsafe { libc::getauxval(key.into()) };
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
        0,
        0,
    ]
}

/// What the processor says of itself: nothing that has a say in the layout of its registers.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn identify(_: u32, _: u32) -> [u32; 4] {
    [0; 4]
}

/// libc 0.2.190 and 0.2.191 have the numbers of other machines here, and nothing else would tell.
#[cfg(target_arch = "mips64")]
const _: () = {
    assert!(libc::SIGCHLD == 18 && libc::SIGUSR1 == 16 && libc::SIGSTOP == 23);
    assert!(libc::SIG_BLOCK == 1 && libc::SIG_SETMASK == 3 && libc::SA_SIGINFO == 8);
    assert!(libc::SOCK_STREAM == 2 && libc::SOCK_DGRAM == 1 && libc::SOCK_NONBLOCK == 0x80);
    assert!(libc::SOL_SOCKET == 0xffff && libc::SO_TYPE == 0x1008);
    assert!(libc::O_CREAT == 0x100 && libc::O_NONBLOCK == 0x80 && libc::MAP_ANONYMOUS == 0x800);
    assert!(libc::RLIMIT_NOFILE == 5 && libc::RLIMIT_MEMLOCK == 9 && libc::F_SETOWN == 24);
    assert!(libc::EDQUOT == 1133 && libc::ENOSYS == 89 && libc::ELOOP == 90);
};
