//! x86_64, native and compat (32-bit code under a 64-bit kernel).
//!
//! Knows no host: bytes in, bytes out.
#![forbid(unsafe_code)]

mod regs;
mod stub;

pub use regs::X86Regs;

use criu_arch::{Arch, Entry, HealContext, RegsTransfer, Stub};

/// The machine.
#[derive(Clone, Copy, Debug)]
pub struct X86_64;

impl Arch for X86_64 {
    type Regs = X86Regs;
    const NAME: &'static str = "x86_64";
    const WORD: usize = 8;
    const TRANSFER: RegsTransfer = RegsTransfer::Getregs;
    const FP_NOTE: u32 = 0x202; // NT_X86_XSTATE
    const SIGSET: usize = 8;
    const STUB: Stub = stub::STUB;
    const HEAL_SIZE: usize = stub::HEAL_SIZE;

    fn enter(regs: &mut X86Regs, code: u64, entry: &Entry) {
        stub::enter(regs, code, entry);
    }

    fn once_result(regs: &X86Regs) -> i64 {
        regs.bp.cast_signed()
    }

    fn heal(context: &HealContext<'_, X86Regs>) -> Vec<u8> {
        stub::heal(context)
    }
}
