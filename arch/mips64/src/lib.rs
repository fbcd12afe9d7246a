//! 64-bit MIPS, little-endian: n64 code.
//!
//! Knows no host: bytes in, bytes out. o32 and n32 code under the same kernel is not held.
#![forbid(unsafe_code)]

#[cfg(feature = "image")]
mod core_image;
mod fpu;
mod regs;
mod restart;
mod stub;
mod tls;
mod vdso;

pub use fpu::FpRegs;
pub use regs::Mips64Regs;

use criu_arch::{
    Arch, Calls, CompatAbi, Entry, HealContext, Lack, RegsTransfer, SigactionLayout, SiginfoLayout,
    StackLayout, Stub, ThreadAreas, Wide,
};

/// The machine.
#[derive(Clone, Copy, Debug)]
pub struct Mips64;

impl Arch for Mips64 {
    type Regs = Mips64Regs;
    const NAME: &'static str = "mips64";
    const WORD: usize = 8;
    // `NT_PRSTATUS` cannot write r0, which says whether a call is to be issued again.
    const TRANSFER: RegsTransfer = RegsTransfer::Getregs;
    const FP_NOTE: u32 = fpu::NT_PRFPREG;
    const MORE_NOTES: &'static [u32] = &[fpu::NT_MIPS_MSA];
    const EXTRA_NOTES: &'static [u32] = fpu::EXTRA;
    const FIXED_NOTE: Option<u32> = None;
    const BORN_NOTES: &'static [u32] = &[];
    /// `rt_sigreturn` clears what its frame does not have.
    const KEPT_NOTES: &'static [u32] = &[fpu::NT_PRFPREG, fpu::NT_MIPS_DSP];
    const TLS: ThreadAreas = tls::AREAS;
    const CALLS: Calls = Calls {
        wide: Wide::Word,
        mmap: (5009, 1),
        set_lock: 6,
        ipc_64: 0x100,
        shmlba: Some(0x4_0000),
        first_user_page: 1,
        rewound: false,
        llseek: None,
        wider: &[],
    };
    const SIGINFO: SiginfoLayout = SiginfoLayout {
        code: 4,
        sender: 16,
    };
    const SIGACTION: SigactionLayout = SigactionLayout {
        size: 32,
        handler: 8,
        flags: (0, 4),
        restorer: None,
        mask: 16,
    };
    const COMPAT: Option<CompatAbi> = None;
    const STACK: StackLayout = StackLayout {
        bytes: 24,
        sp: 0,
        flags: 16,
        size: 8,
    };
    type FpLayout = ();
    const SIGSET: usize = 16;
    const STUB: Stub = stub::STUB;
    const HEAL_SIZE: usize = stub::HEAL_SIZE;
    const PASSING: Option<fn(&[u8; 8]) -> bool> = Some(fpu::is_emulated);
    const COMPAT_VDSO: Option<(usize, u64)> = None;

    fn fp_layout(_: &dyn Fn(u32, u32) -> [u32; 4]) {}

    fn may_time_out(nr: u64, args: &[u64; 6]) -> bool {
        restart::TABLE.timeout(nr, args).is_some()
    }

    fn enter(regs: &mut Mips64Regs, code: u64, entry: &Entry) {
        stub::enter(regs, code, entry);
    }

    fn once_result(regs: &Mips64Regs) -> i64 {
        regs.r[stub::ONCE_RESULT].cast_signed()
    }

    fn is_extra(note: u32, bytes: &[u8]) -> bool {
        fpu::is_extra(note, bytes)
    }

    /// Calls keep all of it.
    fn lack(_: u32, _: &[u8], _: Option<&[u8]>, _: &()) -> Option<Lack> {
        None
    }

    fn lack_of_told(_: &[u64], _: &()) -> Option<Lack> {
        None
    }

    fn protections(_: &()) -> u32 {
        0
    }

    fn lost_in_calls(_: &[(u32, Vec<u8>)]) -> Option<&(u32, Vec<u8>)> {
        None
    }

    fn heal(context: &HealContext<'_, Mips64Regs>) -> Vec<u8> {
        stub::heal(context)
    }

    fn vdso_jump(from: u64, target: u64) -> (u64, Vec<u8>) {
        (from, vdso::jump(target))
    }
}
