//! Pages between memory and a file, as calls: pure, and the same in both directions.

use criu_tracee::arch::Arch;
use criu_tracee::{Arg, Native, Program, Ret};

/// Most segments of one call (`UIO_MAXIOV`).
const SEGMENTS: usize = 1024;

/// A run of memory and where it is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// First byte in memory.
    pub(crate) at: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// First byte in the file.
    pub(crate) offset: u64,
}

/// Runs of memory that follow each other in the file: one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transfer {
    /// First byte in the file.
    pub(crate) offset: u64,
    /// Address and length of each run.
    pub(crate) parts: Vec<(u64, u64)>,
}

impl Transfer {
    /// Bytes of the whole.
    pub(crate) fn len(&self) -> u64 {
        self.parts.iter().map(|(_, len)| len).sum()
    }

    /// Adds the call that fills the file from memory, or memory from the file.
    pub(crate) fn add(&self, program: &mut Program, direction: Direction, fd: i32) -> Ret {
        let mut iov = Vec::with_capacity(self.parts.len() * 2 * Native::WORD);
        for word in self.parts.iter().flat_map(|(at, len)| [*at, *len]) {
            iov.extend_from_slice(&word.to_ne_bytes()[..Native::WORD]);
        }
        let iov = program.bytes(iov);
        let (low, high) = position(self.offset);
        match direction {
            Direction::Out => program.pwritev(fd, iov, self.parts.len(), low, high),
            Direction::In => program.preadv(fd, iov, self.parts.len(), low, high),
        }
    }

    /// What is left to be done after the first `done` bytes.
    pub(crate) fn rest(&self, done: u64) -> Vec<Piece> {
        let mut skip = done;
        let mut offset = self.offset;
        let mut rest = Vec::new();
        for (at, len) in &self.parts {
            let skipped = skip.min(*len);
            skip -= skipped;
            if skipped < *len {
                rest.push(Piece {
                    at: at + skipped,
                    len: len - skipped,
                    offset: offset + skipped,
                });
            }
            offset += len;
        }
        rest
    }
}

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From memory to the file.
    Out,
    /// From the file to memory.
    In,
}

/// Joins what follows each other in the file, up to `most` bytes a call, and splits what is larger.
pub(crate) fn transfers(pieces: impl IntoIterator<Item = Piece>, most: u64) -> Vec<Transfer> {
    let mut all: Vec<Transfer> = Vec::new();
    let (mut end, mut size) = (0, 0);
    for mut piece in pieces {
        while piece.len > 0 {
            let fits = match all.last() {
                Some(last) => end == piece.offset && size < most && last.parts.len() < SEGMENTS,
                None => false,
            };
            if !fits {
                all.push(Transfer {
                    offset: piece.offset,
                    parts: Vec::new(),
                });
                size = 0;
            }
            let len = piece.len.min(most - size);
            if let Some(last) = all.last_mut() {
                last.parts.push((piece.at, len));
            }
            size += len;
            piece = Piece {
                at: piece.at + len,
                len: piece.len - len,
                offset: piece.offset + len,
            };
            end = piece.offset;
        }
    }
    all
}

/// A file position as the two words of `preadv` and `pwritev`.
fn position(offset: u64) -> (Arg, Arg) {
    if Native::WORD == 8 {
        (offset.into(), 0.into())
    } else {
        ((offset & 0xffff_ffff).into(), (offset >> 32).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(at: u64, len: u64, offset: u64) -> Piece {
        Piece { at, len, offset }
    }

    #[test]
    fn runs_are_joined_by_their_place_in_the_file() {
        let all = transfers(
            [piece(1000, 10, 0), piece(5000, 20, 10), piece(9000, 5, 50)],
            100,
        );
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].parts, [(1000, 10), (5000, 20)]);
        assert_eq!((all[1].offset, all[1].len()), (50, 5));
    }

    #[test]
    fn large_runs_are_split() {
        let all = transfers([piece(0, 250, 7)], 100);
        let lens: Vec<u64> = all.iter().map(Transfer::len).collect();
        assert_eq!((lens, all[2].offset), (vec![100, 100, 50], 207));
        let many = transfers((0..3000).map(|i| piece(i * 100, 1, i)), 1 << 20);
        assert_eq!(many.len(), 3);
    }

    #[test]
    fn the_rest_of_a_short_transfer() {
        let transfer = &transfers([piece(1000, 10, 0), piece(5000, 20, 10)], 100)[0];
        assert_eq!(transfer.rest(0).len(), 2);
        assert_eq!(transfer.rest(15), [piece(5005, 15, 15)]);
        assert_eq!(transfer.rest(30), []);
    }
}
