//! Jumps from one vdso to another.

/// `ldr pc, target`, as ARM or as Thumb code: a function in Thumb code has an odd address.
pub(crate) fn jump(from: u64, target: u64) -> Vec<u8> {
    const ARM: u32 = 0xe51f_f004; // ldr pc, [pc, #-4]
    const THUMB: u32 = 0xf000_f8df; // ldr.w pc, [pc, #0], its halves in order
    let load = if from & 1 == 0 { ARM } else { THUMB };
    let mut code = load.to_le_bytes().to_vec();
    // A load relative to the program counter counts from a multiple of four.
    if from & 3 == 3 {
        code.extend([0, 0]);
    }
    let target = u32::try_from(target).unwrap_or(0);
    code.extend(target.to_le_bytes());
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_follows_the_code() {
        assert_eq!(
            jump(0x1000, 0xb6ff_1234)[4..],
            0xb6ff_1234_u32.to_le_bytes()
        );
        assert_eq!(jump(0x1001, 2)[..4], [0xdf, 0xf8, 0x00, 0xf0]);
        assert_eq!((jump(0x1001, 2).len(), jump(0x1003, 2).len()), (8, 10));
    }
}
