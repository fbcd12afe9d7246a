//! 64-bit ARM.
//!
//! Knows no host: bytes in, bytes out. 32-bit code under a 64-bit kernel is not held.
#![forbid(unsafe_code)]

#[cfg(feature = "image")]
mod core_image;
mod cpu;
mod fpu;
mod regs;
mod restart;
mod stub;
mod tls;
mod vdso;

pub use cpu::Abilities;
pub use regs::Arm64Regs;

use criu_arch::{
    Arch, Calls, CompatAbi, Entry, HealContext, Lack, RegsTransfer, SigactionLayout, SiginfoLayout,
    StackLayout, Stub, ThreadAreas, Wide,
};

/// `NT_ARM_PAC_MASK`: the bits of signatures in pointers to data and to code.
const NT_PAC_MASK: u32 = 0x406;

/// Keys of pointer authentication (`NT_ARM_PACA_KEYS`, `NT_ARM_PACG_KEYS`, `NT_ARM_PAC_ENABLED_KEYS`).
pub(crate) const NT_PACA_KEYS: u32 = 0x407;
pub(crate) const NT_PACG_KEYS: u32 = 0x408;
pub(crate) const NT_PAC_ENABLED_KEYS: u32 = 0x40a;

/// The machine.
#[derive(Clone, Copy, Debug)]
pub struct Aarch64;

impl Arch for Aarch64 {
    type Regs = Arm64Regs;
    const NAME: &'static str = "aarch64";
    const WORD: usize = 8;
    const TRANSFER: RegsTransfer = RegsTransfer::Getregset;
    const FP_NOTE: u32 = fpu::NT_PRFPREG;
    const MORE_NOTES: &'static [u32] = &[
        tls::NT_ARM_TLS,
        NT_PACA_KEYS,
        NT_PACG_KEYS,
        NT_PAC_ENABLED_KEYS,
    ];
    const EXTRA_NOTES: &'static [u32] = fpu::EXTRA;
    // Which bits of a pointer are its signature: those that user addresses leave, of which kernels have 48 or 52.
    const FIXED_NOTE: Option<u32> = Some(NT_PAC_MASK);
    const BORN_NOTES: &'static [u32] = cpu::BORN;
    const KEPT_NOTES: &'static [u32] = &[fpu::NT_PRFPREG, fpu::NT_ARM_SVE];
    const TLS: ThreadAreas = ThreadAreas::NONE;
    const CALLS: Calls = Calls {
        wide: Wide::Word,
        mmap: (222, 1),
        set_lock: 6,
        ipc_64: 0,
        shmlba: None,
        first_user_page: 1,
        rewound: true,
        llseek: None,
        wider: &[],
    };
    const SIGINFO: SiginfoLayout = SiginfoLayout {
        code: 8,
        sender: 16,
    };
    const SIGACTION: SigactionLayout = SigactionLayout {
        size: 32,
        handler: 0,
        flags: (8, 8),
        restorer: Some(16),
        mask: 24,
    };
    const COMPAT: Option<CompatAbi> = None;
    const STACK: StackLayout = StackLayout {
        bytes: 24,
        sp: 0,
        flags: 8,
        size: 16,
    };
    type FpLayout = Abilities;
    const SIGSET: usize = 8;
    const STUB: Stub = stub::STUB;
    const HEAL_SIZE: usize = stub::HEAL_SIZE;
    const PASSING: Option<fn(&[u8; 8]) -> bool> = None;
    const COMPAT_VDSO: Option<(usize, u64)> = None;

    fn fp_layout(identify: &dyn Fn(u32, u32) -> [u32; 4]) -> Abilities {
        Abilities::identify(identify)
    }

    fn may_time_out(nr: u64, args: &[u64; 6]) -> bool {
        restart::TABLE.timeout(nr, args).is_some()
    }

    fn enter(regs: &mut Arm64Regs, code: u64, entry: &Entry) {
        stub::enter(regs, code, entry);
    }

    fn once_result(regs: &Arm64Regs) -> i64 {
        regs.x[stub::ONCE_RESULT].cast_signed()
    }

    fn is_extra(note: u32, bytes: &[u8]) -> bool {
        fpu::is_extra(note, bytes)
    }

    fn lack(note: u32, bytes: &[u8], here: Option<&[u8]>, abilities: &Abilities) -> Option<Lack> {
        cpu::lack(note, bytes, here, *abilities)
    }

    fn lack_of_told(auxv: &[u64], abilities: &Abilities) -> Option<Lack> {
        abilities.lack_of_told(auxv)
    }

    fn protections(abilities: &Abilities) -> u32 {
        abilities.protections()
    }

    fn lost_in_calls(kept: &[(u32, Vec<u8>)]) -> Option<&(u32, Vec<u8>)> {
        fpu::lost_in_calls(kept)
    }

    fn heal(context: &HealContext<'_, Arm64Regs>) -> Vec<u8> {
        stub::heal(context)
    }

    fn vdso_jump(from: u64, target: u64) -> (u64, Vec<u8>) {
        (from, vdso::jump(target))
    }
}
