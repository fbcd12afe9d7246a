//! Jumps from one vdso to another.

const ORI: u32 = 0x3400_0000;
const DSLL_16: u32 = 0x0000_0438;
const JR_T9: u32 = 0x0320_0008;
const NOP: u32 = 0;
const T9: u32 = 25;

/// `t9 = target; jr t9`: the functions of the vdso are called by the C convention, in which t9 is the
/// address of the function and nothing else changes. User addresses have 48 bits at most.
pub(crate) fn jump(target: u64) -> Vec<u8> {
    let [a, b, c, d, e, f, ..] = target.to_le_bytes();
    let half = |low, high| u32::from(u16::from_le_bytes([low, high]));
    let shift = DSLL_16 | T9 << 16 | T9 << 11;
    let words = [
        ORI | T9 << 16 | half(e, f),
        shift,
        ORI | T9 << 21 | T9 << 16 | half(c, d),
        shift,
        ORI | T9 << 21 | T9 << 16 | half(a, b),
        JR_T9,
        NOP,
    ];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_what_an_assembler_makes_of_it() {
        let words: Vec<u32> = jump(0xff_fc5d_6540)
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")))
            .collect();
        assert_eq!(
            words,
            [
                0x3419_00ff, // ori  t9, zero, 0xff
                0x0019_cc38, // dsll t9, t9, 16
                0x3739_fc5d, // ori  t9, t9, 0xfc5d
                0x0019_cc38, // dsll t9, t9, 16
                0x3739_6540, // ori  t9, t9, 0x6540
                0x0320_0008, // jr   t9
                0x0000_0000, // nop
            ]
        );
    }
}
