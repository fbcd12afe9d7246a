//! Jumps from one vdso to another.

/// `ldr x16, target; br x16; target: .quad`: x16 is for whoever stands between a caller and a function,
/// and a branch through it may land where a call may (BTI).
pub(crate) fn jump(target: u64) -> Vec<u8> {
    let mut code = Vec::with_capacity(16);
    code.extend_from_slice(&0x5800_0050_u32.to_le_bytes());
    code.extend_from_slice(&0xd61f_0200_u32.to_le_bytes());
    code.extend_from_slice(&target.to_le_bytes());
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_follows_the_code() {
        let code = jump(0x1122_3344_5566_7788);
        assert_eq!(code[8..], 0x1122_3344_5566_7788_u64.to_le_bytes());
        assert_eq!(code.len(), 16);
    }
}
