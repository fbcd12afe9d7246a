//! A record: one syscall as the stub reads it.
//!
//! `nr, ret, flags, six argument addresses`, all words of the task. An argument is the *address of a
//! word*: a literal, or the `ret` cell of an earlier record. So results feed later calls and the
//! interpreter needs no opcodes.

/// The number that ends a list of records.
pub const END: u64 = u64::MAX;

/// Flag: a failure of this call does not end the batch.
pub const TOLERATE: u64 = 1;

/// Flag: the call is made, and numbered, as 32-bit code on a 64-bit kernel makes it. Addresses among its
/// arguments must be below 4 GiB.
pub const COMPAT: u64 = 2;

/// One record with its argument addresses resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Syscall number, or [`END`].
    pub nr: u64,
    /// [`TOLERATE`], [`COMPAT`].
    pub flags: u64,
    /// Addresses of the argument words.
    pub args: [u64; 6],
}

/// Offsets that follow from the word size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLayout {
    word: usize,
}

impl RecordLayout {
    /// The layout for words of `word` bytes (4 or 8).
    pub const fn new(word: usize) -> Self {
        Self { word }
    }

    /// Bytes in a record.
    pub const fn size(self) -> usize {
        9 * self.word
    }

    /// Offset of the result cell in a record.
    pub const fn ret(self) -> usize {
        self.word
    }

    /// Bytes in a word.
    pub const fn word(self) -> usize {
        self.word
    }

    /// Writes a word at `at`.
    pub fn put(self, out: &mut [u8], at: usize, value: u64) {
        out[at..at + self.word].copy_from_slice(&value.to_le_bytes()[..self.word]);
    }

    /// Reads a word at `at`, sign-extended: results are negative errnos.
    pub fn get(self, from: &[u8], at: usize) -> i64 {
        let mut bytes = [0; 8];
        bytes[..self.word].copy_from_slice(&from[at..at + self.word]);
        let shift = 64 - 8 * self.word;
        (i64::from_le_bytes(bytes) << shift) >> shift
    }

    /// Writes `record` at `at`.
    pub fn put_record(self, out: &mut [u8], at: usize, record: &Record) {
        self.put(out, at, record.nr);
        self.put(out, at + self.word, 0);
        self.put(out, at + 2 * self.word, record.flags);
        for (i, arg) in record.args.iter().enumerate() {
            self.put(out, at + (3 + i) * self.word, *arg);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_sign_extended_in_both_widths() {
        for word in [4, 8] {
            let layout = RecordLayout::new(word);
            let mut out = vec![0; layout.size()];
            layout.put(&mut out, layout.ret(), -22i64 as u64);
            assert_eq!(layout.get(&out, layout.ret()), -22);
        }
    }

    #[test]
    fn a_record_is_nine_words_in_order() {
        let layout = RecordLayout::new(8);
        let mut out = vec![0; layout.size()];
        let record = Record {
            nr: 7,
            flags: TOLERATE,
            args: [1, 2, 3, 4, 5, 6],
        };
        layout.put_record(&mut out, 0, &record);
        let words: Vec<i64> = (0..9).map(|i| layout.get(&out, i * 8)).collect();
        assert_eq!(words, [7, 0, 1, 1, 2, 3, 4, 5, 6]);
    }
}
