//! The auxiliary vector: `/proc/PID/auxv`, getauxval(3).

use crate::ParseError;

/// The size of a word of the process, which need not be ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WordSize {
    /// A 32-bit process.
    Four,
    /// A 64-bit process.
    Eight,
}

/// The words of the vector, as the kernel keeps it: pairs of a type and a value, `AT_NULL` and all behind it included.
///
/// `auxv_read` in `fs/proc/base.c` stops after the first `AT_NULL`; a restore writes back these words as they are.
/// The byte order is ours: a kernel runs processes of one order only.
pub fn auxv(auxv: &[u8], size: WordSize) -> Result<Vec<u64>, ParseError> {
    let (words, torn): (Vec<u64>, _) = match size {
        WordSize::Four => {
            let (words, torn) = auxv.as_chunks();
            (
                words
                    .iter()
                    .map(|bytes| u64::from(u32::from_ne_bytes(*bytes)))
                    .collect(),
                torn,
            )
        }
        WordSize::Eight => {
            let (words, torn) = auxv.as_chunks();
            (
                words
                    .iter()
                    .map(|bytes| u64::from_ne_bytes(*bytes))
                    .collect(),
                torn,
            )
        }
    };
    if torn.is_empty() && words.len() % 2 == 0 {
        Ok(words)
    } else {
        Err(ParseError::new(
            "auxv",
            0,
            format!("pairs of words, not {} bytes", auxv.len()),
            torn,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sizes() {
        let wide: Vec<u8> = [6_u64, 4096, 0, 0]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        assert_eq!(auxv(&wide, WordSize::Eight), Ok(vec![6, 4096, 0, 0]));
        let narrow: Vec<u8> = [6_u32, 4096, 0, 0]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        assert_eq!(auxv(&narrow, WordSize::Four), Ok(vec![6, 4096, 0, 0]));
        auxv(&narrow[..13], WordSize::Four).expect_err("torn");
        auxv(&wide[..8], WordSize::Eight).expect_err("half a pair");
    }
}
