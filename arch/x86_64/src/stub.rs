//! The interpreter of records as bytes, and the registers it is entered with.

use criu_arch::{Entry, HealContext, Job, Stub};

use crate::regs::{USER_CS, USER_DS, X86Regs};

/// Assembled from `stub.S`; `cargo xtask stub` checks that it is.
#[rustfmt::skip]
const CODE: &[u8] = &[
    0x48, 0x8b, 0x03, 0x48, 0x83, 0xf8, 0xff, 0x74, 0x49, 0x48, 0x8b, 0x4b, 0x18, 0x48, 0x8b, 0x39,
    0x48, 0x8b, 0x4b, 0x20, 0x48, 0x8b, 0x31, 0x48, 0x8b, 0x4b, 0x28, 0x48, 0x8b, 0x11, 0x48, 0x8b,
    0x4b, 0x30, 0x4c, 0x8b, 0x11, 0x48, 0x8b, 0x4b, 0x38, 0x4c, 0x8b, 0x01, 0x48, 0x8b, 0x4b, 0x40,
    0x4c, 0x8b, 0x09, 0x0f, 0x05, 0x48, 0x89, 0x43, 0x08, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, 0x72,
    0x06, 0xf6, 0x43, 0x10, 0x01, 0x74, 0x0b, 0x48, 0x83, 0xc3, 0x48, 0xeb, 0xb3, 0x0f, 0x05, 0x48,
    0x89, 0xc5, 0xb8, 0xea, 0x00, 0x00, 0x00, 0x4c, 0x89, 0xe7, 0x4c, 0x89, 0xee, 0x4c, 0x89, 0xf2,
    0x0f, 0x05, 0x45, 0x85, 0xf6, 0x74, 0x0b, 0x45, 0x31, 0xf6, 0x49, 0x8b, 0x1f, 0x48, 0x85, 0xdb,
    0x75, 0x8e, 0x49, 0x8b, 0x7f, 0x08, 0x49, 0x8b, 0x77, 0x10, 0x48, 0x85, 0xf6, 0x74, 0x07, 0xb8,
    0x0b, 0x00, 0x00, 0x00, 0x0f, 0x05, 0xb8, 0x0e, 0x00, 0x00, 0x00, 0xbf, 0x02, 0x00, 0x00, 0x00,
    0x49, 0x8d, 0x77, 0x18, 0x31, 0xd2, 0x41, 0xba, 0x08, 0x00, 0x00, 0x00, 0x0f, 0x05, 0x49, 0x8d,
    0x67, 0x20, 0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0x41, 0x5b, 0x41, 0x5a,
    0x41, 0x59, 0x41, 0x58, 0x58, 0x59, 0x5a, 0x5e, 0x5f, 0x48, 0xcf,
];

pub(crate) const STUB: Stub = Stub {
    code: CODE,
    batch: 0,
    once: 0x4d,
    stopped: 0x62,
};

/// Healing context: undo records, unmap address and length, mask, fifteen registers in the order the
/// stub pops them, and the frame of `iretq`, which also goes back to 32-bit code.
pub(crate) const HEAL_SIZE: usize = 8 * (4 + 15 + 5);

pub(crate) fn enter(regs: &mut X86Regs, code: u64, entry: &Entry) {
    match entry.job {
        Job::Batch(records) => {
            regs.bx = records;
            regs.ip = code + STUB.batch as u64;
        }
        Job::Once { nr, args } => {
            regs.ax = nr;
            [regs.di, regs.si, regs.dx, regs.r10, regs.r8, regs.r9] = args;
            regs.ip = code + STUB.once as u64;
        }
    }
    regs.r12 = entry.thread.0.into();
    regs.r13 = entry.thread.1.into();
    regs.r14 = entry.signal.into();
    regs.r15 = entry.heal;
    // A 32-bit task runs the 64-bit stub.
    regs.cs = USER_CS;
    regs.ss = USER_DS;
    // Not in a call: nothing to restart. Direction and trap flags are the program's, not ours.
    regs.orig_ax = u64::MAX;
    regs.flags &= !0x500;
}

pub(crate) fn heal(context: &HealContext<'_, X86Regs>) -> Vec<u8> {
    let r = context.regs;
    let mut mask = [0; 8];
    let length = context.mask.len().min(8);
    mask[..length].copy_from_slice(&context.mask[..length]);
    let words = [
        context.undo,
        context.unmap.0,
        context.unmap.1,
        u64::from_le_bytes(mask),
        r.r15,
        r.r14,
        r.r13,
        r.r12,
        r.bp,
        r.bx,
        r.r11,
        r.r10,
        r.r9,
        r.r8,
        r.ax,
        r.cx,
        r.dx,
        r.si,
        r.di,
        r.ip,
        r.cs,
        r.flags,
        r.sp,
        r.ss,
    ];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_has_the_size_it_claims() {
        let regs = X86Regs::default();
        let bytes = heal(&HealContext {
            regs: &regs,
            mask: &[1, 2],
            undo: 0,
            unmap: (0, 0),
        });
        assert_eq!(bytes.len(), HEAL_SIZE);
        assert_eq!(&bytes[24..28], [1, 2, 0, 0]);
    }

    #[test]
    fn offsets_point_at_the_instructions_they_name() {
        assert_eq!(&CODE[STUB.once..STUB.once + 2], [0x0f, 0x05]);
        assert_eq!(&CODE[STUB.stopped - 2..STUB.stopped], [0x0f, 0x05]);
        assert_eq!(&CODE[CODE.len() - 2..], [0x48, 0xcf], "iretq last");
    }
}
