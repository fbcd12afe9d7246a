//! Private anonymous memory.

use libc::{MAP_ANONYMOUS, MAP_PRIVATE, PROT_EXEC, PROT_NONE, PROT_READ, PROT_WRITE};
use zdtm::{Case, Mapping, PAGE, Result, check, fill, verify};

pub(crate) const CASES: &[Case] = &[
    Case::new("anon", anon),
    Case::new("anon-64m", large),
    Case::new("anon-protections", protections),
    Case::new("anon-holes", holes),
];

fn anon() -> Result<()> {
    let area = Mapping::anonymous(37 * PAGE)?;
    fill(area.bytes(), 1);
    zdtm::checkpoint()?;
    verify(area.bytes(), 1)?;
    // And it is still writable.
    fill(area.bytes(), 2);
    verify(area.bytes(), 2)
}

fn large() -> Result<()> {
    let area = Mapping::anonymous(64 << 20)?;
    fill(area.bytes(), 3);
    zdtm::checkpoint()?;
    verify(area.bytes(), 3)
}

/// Every protection, each over data written before; none of them may keep the content from being saved.
fn protections() -> Result<()> {
    let areas = (0..8)
        .map(|bits: i32| {
            let area = Mapping::new(
                5 * PAGE,
                PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS,
                -1,
                0,
            )?;
            fill(area.bytes(), 100 + u64::from(bits.unsigned_abs()));
            let mut protection = PROT_NONE;
            for (bit, name) in [(1, PROT_READ), (2, PROT_WRITE), (4, PROT_EXEC)] {
                if bits & bit != 0 {
                    protection |= name;
                }
            }
            area.protect(protection)?;
            Ok(area)
        })
        .collect::<Result<Vec<_>>>()?;
    zdtm::checkpoint()?;
    for (area, seed) in areas.into_iter().zip(100..) {
        area.protect(PROT_READ)?;
        verify(area.bytes(), seed)?;
    }
    Ok(())
}

/// Pages never touched stay holes; pages of zeros read as zeros.
fn holes() -> Result<()> {
    let page_size = zdtm::page_size();
    let area = Mapping::anonymous(64 * page_size)?;
    for page in (0..64).step_by(3) {
        fill(
            area.part(page * page_size, page_size).bytes(),
            7 + page as u64,
        );
    }
    area.part(page_size, page_size).bytes().fill(0);
    zdtm::checkpoint()?;
    let mut resident = [0u8; 64];
    // SAFETY: one byte for each page of the area.
    zdtm::ret(unsafe {
        libc::mincore(area.pointer().cast(), area.length(), resident.as_mut_ptr())
    })?;
    for (page, state) in resident.into_iter().enumerate() {
        if page % 3 == 0 {
            verify(
                area.part(page * page_size, page_size).bytes(),
                7 + page as u64,
            )?;
        } else {
            check!(page == 1 || state & 1 == 0, "page {page} was a hole");
            check!(
                area.part(page * page_size, page_size)
                    .bytes()
                    .iter()
                    .all(|byte| *byte == 0),
                "page {page}"
            );
        }
    }
    Ok(())
}
