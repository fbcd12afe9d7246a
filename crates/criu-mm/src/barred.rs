//! Huge pages that nobody may access.
//!
//! `/proc/PID/mem` reads what has no access, but not everywhere what is huge as well: Linux 6.12 on 32-bit ARM takes such
//! a page for one that is not there, has it brought, and looks again, for ever. So the process makes the mapping readable
//! while the driver copies. A sealed mapping stays as it is; only kernels of 64 bits have those.

use std::ops::Range;

use criu_image::pb;
use criu_kind::Result;
use criu_tracee::{Program, Site, Tracee};

use crate::bits::map;
use crate::transfer::Piece;

/// A mapping of huge pages without access, and what is to be copied of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Barred {
    mapping: Range<u64>,
    pub(crate) pieces: Vec<Piece>,
}

/// Takes out of `pieces` what lies in such mappings.
pub(crate) fn take(vmas: &[pb::VmaEntry], pieces: &mut Vec<Piece>) -> Vec<Barred> {
    let mappings = vmas
        .iter()
        .filter(|vma| vma.flags & map::HUGETLB != 0 && vma.prot == 0);
    let mut all = Vec::new();
    for vma in mappings {
        let mapping = vma.start..vma.end;
        let mut rest = Vec::with_capacity(pieces.len());
        let mut taken = Vec::new();
        for piece in pieces.drain(..) {
            let end = piece.at + piece.len;
            rest.extend(part(&piece, piece.at..end.min(mapping.start)));
            taken.extend(part(
                &piece,
                piece.at.max(mapping.start)..end.min(mapping.end),
            ));
            rest.extend(part(&piece, piece.at.max(mapping.end)..end));
        }
        *pieces = rest;
        if !taken.is_empty() {
            all.push(Barred {
                mapping,
                pieces: taken,
            });
        }
    }
    all
}

/// What of a piece lies in a range that has no more than it; `None` if the range is empty.
fn part(piece: &Piece, range: Range<u64>) -> Option<Piece> {
    (!range.is_empty()).then(|| Piece {
        at: range.start,
        len: range.end - range.start,
        offset: piece.offset + (range.start - piece.at),
    })
}

impl Barred {
    /// Bytes to be copied.
    pub(crate) fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len).sum()
    }

    /// Has the mapping readable for `copy`. A process whose driver dies bars it again.
    pub(crate) fn readable(
        &self,
        tracee: &mut Tracee,
        copy: impl FnOnce(&Tracee) -> Result<()>,
    ) -> Result<()> {
        let mut again = self.protect(libc::PROT_NONE);
        again.tolerate();
        tracee.set_undo(Some(&again))?;
        let mut program = self.protect(libc::PROT_READ);
        program.tolerate();
        tracee.run(&program)?;
        let copied = copy(tracee);
        tracee.run(&again)?;
        tracee.set_undo(None)?;
        copied
    }

    fn protect(&self, prot: i32) -> Program {
        let mut program = Program::new();
        let length = self.mapping.end - self.mapping.start;
        program.mprotect(self.mapping.start, length, prot);
        program
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_where_huge_pages_are_barred() {
        let vma = |start, end, prot, flags| pb::VmaEntry {
            start,
            end,
            prot,
            flags,
            ..pb::VmaEntry::default()
        };
        let piece = |at, len, offset| Piece { at, len, offset };
        let vmas = [
            vma(0x1000, 0x2000, 0, 0),
            vma(0x2000, 0x4000, 0, map::HUGETLB),
            vma(0x4000, 0x6000, 1, map::HUGETLB),
            vma(0x8000, 0x9000, 0, map::HUGETLB),
        ];
        let mut pieces = vec![piece(0x1000, 0x4000, 0x100), piece(0x5000, 0x800, 0x4100)];
        let barred = take(&vmas, &mut pieces);
        assert_eq!(
            barred,
            [Barred {
                mapping: 0x2000..0x4000,
                pieces: vec![piece(0x2000, 0x2000, 0x1100)],
            }]
        );
        assert_eq!(
            pieces,
            [
                piece(0x1000, 0x1000, 0x100),
                piece(0x4000, 0x1000, 0x3100),
                piece(0x5000, 0x800, 0x4100),
            ]
        );
    }
}
