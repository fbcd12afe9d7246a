//! What the kernel keeps about the program of an address space: where its parts lie, its arguments, its executable.

use criu_image::pb;
use criu_tracee::arch::Arch;
use criu_tracee::{Native, Program};

/// `prctl(PR_SET_MM, PR_SET_MM_MAP, struct prctl_mm_map *)`, Linux 3.18.
pub(crate) fn set_mm_map(program: &mut Program, mm: &pb::MmEntry, exe: i32) {
    let words = [
        mm.mm_start_code,
        mm.mm_end_code,
        mm.mm_start_data,
        mm.mm_end_data,
        mm.mm_start_brk,
        mm.mm_brk,
        mm.mm_start_stack,
        mm.mm_arg_start,
        mm.mm_arg_end,
        mm.mm_env_start,
        mm.mm_env_end,
    ];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let auxv_at = bytes.len();
    let auxv = auxv(&mm.mm_saved_auxv);
    bytes.resize(auxv_at + Native::WORD, 0);
    bytes.extend_from_slice(&u32::try_from(auxv.len()).unwrap_or(0).to_ne_bytes());
    bytes.extend_from_slice(&exe.to_ne_bytes());
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let size = bytes.len();
    let auxv = program.bytes(auxv);
    let map = program.bytes(bytes);
    program.link(map, auxv_at, auxv);
    program.prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, map, size, 0);
}

/// The vector up to its end mark, a pair of zeroes: how many more kernels keep behind it differs.
fn auxv(words: &[u64]) -> Vec<u8> {
    let used = words
        .iter()
        .rposition(|word| *word != 0)
        .map_or(0, |last| last + 1);
    let used = &words[..(used.next_multiple_of(2) + 2).min(words.len())];
    used.iter()
        .flat_map(|word| word.to_ne_bytes()[..Native::WORD].to_vec())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vector_ends_where_it_ends() {
        let bytes = |words: &[u64]| auxv(words).len() / Native::WORD;
        assert_eq!(bytes(&[33, 1, 8, 0, 6, 4096]), 6);
        assert_eq!(bytes(&[33, 1, 8, 0, 0, 0, 0, 0, 0, 0]), 6);
        assert_eq!(bytes(&[]), 0);
    }
}
