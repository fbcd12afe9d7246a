//! The code that the kernel maps into every process, and what becomes of an image's.
//!
//! If this kernel's vdso is like the image's, it moves to where the program knows it. If not, the
//! image's stays, and each of its functions becomes a jump to the same function of this kernel's.
//!
//! 32-bit ARM has a page beside it from which signal handlers return (`[sigpage]`). A handler that was
//! running returns to the image's, whose content is saved like any other; handlers to come return to the
//! one that the kernel knows. If both are alike, this kernel's moves over the image's.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use criu_image::{desc, pb};
use criu_kind::{Error, Result};
use criu_proc::{MapName, Vmas};
use criu_tracee::Native;
use criu_tracee::arch::Arch;

use crate::bits::prot;
use crate::image::{Backing, SpaceImage, backing};
use crate::symbols::{self, functions};

/// The largest vdso there is, to bound what a hostile image may ask for.
const LARGEST: u64 = 1 << 20;

/// The vdso of the driver, which every task is born with.
#[derive(Debug)]
pub(crate) struct OwnVdso {
    /// Its mappings and those of its data, lowest first; the kernel lets each be moved alone.
    pub(crate) parts: Vec<Range<u64>>,
    /// All of them, and the page of signals: the code finds its data by distance.
    pub(crate) span: Range<u64>,
    code: Range<u64>,
    bytes: Vec<u8>,
    /// The page of signals, where there is one, and its content.
    pub(crate) sigpage: Option<(Range<u64>, Vec<u8>)>,
}

/// What becomes of an image's vdso.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The program has none, so ours goes.
    Gone,
    /// Ours moves to here (the start of its span).
    Home(u64),
    /// Ours stays where it is parked; these bytes go into the image's.
    Proxy(Vec<(u64, Vec<u8>)>),
    /// The program is of 32 bits: ours goes, and the kernel maps its other one here.
    Compat {
        /// The start of its data.
        at: u64,
        /// The start of its code.
        code: u64,
    },
}

impl OwnVdso {
    /// Finds it in the text of `maps` and reads it from `memory`; `None` if the kernel gives none.
    pub(crate) fn find(maps: &[u8], memory: &File) -> Result<Option<Self>> {
        let mut parts = Vec::new();
        let (mut code, mut sigpage) = (None, None);
        for vma in Vmas::new(maps) {
            let vma = vma.map_err(criu_proc::Error::from)?;
            match vma.name {
                MapName::Vvar | MapName::VvarVclock => parts.push(vma.start..vma.end),
                MapName::Vdso => {
                    code = Some(vma.start..vma.end);
                    parts.push(vma.start..vma.end);
                }
                MapName::Sigpage => sigpage = Some(vma.start..vma.end),
                _ => {}
            }
        }
        let (Some(code), Some(first), Some(last)) = (code, parts.first(), parts.last()) else {
            return Ok(None);
        };
        let mut span = first.start..last.end;
        if let Some(sigpage) = &sigpage {
            span = span.start.min(sigpage.start)..span.end.max(sigpage.end);
        }
        let read = |range: &Range<u64>| {
            let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
            let done = memory.read_exact_at(&mut bytes, range.start);
            done.map_err(Error::io("pread(/proc/self/mem)"))
                .map(|()| bytes)
        };
        Ok(Some(Self {
            bytes: read(&code)?,
            sigpage: match sigpage {
                Some(range) => Some((range.clone(), read(&range)?)),
                None => None,
            },
            parts,
            span,
            code,
        }))
    }

    fn data_size(&self) -> u64 {
        let data = self.parts.iter().filter(|part| **part != self.code);
        data.map(|part| part.end - part.start).sum()
    }
}

/// Decides about the vdso of an image. `park` is where ours lies in the tasks.
pub(crate) fn fate(image: &SpaceImage, own: Option<&OwnVdso>, park: u64) -> Result<Fate> {
    let of = |kind| image.vmas().iter().find(|vma| backing(vma) == kind);
    let Some(vdso) = of(Backing::Vdso) else {
        return Ok(Fate::Gone);
    };
    let own = own.ok_or_else(|| {
        Error::unsupported(
            "the program has a vdso and this kernel gives none",
            "boot without vdso=0",
        )
    })?;
    if vdso.end - vdso.start > LARGEST {
        let why = format!("a vdso of {} bytes", vdso.end - vdso.start);
        return Err(Error::corrupt(desc::MM.file_name(image.id), why));
    }
    let mut theirs = vec![0; usize::try_from(vdso.end - vdso.start).unwrap_or(0)];
    image.pages.read(vdso.start, &mut theirs)?;
    if Native::COMPAT_VDSO.is_some() && !symbols::is_of_word(&theirs, Native::WORD) {
        let at = of(Backing::Vvar).map_or(vdso.start, |vvar| vvar.start.min(vdso.start));
        return Ok(Fate::Compat {
            at,
            code: vdso.start,
        });
    }
    if placed_alike(vdso, of(Backing::Vvar), own) && alike(&theirs, &own.bytes) {
        return Ok(Fate::Home(vdso.start - (own.code.start - own.span.start)));
    }
    let code = park + (own.code.start - own.span.start);
    let jumps = jumps(vdso.start, &theirs, code, &own.bytes);
    if jumps.is_empty() {
        return Err(Error::unsupported(
            "the vdso of the image has nothing in common with this kernel's",
            "restore on the kernel of the dump",
        ));
    }
    Ok(Fate::Proxy(jumps))
}

/// Where the image has the same page of signals as this kernel.
pub(crate) fn sigpage_home(image: &SpaceImage, own: &OwnVdso) -> Result<Option<u64>> {
    let Some((range, ours)) = &own.sigpage else {
        return Ok(None);
    };
    let mut theirs = vec![0; ours.len()];
    for vma in image.vmas() {
        let alike = backing(vma) == Backing::Anonymous
            && vma.end - vma.start == range.end - range.start
            && vma.prot == prot::READ | prot::EXEC;
        if alike {
            image.pages.read(vma.start, &mut theirs)?;
            if theirs == *ours {
                return Ok(Some(vma.start));
            }
        }
    }
    Ok(None)
}

/// Whether the mappings have the same sizes at the same distance.
fn placed_alike(vdso: &pb::VmaEntry, vvar: Option<&pb::VmaEntry>, own: &OwnVdso) -> bool {
    let same_code = vdso.end - vdso.start == own.code.end - own.code.start;
    let same_data = match vvar {
        Some(vvar) => {
            let own_data = own.parts.iter().find(|part| **part != own.code);
            vvar.end - vvar.start == own.data_size()
                && own_data.is_some_and(|data| {
                    vdso.start.wrapping_sub(vvar.start) == own.code.start.wrapping_sub(data.start)
                })
        }
        None => own.data_size() == 0,
    };
    same_code && same_data
}

/// Whether every function of the image's is at the same place in ours.
fn alike(theirs: &[u8], ours: &[u8]) -> bool {
    let (theirs_at, ours_at) = (functions(theirs), functions(ours));
    theirs == ours || (!theirs_at.is_empty() && theirs_at.iter().all(|one| ours_at.contains(one)))
}

/// The code that makes each function of the image's a jump to ours.
fn jumps(theirs_at: u64, theirs: &[u8], ours_at: u64, ours: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let ours = functions(ours);
    let mut jumps: Vec<(u64, Vec<u8>)> = Vec::new();
    for (name, offset) in functions(theirs) {
        let Some((_, target)) = ours.iter().find(|(other, _)| *other == name) else {
            continue;
        };
        // An image may say anything of its vdso.
        let (at, code) = Native::vdso_jump(theirs_at.saturating_add(offset), ours_at + target);
        let inside = offset.saturating_add(code.len() as u64) <= theirs.len() as u64;
        if inside && !jumps.iter().any(|(other, _)| *other == at) {
            jumps.push((at, code));
        }
    }
    jumps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bits::status;
    use crate::image::tests::{image, vma};

    fn own() -> OwnVdso {
        let maps = std::fs::read("/proc/self/maps").expect("maps");
        let memory = File::open("/proc/self/mem").expect("mem");
        OwnVdso::find(&maps, &memory)
            .expect("readable")
            .expect("there is one")
    }

    fn images_vdso(own: &OwnVdso, shift: u64) -> SpaceImage {
        let mut vdso = vma(0x10_0000, 0x10_0000 + (own.code.end - own.code.start));
        (vdso.status, vdso.prot) = (vdso.status | status::VDSO, prot::READ | prot::EXEC);
        let distance = own.code.start - own.span.start + shift;
        let mut vvar = vma(
            vdso.start - distance,
            vdso.start - distance + own.data_size(),
        );
        vvar.status |= status::VVAR;
        let runs = [(vdso.start, vdso.end, 0)];
        let mut all = vec![vvar, vdso];
        all.sort_by_key(|vma| vma.start);
        let image = image(all, &runs).expect("good");
        image.pages.files()[0]
            .write_all_at(&own.bytes, 0)
            .expect("memfd");
        image
    }

    #[test]
    fn the_same_kernel_moves_it_home() {
        let own = own();
        assert!(
            functions(&own.bytes)
                .iter()
                .any(|(name, _)| name.contains("clock_gettime"))
        );
        let image = images_vdso(&own, 0);
        let home = 0x10_0000 - (own.code.start - own.span.start);
        assert_eq!(
            fate(&image, Some(&own), 0).expect("decided"),
            Fate::Home(home)
        );
    }

    #[test]
    fn another_layout_gets_jumps() {
        let own = own();
        let image = images_vdso(&own, 0x1000);
        let Fate::Proxy(jumps) = fate(&image, Some(&own), 0x7000_0000).expect("decided") else {
            panic!("not alike");
        };
        assert!(jumps.len() >= 3, "{jumps:x?}");
        assert!(
            jumps
                .iter()
                .all(|(at, _)| (0x10_0000..0x10_2000).contains(at))
        );
    }

    #[test]
    fn none_wanted_and_none_to_give() {
        let empty = image(vec![vma(0x1000, 0x2000)], &[]).expect("good");
        assert_eq!(fate(&empty, Some(&own()), 0).expect("decided"), Fate::Gone);
        fate(&images_vdso(&own(), 0), None, 0).expect_err("refused");
    }
}
