//! Jumps from one vdso to another.

/// `movabs $target, %rax; jmp *%rax`: the functions of the vdso are called by the C convention, in
/// which `rax` is free and nothing else changes.
pub(crate) fn jump(target: u64) -> Vec<u8> {
    let mut code = vec![0x48, 0xb8];
    code.extend_from_slice(&target.to_le_bytes());
    code.extend_from_slice(&[0xff, 0xe0]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_fits_the_alignment_of_functions() {
        let code = jump(0x1122_3344_5566_7788);
        assert_eq!(code[..4], [0x48, 0xb8, 0x88, 0x77]);
        assert!(code.len() <= 16);
    }
}
