//! The interpreter of records as bytes, and the registers it is entered with.

use criu_arch::{Entry, HealContext, Job, Regs, Stub};

use crate::fpu::{FpRegs, NT_MIPS_DSP, NT_PRFPREG};
use crate::regs::Mips64Regs;

/// Assembled from `stub.S`; `cargo xtask stub` checks that it is.
#[rustfmt::skip]
const CODE: &[u8] = &[
    0x00, 0x00, 0x02, 0xde, 0xff, 0xff, 0x0c, 0x64, 0x19, 0x00, 0x4c, 0x10, 0x18, 0x00, 0x0c, 0xde,
    0x00, 0x00, 0x84, 0xdd, 0x20, 0x00, 0x0c, 0xde, 0x00, 0x00, 0x85, 0xdd, 0x28, 0x00, 0x0c, 0xde,
    0x00, 0x00, 0x86, 0xdd, 0x30, 0x00, 0x0c, 0xde, 0x00, 0x00, 0x87, 0xdd, 0x38, 0x00, 0x0c, 0xde,
    0x00, 0x00, 0x88, 0xdd, 0x40, 0x00, 0x0c, 0xde, 0x00, 0x00, 0x89, 0xdd, 0x0c, 0x00, 0x00, 0x00,
    0x10, 0x00, 0x0c, 0xde, 0x03, 0x00, 0xe0, 0x10, 0x01, 0x00, 0x8c, 0x31, 0x2f, 0x10, 0x02, 0x00,
    0x07, 0x00, 0x80, 0x11, 0x08, 0x00, 0x02, 0xfe, 0xe9, 0xff, 0x00, 0x10, 0x48, 0x00, 0x10, 0x66,
    0x0c, 0x00, 0x00, 0x00, 0x02, 0x00, 0xe0, 0x10, 0x25, 0xa8, 0x40, 0x00, 0x2f, 0xa8, 0x02, 0x00,
    0x69, 0x14, 0x02, 0x24, 0x25, 0x20, 0x20, 0x02, 0x25, 0x28, 0x40, 0x02, 0x25, 0x30, 0x60, 0x02,
    0x0c, 0x00, 0x00, 0x00, 0x04, 0x00, 0x60, 0x12, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x90, 0xde,
    0xdb, 0xff, 0x00, 0x16, 0x25, 0x98, 0x00, 0x00, 0x10, 0x00, 0x85, 0xde, 0x03, 0x00, 0xa0, 0x10,
    0x08, 0x00, 0x84, 0xde, 0x93, 0x13, 0x02, 0x24, 0x0c, 0x00, 0x00, 0x00, 0x18, 0x00, 0x8c, 0xde,
    0x03, 0x00, 0x80, 0x15, 0x5b, 0x14, 0x02, 0x24, 0x88, 0xff, 0x9d, 0x66, 0x0c, 0x00, 0x00, 0x00,
    0x96, 0x13, 0x02, 0x24, 0x03, 0x00, 0x04, 0x24, 0xa0, 0x02, 0x85, 0x66, 0x25, 0x30, 0x00, 0x00,
    0x10, 0x00, 0x07, 0x24, 0x0c, 0x00, 0x00, 0x00, 0x48, 0x02, 0x81, 0xde, 0x68, 0x02, 0x82, 0xde,
    0x11, 0x00, 0x20, 0x00, 0x13, 0x00, 0x40, 0x00, 0x50, 0x00, 0x81, 0xde, 0x58, 0x00, 0x82, 0xde,
    0x60, 0x00, 0x83, 0xde, 0x68, 0x00, 0x84, 0xde, 0x70, 0x00, 0x85, 0xde, 0x78, 0x00, 0x86, 0xde,
    0x80, 0x00, 0x87, 0xde, 0x88, 0x00, 0x88, 0xde, 0x90, 0x00, 0x89, 0xde, 0x98, 0x00, 0x8a, 0xde,
    0xa0, 0x00, 0x8b, 0xde, 0xa8, 0x00, 0x8c, 0xde, 0xb0, 0x00, 0x8d, 0xde, 0xb8, 0x00, 0x8e, 0xde,
    0xc0, 0x00, 0x8f, 0xde, 0xc8, 0x00, 0x90, 0xde, 0xd0, 0x00, 0x91, 0xde, 0xd8, 0x00, 0x92, 0xde,
    0xe0, 0x00, 0x93, 0xde, 0xf0, 0x00, 0x95, 0xde, 0xf8, 0x00, 0x96, 0xde, 0x00, 0x01, 0x97, 0xde,
    0x08, 0x01, 0x98, 0xde, 0x88, 0x02, 0x99, 0xde, 0x28, 0x01, 0x9c, 0xde, 0x30, 0x01, 0x9d, 0xde,
    0x38, 0x01, 0x9e, 0xde, 0x40, 0x01, 0x9f, 0xde, 0x08, 0x00, 0x20, 0x03, 0xe8, 0x00, 0x94, 0xde,
];

pub(crate) const STUB: Stub = Stub {
    code: CODE,
    batch: 0,
    once: 0x60,
    stopped: 0x84,
};

const V0: usize = 2;
const A0: usize = 4;
const S0: usize = 16;
const S1: usize = 17;
const S2: usize = 18;
const S3: usize = 19;
const S4: usize = 20;
/// Where the result of a single call is.
pub(crate) const ONCE_RESULT: usize = 21;

/// `struct rt_sigframe` of n64 (`arch/mips/kernel/signal.c`). What it holds before the stack is not read:
/// there lie undo records, unmap address and length, and whether to go back without it.
const FRAME: usize = 120;
const STACK_FLAGS: usize = 184 - FRAME;
const REGS: usize = 192 - FRAME;
const FPREGS: usize = REGS + 32 * 8;
const HI: usize = FPREGS + 32 * 8;
const LO: usize = HI + 4 * 8;
const PC: usize = LO + 4 * 8;
const FCSR: usize = PC + 8;
const USED_MATH: usize = FCSR + 4;
const DSP: usize = USED_MATH + 4;
const MASK: usize = DSP + 8;

/// Healing context: the words above and the frame.
pub(crate) const HEAL_SIZE: usize = MASK + 16;

/// Flags that `sigaltstack` refuses, so that the stack stays as it is.
const KEEP_STACK: u32 = 3;
const USED_FP: u32 = 1;

pub(crate) fn enter(regs: &mut Mips64Regs, code: u64, entry: &Entry) {
    match entry.job {
        Job::Batch(records) => {
            regs.r[S0] = records;
            regs.epc = code + STUB.batch as u64;
        }
        Job::Once { nr, args } => {
            regs.r[V0] = nr;
            regs.r[A0..A0 + 6].copy_from_slice(&args);
            regs.epc = code + STUB.once as u64;
        }
    }
    regs.r[S1] = entry.thread.0.into();
    regs.r[S2] = entry.thread.1.into();
    regs.r[S3] = entry.signal.into();
    regs.r[S4] = entry.heal;
    // Not in a call: nothing to restart.
    regs.r[0] = 0;
}

pub(crate) fn heal(context: &HealContext<'_, Mips64Regs>) -> Vec<u8> {
    let regs = context.regs.resumed();
    let mut bytes = vec![0; HEAL_SIZE];
    let mut put = |at: usize, from: &[u8]| bytes[at..at + from.len()].copy_from_slice(from);
    let mut put_word = |at: usize, word: u64| put(at, &word.to_le_bytes());
    put_word(0, context.undo);
    put_word(8, context.unmap.0);
    put_word(16, context.unmap.1);
    put_word(24, context.regs.is_in_block().into());
    for (index, word) in regs.r.iter().enumerate() {
        put_word(REGS + 8 * index, *word);
    }
    put_word(HI, regs.hi);
    put_word(LO, regs.lo);
    put_word(PC, regs.epc);
    put(STACK_FLAGS, &KEEP_STACK.to_le_bytes());
    put(MASK, &context.mask[..context.mask.len().min(16)]);
    for (note, content) in context.kept {
        match *note {
            NT_PRFPREG => {
                if let Some(fp) = FpRegs::from_bytes(content) {
                    put(FPREGS, &content[..32 * 8]);
                    put(FCSR, &fp.fcsr.to_le_bytes());
                    put(USED_MATH, &USED_FP.to_le_bytes());
                }
            }
            // hi1, lo1, hi2, lo2, hi3, lo3, the control register.
            NT_MIPS_DSP if content.len() == 7 * 8 => {
                for (index, word) in content[..6 * 8].chunks_exact(8).enumerate() {
                    let half = if index % 2 == 0 { HI } else { LO };
                    put(half + 8 * (1 + index / 2), word);
                }
                put(DSP, &content[6 * 8..6 * 8 + 4]);
            }
            _ => {}
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    #[test]
    fn the_context_is_a_signal_frame() {
        let mut regs = Mips64Regs {
            epc: 0x1000,
            ..Mips64Regs::default()
        };
        regs.r[31] = 31;
        let fp = FpRegs {
            f: [7; 32],
            fcsr: 0x0100_0001,
            fir: 0,
        };
        let dsp: Vec<u8> = (11..18u64).flat_map(u64::to_le_bytes).collect();
        let notes = [(NT_PRFPREG, fp.to_bytes()), (NT_MIPS_DSP, dsp)];
        let bytes = heal(&HealContext {
            regs: &regs,
            kept: &notes,
            mask: &[1, 2],
            undo: 0,
            unmap: (0, 0),
        });
        assert_eq!(bytes.len(), HEAL_SIZE);
        // Offsets from `struct rt_sigframe`: 152 to the context, 40 to the registers in there.
        let frame = |at: usize| word(&bytes, at - FRAME);
        assert_eq!((frame(192 + 31 * 8), frame(768)), (31, 0x1000));
        assert_eq!((frame(448), frame(776)), (7, 1 << 32 | 0x0100_0001));
        assert_eq!((frame(712), frame(744), frame(784)), (11, 12, 17));
        assert_eq!((frame(792), bytes.len() + FRAME), (0x0201, 808));
    }

    #[test]
    fn only_a_restart_block_goes_around_the_frame() {
        let mut regs = Mips64Regs::default();
        let again = |regs: &Mips64Regs| {
            let context = HealContext {
                regs,
                kept: &[],
                mask: &[],
                undo: 0,
                unmap: (0, 0),
            };
            word(&heal(&context), 24)
        };
        assert_eq!(again(&regs), 0);
        (regs.r[0], regs.r[2], regs.r[7], regs.epc) = (5034, 516, 1, 0x1004);
        assert_eq!(again(&regs), 1);
    }

    #[test]
    fn offsets_point_at_the_instructions_they_name() {
        const SYSCALL: [u8; 4] = [0x0c, 0, 0, 0];
        assert_eq!(CODE[STUB.once..STUB.once + 4], SYSCALL);
        assert_eq!(CODE[STUB.stopped - 4..STUB.stopped], SYSCALL);
    }
}
