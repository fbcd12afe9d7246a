//! The interpreter of records as bytes, and the registers it is entered with.

use criu_arch::{Entry, HealContext, Job, Next, Regs, Stub};

use crate::fpu::{NT_ARM_VFP, VFP};
use crate::regs::{ArmRegs, NR, PC, THUMB};

/// Assembled from `stub.S`; `cargo xtask stub` checks that it is.
#[rustfmt::skip]
const CODE: &[u8] = &[
    0x00, 0x70, 0x98, 0xe5, 0x01, 0x00, 0x77, 0xe3, 0x16, 0x00, 0x00, 0x0a, 0x0c, 0x60, 0x98, 0xe5,
    0x00, 0x00, 0x96, 0xe5, 0x10, 0x60, 0x98, 0xe5, 0x00, 0x10, 0x96, 0xe5, 0x14, 0x60, 0x98, 0xe5,
    0x00, 0x20, 0x96, 0xe5, 0x18, 0x60, 0x98, 0xe5, 0x00, 0x30, 0x96, 0xe5, 0x1c, 0x60, 0x98, 0xe5,
    0x00, 0x40, 0x96, 0xe5, 0x20, 0x60, 0x98, 0xe5, 0x00, 0x50, 0x96, 0xe5, 0x00, 0x00, 0x00, 0xef,
    0x04, 0x00, 0x88, 0xe5, 0x01, 0x0a, 0x70, 0xe3, 0x02, 0x00, 0x00, 0x9a, 0x08, 0x60, 0x98, 0xe5,
    0x01, 0x00, 0x16, 0xe3, 0x03, 0x00, 0x00, 0x0a, 0x24, 0x80, 0x88, 0xe2, 0xe7, 0xff, 0xff, 0xea,
    0x00, 0x00, 0x00, 0xef, 0x00, 0x80, 0xa0, 0xe1, 0x43, 0x7f, 0xa0, 0xe3, 0x09, 0x00, 0xa0, 0xe1,
    0x0a, 0x10, 0xa0, 0xe1, 0x0b, 0x20, 0xa0, 0xe1, 0x00, 0x00, 0x00, 0xef, 0x00, 0x00, 0x5b, 0xe3,
    0x03, 0x00, 0x00, 0x0a, 0x00, 0xb0, 0xa0, 0xe3, 0x00, 0x80, 0x9c, 0xe5, 0x00, 0x00, 0x58, 0xe3,
    0xda, 0xff, 0xff, 0x1a, 0x04, 0x00, 0x9c, 0xe5, 0x08, 0x10, 0x9c, 0xe5, 0x00, 0x00, 0x51, 0xe3,
    0x01, 0x00, 0x00, 0x0a, 0x5b, 0x70, 0xa0, 0xe3, 0x00, 0x00, 0x00, 0xef, 0x10, 0xd0, 0x8c, 0xe2,
    0x77, 0x70, 0xa0, 0xe3, 0x00, 0x00, 0x00, 0xef,
];

pub(crate) const STUB: Stub = Stub {
    code: CODE,
    batch: 0,
    once: 0x60,
    stopped: 0x7c,
};

/// Where the result of a single call is.
pub(crate) const ONCE_RESULT: usize = 8;

/// Undo records, unmap address and length, padding.
const HEAD: usize = 16;
/// `struct ucontext`: flags, link, stack, `struct sigcontext`, mask and its spare room, register space.
const REGS: usize = HEAD + 20 + 12;
const MASK: usize = HEAD + 20 + 84;
const VFP_FRAME: usize = HEAD + 232;
const VFP_MAGIC: u32 = 0x5646_5001;
const VFP_FRAME_SIZE: usize = 288;

/// What `sigreturn` reads, behind the words that the stub reads.
pub(crate) const HEAL_SIZE: usize = VFP_FRAME + VFP_FRAME_SIZE + 8;

/// IT state, Jazelle and Thumb, byte order: of the program's code, not of ours.
const EXECUTION_STATE: u32 = 0x0600_fc00 | 1 << 24 | 1 << 9 | THUMB;

pub(crate) fn enter(regs: &mut ArmRegs, code: u64, entry: &Entry) {
    let word = |word: u64| u32::try_from(word).unwrap_or(u32::MAX);
    match entry.job {
        Job::Batch(records) => {
            regs.r[8] = word(records);
            regs.r[PC] = word(code + STUB.batch as u64);
        }
        Job::Once { nr, args } => {
            regs.r[NR] = word(nr);
            for (slot, arg) in regs.r.iter_mut().zip(args) {
                *slot = word(arg);
            }
            regs.r[PC] = word(code + STUB.once as u64);
        }
    }
    (regs.r[9], regs.r[10]) = entry.thread;
    regs.r[11] = entry.signal;
    regs.r[12] = word(entry.heal);
    regs.cpsr &= !EXECUTION_STATE;
}

/// The frame of a signal handler that is about to return. The kernel's restart block does not outlive
/// `sigreturn`: a call that needs it is issued anew.
pub(crate) fn heal(context: &HealContext<'_, ArmRegs>) -> Vec<u8> {
    let mut bytes = vec![0; HEAL_SIZE];
    let mut put = |at: usize, from: &[u8]| bytes[at..at + from.len()].copy_from_slice(from);
    let words = [context.undo, context.unmap.0, context.unmap.1];
    for (index, word) in words.iter().enumerate() {
        put(4 * index, &word.to_le_bytes()[..4]);
    }
    // r0 to r15 and cpsr, as in the regset.
    let regs = context.regs.reborn(Next::Resume).to_bytes();
    put(REGS, &regs[..68]);
    put(MASK, &context.mask[..context.mask.len().min(8)]);
    put(VFP_FRAME, &VFP_MAGIC.to_le_bytes());
    put(VFP_FRAME + 4, &288_u32.to_le_bytes());
    let vfp = context.kept.iter().find(|(note, _)| *note == NT_ARM_VFP);
    if let Some((_, vfp)) = vfp.filter(|(_, vfp)| vfp.len() == VFP) {
        put(VFP_FRAME + 8, vfp);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_is_a_frame_of_sigreturn() {
        let mut regs = ArmRegs {
            cpsr: 0x30,
            ..ArmRegs::default()
        };
        regs.r[PC] = 0x1234;
        let bytes = heal(&HealContext {
            regs: &regs,
            kept: &[(NT_ARM_VFP, vec![7; VFP])],
            mask: &[1, 2],
            undo: 5,
            unmap: (6, 7),
        });
        assert_eq!((bytes.len(), HEAL_SIZE % 8), (HEAL_SIZE, 0));
        assert_eq!((bytes[0], bytes[4], bytes[8]), (5, 6, 7));
        // struct sigcontext: three words, r0 to r15, cpsr.
        assert_eq!(bytes[HEAD + 20 + 4 * 18..][..2], [0x34, 0x12], "pc");
        assert_eq!(bytes[HEAD + 20 + 4 * 19], 0x30, "cpsr");
        assert_eq!(bytes[HEAD + 104..][..2], [1, 2], "uc_sigmask");
        assert_eq!(bytes[HEAD + 232..][..4], VFP_MAGIC.to_le_bytes());
        assert_eq!(bytes[HEAD + 232 + 8 + 259], 7, "fpscr");
    }

    #[test]
    fn thumb_code_enters_the_stub_as_arm_code() {
        let mut regs = ArmRegs {
            cpsr: 0x6000_0430 | 0x0600_fc00,
            ..ArmRegs::default()
        };
        let job = Job::Batch(0x4000);
        let (thread, signal, heal) = ((1, 2), 23, 0x5000);
        enter(
            &mut regs,
            0x1000,
            &Entry {
                job,
                thread,
                signal,
                heal,
            },
        );
        assert_eq!((regs.cpsr, regs.r[PC]), (0x6000_0010, 0x1000));
    }

    #[test]
    fn offsets_point_at_the_instructions_they_name() {
        let svc = 0xef00_0000_u32.to_le_bytes();
        assert_eq!(CODE[STUB.once..STUB.once + 4], svc);
        assert_eq!(CODE[STUB.stopped - 4..STUB.stopped], svc);
        assert_eq!(CODE[CODE.len() - 4..], svc, "sigreturn last");
    }
}
