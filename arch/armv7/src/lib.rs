//! 32-bit ARM with the EABI: ARM and Thumb code, VFP.
//!
//! Knows no host: bytes in, bytes out.
#![forbid(unsafe_code)]

#[cfg(feature = "image")]
mod core_image;
mod fpu;
mod regs;
mod restart;
mod stub;
mod sysno;
mod tls;
mod vdso;

pub use regs::ArmRegs;

use criu_arch::{
    Arch, Calls, CompatAbi, Entry, HealContext, Lack, RegsTransfer, SigactionLayout, SiginfoLayout,
    StackLayout, Stub, ThreadAreas,
};

/// The machine.
#[derive(Clone, Copy, Debug)]
pub struct Armv7;

impl Arch for Armv7 {
    type Regs = ArmRegs;
    const NAME: &'static str = "armv7l";
    const WORD: usize = 4;
    const TRANSFER: RegsTransfer = RegsTransfer::Getregset;
    const FP_NOTE: u32 = fpu::NT_ARM_VFP;
    const MORE_NOTES: &'static [u32] = &[];
    const EXTRA_NOTES: &'static [u32] = &[];
    const FIXED_NOTE: Option<u32> = None;
    const BORN_NOTES: &'static [u32] = &[];
    const KEPT_NOTES: &'static [u32] = &[fpu::NT_ARM_VFP];
    const TLS: ThreadAreas = tls::AREA;
    const CALLS: Calls = sysno::CALLS;
    const SIGINFO: SiginfoLayout = SiginfoLayout {
        code: 8,
        sender: 12,
    };
    const SIGACTION: SigactionLayout = SigactionLayout {
        size: 20,
        handler: 0,
        flags: (4, 4),
        restorer: Some(8),
        mask: 12,
    };
    const COMPAT: Option<CompatAbi> = None;
    const STACK: StackLayout = StackLayout {
        bytes: 12,
        sp: 0,
        flags: 4,
        size: 8,
    };
    type FpLayout = ();
    const SIGSET: usize = 8;
    const STUB: Stub = stub::STUB;
    const HEAL_SIZE: usize = stub::HEAL_SIZE;
    const PASSING: Option<fn(&[u8; 8]) -> bool> = None;
    const COMPAT_VDSO: Option<(usize, u64)> = None;

    fn fp_layout(_: &dyn Fn(u32, u32) -> [u32; 4]) {}

    fn may_time_out(nr: u64, args: &[u64; 6]) -> bool {
        restart::TABLE.timeout(nr, args).is_some()
    }

    fn enter(regs: &mut ArmRegs, code: u64, entry: &Entry) {
        stub::enter(regs, code, entry);
    }

    fn once_result(regs: &ArmRegs) -> i64 {
        regs.r[stub::ONCE_RESULT].cast_signed().into()
    }

    fn is_extra(_: u32, _: &[u8]) -> bool {
        false
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

    fn heal(context: &HealContext<'_, ArmRegs>) -> Vec<u8> {
        stub::heal(context)
    }

    /// The lowest bit says that it is Thumb code.
    fn vdso_jump(from: u64, target: u64) -> (u64, Vec<u8>) {
        (from & !1, vdso::jump(from, target))
    }
}
