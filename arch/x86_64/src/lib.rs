//! x86_64, native and compat (32-bit code under a 64-bit kernel).
//!
//! Knows no host: bytes in, bytes out.
#![forbid(unsafe_code)]

#[cfg(feature = "image")]
mod core_image;
#[cfg(feature = "image")]
mod cpu;
#[cfg(feature = "image")]
mod fp_image;
mod fpu;
mod regs;
mod restart;
mod stub;
mod tls;
mod vdso;

pub use fpu::{XstateLayout, component_name};
pub use regs::X86Regs;
pub use tls::UserDesc;

use criu_arch::{
    Arch, Calls, CompatAbi, Entry, HealContext, Lack, RegsTransfer, SigactionLayout, SiginfoLayout,
    StackLayout, Stub, ThreadAreas, Wide,
};

/// The registers as FXSAVE writes them: all there is without XSAVE.
const NT_PRFPREG: u32 = 2;

/// The shadow stack pointer (`NT_X86_SHSTK`), since Linux 6.6.
const NT_X86_SHSTK: u32 = 0x204;

/// The machine.
#[derive(Clone, Copy, Debug)]
pub struct X86_64;

impl Arch for X86_64 {
    type Regs = X86Regs;
    const NAME: &'static str = "x86_64";
    const WORD: usize = 8;
    const TRANSFER: RegsTransfer = RegsTransfer::Getregs;
    const FP_NOTE: u32 = 0x202; // NT_X86_XSTATE
    const MORE_NOTES: &'static [u32] = &[NT_X86_SHSTK];
    const EXTRA_NOTES: &'static [u32] = &[];
    const FIXED_NOTE: Option<u32> = None;
    const BORN_NOTES: &'static [u32] = &[];
    const KEPT_NOTES: &'static [u32] = &[];
    const TLS: ThreadAreas = tls::AREAS;
    const CALLS: Calls = Calls {
        wide: Wide::Word,
        mmap: (9, 1),
        set_lock: 6,
        ipc_64: 0,
        shmlba: None,
        first_user_page: 1,
        rewound: false,
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
    const COMPAT: Option<CompatAbi> = Some(CompatAbi {
        rt_sigaction: 174,
        set_robust_list: 311,
        get_robust_list: 312,
        sigaction: SigactionLayout {
            size: 20,
            handler: 0,
            flags: (4, 4),
            restorer: Some(8),
            mask: 12,
        },
    });
    const STACK: StackLayout = StackLayout {
        bytes: 24,
        sp: 0,
        flags: 8,
        size: 16,
    };
    type FpLayout = XstateLayout;
    const SIGSET: usize = 8;
    const STUB: Stub = stub::STUB;
    const HEAL_SIZE: usize = stub::HEAL_SIZE;
    const PASSING: Option<fn(&[u8; 8]) -> bool> = None;
    const COMPAT_VDSO: Option<(usize, u64)> = Some((158, 0x2002)); // arch_prctl(ARCH_MAP_VDSO_32)

    fn fp_note(layout: &XstateLayout) -> u32 {
        if layout.is_extended() {
            Self::FP_NOTE
        } else {
            NT_PRFPREG
        }
    }

    fn fp_layout(identify: &dyn Fn(u32, u32) -> [u32; 4]) -> XstateLayout {
        XstateLayout::from_cpuid(identify)
    }

    fn may_time_out(nr: u64, args: &[u64; 6]) -> bool {
        [false, true]
            .iter()
            .any(|compat| restart::timeout(nr, *compat, args).is_some())
    }

    fn enter(regs: &mut X86Regs, code: u64, entry: &Entry) {
        stub::enter(regs, code, entry);
    }

    fn once_result(regs: &X86Regs) -> i64 {
        regs.bp.cast_signed()
    }

    fn is_extra(_: u32, _: &[u8]) -> bool {
        false
    }

    /// Calls keep all of it.
    fn lack(_: u32, _: &[u8], _: Option<&[u8]>, _: &XstateLayout) -> Option<Lack> {
        None
    }

    fn lack_of_told(_: &[u64], _: &XstateLayout) -> Option<Lack> {
        None
    }

    fn protections(_: &XstateLayout) -> u32 {
        0
    }

    fn lost_in_calls(_: &[(u32, Vec<u8>)]) -> Option<&(u32, Vec<u8>)> {
        None
    }

    fn heal(context: &HealContext<'_, X86Regs>) -> Vec<u8> {
        stub::heal(context)
    }

    fn vdso_jump(from: u64, target: u64) -> (u64, Vec<u8>) {
        (from, vdso::jump(target))
    }
}
