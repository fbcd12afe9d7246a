//! The interpreter of records as bytes, and the registers it is entered with.

use criu_arch::{Entry, HealContext, Job, Next, Regs, Stub};

use crate::fpu::{FPSIMD, NT_PRFPREG};
use crate::regs::Arm64Regs;

/// Assembled from `stub.S`; `cargo xtask stub` checks that it is.
#[rustfmt::skip]
const CODE: &[u8] = &[
    0x68, 0x02, 0x40, 0xf9, 0x1f, 0x05, 0x00, 0xb1, 0xe0, 0x02, 0x00, 0x54, 0x69, 0x0e, 0x40, 0xf9,
    0x20, 0x01, 0x40, 0xf9, 0x69, 0x12, 0x40, 0xf9, 0x21, 0x01, 0x40, 0xf9, 0x69, 0x16, 0x40, 0xf9,
    0x22, 0x01, 0x40, 0xf9, 0x69, 0x1a, 0x40, 0xf9, 0x23, 0x01, 0x40, 0xf9, 0x69, 0x1e, 0x40, 0xf9,
    0x24, 0x01, 0x40, 0xf9, 0x69, 0x22, 0x40, 0xf9, 0x25, 0x01, 0x40, 0xf9, 0x01, 0x00, 0x00, 0xd4,
    0x60, 0x06, 0x00, 0xf9, 0x1f, 0xfc, 0x3f, 0xb1, 0x63, 0x00, 0x00, 0x54, 0x69, 0x0a, 0x40, 0xf9,
    0xa9, 0x00, 0x00, 0x36, 0x73, 0x22, 0x01, 0x91, 0xea, 0xff, 0xff, 0x17, 0x01, 0x00, 0x00, 0xd4,
    0xf8, 0x03, 0x00, 0xaa, 0x68, 0x10, 0x80, 0xd2, 0xe0, 0x03, 0x14, 0xaa, 0xe1, 0x03, 0x15, 0xaa,
    0xe2, 0x03, 0x16, 0xaa, 0x01, 0x00, 0x00, 0xd4, 0x96, 0x00, 0x00, 0xb4, 0x16, 0x00, 0x80, 0xd2,
    0xf3, 0x02, 0x40, 0xf9, 0xf3, 0xfb, 0xff, 0xb5, 0xe0, 0x86, 0x40, 0xa9, 0x61, 0x00, 0x00, 0xb4,
    0xe8, 0x1a, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4, 0xff, 0x82, 0x01, 0xd1, 0x68, 0x11, 0x80, 0xd2,
    0x01, 0x00, 0x00, 0xd4,
];

pub(crate) const STUB: Stub = Stub {
    code: CODE,
    batch: 0,
    once: 0x5c,
    stopped: 0x78,
};

/// Where the result of a single call is.
pub(crate) const ONCE_RESULT: usize = 24;

/// Undo records, unmap address and length, padding.
const HEAD: usize = 32;
/// `struct ucontext`: flags, link, stack, mask and its spare room, then `struct sigcontext`.
const STACK_FLAGS: usize = HEAD + 24;
const MASK: usize = HEAD + 40;
const REGS: usize = HEAD + 176 + 8;
const RECORDS: usize = HEAD + 176 + 288;
/// `struct fpsimd_context`.
const FPSIMD_MAGIC: u32 = 0x4650_8001;
const FPSIMD_CONTEXT: usize = 528;

/// What `rt_sigreturn` reads, behind the words that the stub reads.
pub(crate) const HEAL_SIZE: usize = RECORDS + FPSIMD_CONTEXT + 16;

/// Single step, and the type of the branch that led here: the stub is no landing pad.
const STEP_AND_BRANCH: u64 = 1 << 21 | 0b11 << 10;

pub(crate) fn enter(regs: &mut Arm64Regs, code: u64, entry: &Entry) {
    match entry.job {
        Job::Batch(records) => {
            regs.x[19] = records;
            regs.pc = code + STUB.batch as u64;
        }
        Job::Once { nr, args } => {
            regs.x[8] = nr;
            regs.x[..6].copy_from_slice(&args);
            regs.pc = code + STUB.once as u64;
        }
    }
    regs.x[20] = entry.thread.0.into();
    regs.x[21] = entry.thread.1.into();
    regs.x[22] = entry.signal.into();
    regs.x[23] = entry.heal;
    regs.pstate &= !STEP_AND_BRANCH;
}

/// The frame of a signal handler that is about to return. The alternate stack in it is invalid, so that
/// the kernel leaves the thread's as it is. The kernel's restart block does not outlive `rt_sigreturn`: a
/// call that needs it is issued anew.
///
/// Not in it: the upper parts of SVE registers that were in use outside of a call.
pub(crate) fn heal(context: &HealContext<'_, Arm64Regs>) -> Vec<u8> {
    const INVALID: u32 = 0x7fff;
    let mut bytes = vec![0; HEAL_SIZE];
    let mut put = |at: usize, from: &[u8]| bytes[at..at + from.len()].copy_from_slice(from);
    let words = [context.undo, context.unmap.0, context.unmap.1];
    for (index, word) in words.iter().enumerate() {
        put(8 * index, &word.to_le_bytes());
    }
    put(STACK_FLAGS, &INVALID.to_le_bytes());
    put(MASK, &context.mask[..context.mask.len().min(8)]);
    put(REGS, &context.regs.reborn(Next::Resume).to_bytes());
    put(RECORDS, &FPSIMD_MAGIC.to_le_bytes());
    put(RECORDS + 4, &528_u32.to_le_bytes());
    let fp = context.kept.iter().find(|(note, _)| *note == NT_PRFPREG);
    if let Some((_, fp)) = fp.filter(|(_, fp)| fp.len() == FPSIMD) {
        // The regset has V0 to V31 first, the frame FPSR and FPCR.
        put(RECORDS + 8, &fp[512..520]);
        put(RECORDS + 16, &fp[..512]);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_is_a_frame_of_rt_sigreturn() {
        let regs = Arm64Regs {
            pc: 0x1234,
            ..Arm64Regs::default()
        };
        let mut fp = vec![7; FPSIMD];
        fp[512..520].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        let bytes = heal(&HealContext {
            regs: &regs,
            kept: &[(NT_PRFPREG, fp)],
            mask: &[1, 2],
            undo: 5,
            unmap: (6, 7),
        });
        assert_eq!(bytes.len(), HEAL_SIZE);
        // Offsets of struct rt_sigframe, which begins 128 bytes before the context.
        let frame = |at: usize| at - 128 + HEAD;
        assert_eq!(bytes[frame(168)..frame(170)], [1, 2], "uc_sigmask");
        assert_eq!(bytes[frame(128 + 176 + 264)..][..2], [0x34, 0x12], "pc");
        assert_eq!(bytes[frame(592)..frame(596)], FPSIMD_MAGIC.to_le_bytes());
        assert_eq!(bytes[frame(600)..frame(609)], [1, 2, 3, 4, 5, 6, 7, 8, 7]);
        assert_eq!(bytes[HEAL_SIZE - 16..], [0; 16], "the last record");
    }

    #[test]
    fn offsets_point_at_the_instructions_they_name() {
        let svc = 0xd400_0001_u32.to_le_bytes();
        assert_eq!(CODE[STUB.once..STUB.once + 4], svc);
        assert_eq!(CODE[STUB.stopped - 4..STUB.stopped], svc);
        assert_eq!(CODE[CODE.len() - 4..], svc, "rt_sigreturn last");
    }
}
