//! FP and SIMD state to and from `thread_info_x86`.
//!
//! Components of the extended state are stored one by one, so an image of an Intel processor restores
//! on an AMD one although they lie elsewhere there. A component in use that the image has no field for
//! (AMX, APX) is refused, and so is one that this processor lacks.

use criu_arch::CoreError;
use criu_image::pb;

use crate::fpu::{LEGACY, XSTATE_BV, XstateLayout, component_name};

const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;

/// Bits of the components the image has a field for.
const HELD: u64 = 0x2ff;

pub(crate) fn fp_to_entry(
    fp: &[u8],
    layout: &XstateLayout,
) -> Result<pb::UserX86FpregsEntry, CoreError> {
    if fp.len() < LEGACY {
        return Err(CoreError::Length {
            field: "the FP state",
            got: fp.len(),
            want: LEGACY,
        });
    }
    let head = u32s(&fp[..32]);
    let mut entry = pb::UserX86FpregsEntry {
        cwd: head[0] & 0xffff,
        swd: head[0] >> 16,
        twd: head[1] & 0xffff,
        fop: head[1] >> 16,
        rip: u64s(&fp[8..16])[0],
        rdp: u64s(&fp[16..24])[0],
        mxcsr: head[6],
        mxcsr_mask: head[7],
        st_space: u32s(&fp[32..160]),
        xmm_space: u32s(&fp[160..416]),
        padding: Vec::new(),
        xsave: None,
    };
    let Some(header) = fp.get(XSTATE_BV..XSTATE_BV + 8) else {
        return Ok(entry);
    };
    let xstate_bv = u64s(header)[0];
    refuse(
        xstate_bv & !HELD,
        "is in use, and images have no field for it",
    )?;
    let part = |bit| {
        layout
            .part(bit)
            .and_then(|range| fp.get(range))
            .unwrap_or_default()
    };
    entry.xsave = Some(pb::UserX86XsaveEntry {
        xstate_bv,
        ymmh_space: u32s(part(2)),
        bndreg_state: u64s(part(3)),
        bndcsr_state: u64s(part(4)),
        opmask_reg: u64s(part(5)),
        zmm_upper: u64s(part(6)),
        hi16_zmm: u64s(part(7)),
        pkru: u32s(part(9)),
        cet: None,
    });
    Ok(entry)
}

/// A refusal that names the lowest of the components, if there is one.
fn refuse(components: u64, why: &str) -> Result<(), CoreError> {
    match components {
        0 => Ok(()),
        some => {
            let name = component_name(some.trailing_zeros());
            Err(CoreError::Unsupported(format!(
                "extended state \"{name}\" {why}"
            )))
        }
    }
}

pub(crate) fn entry_to_fp(
    entry: &pb::UserX86FpregsEntry,
    layout: &XstateLayout,
) -> Result<Vec<u8>, CoreError> {
    let mut fp = vec![0; layout.size()];
    let mut put = |at: usize, bytes: &[u8]| fp[at..at + bytes.len()].copy_from_slice(bytes);
    let halves = [entry.cwd, entry.swd, entry.twd, entry.fop];
    for (index, half) in halves.iter().enumerate() {
        put(2 * index, &half.to_le_bytes()[..2]);
    }
    put(8, &entry.rip.to_le_bytes());
    put(16, &entry.rdp.to_le_bytes());
    put(24, &entry.mxcsr.to_le_bytes());
    put(28, &entry.mxcsr_mask.to_le_bytes());
    put(32, &exactly("st_space", &bytes32(&entry.st_space), 128, 4)?);
    put(
        160,
        &exactly("xmm_space", &bytes32(&entry.xmm_space), 256, 4)?,
    );

    // x87 and SSE always count as in use: of a component that does not, the kernel would leave what
    // the new thread happens to have in MXCSR.
    let mut xstate_bv = X87 | SSE;
    if let Some(xsave) = &entry.xsave {
        refuse(
            xsave.xstate_bv & !HELD,
            "is in use in the image, but has no field there",
        )?;
        let parts = [
            (2, "ymmh_space", bytes32(&xsave.ymmh_space)),
            (3, "bndreg_state", bytes64(&xsave.bndreg_state)),
            (4, "bndcsr_state", bytes64(&xsave.bndcsr_state)),
            (5, "opmask_reg", bytes64(&xsave.opmask_reg)),
            (6, "zmm_upper", bytes64(&xsave.zmm_upper)),
            (7, "hi16_zmm", bytes64(&xsave.hi16_zmm)),
            (9, "pkru", bytes32(&xsave.pkru)),
        ];
        for (bit, field, bytes) in parts {
            let used = 1 << bit & xsave.xstate_bv;
            // CRIU takes a component that is marked but empty for one that is not in use.
            if used == 0 || bytes.is_empty() {
                continue;
            }
            let Some(range) = layout.part(bit) else {
                if is_initial(bit, &bytes) {
                    continue;
                }
                return refuse(used, "is in use, and this processor has none").map(|()| Vec::new());
            };
            let unit = if matches!(bit, 2 | 9) { 4 } else { 8 };
            put(range.start, &exactly(field, &bytes, range.len(), unit)?);
            xstate_bv |= used;
        }
    }
    if layout.is_extended() {
        put(XSTATE_BV, &xstate_bv.to_le_bytes());
    }
    Ok(fp)
}

/// What Linux gives to every task where there are protection keys: only the first can be used.
pub(crate) const PKRU_OF_LINUX: u32 = 0x5555_5554;

/// Whether a component holds nothing that a task of a processor without it could miss. Some processors count
/// it as in use all the same.
fn is_initial(bit: u32, bytes: &[u8]) -> bool {
    // The register has four bytes, its component eight.
    let rest = match bytes.strip_prefix(&PKRU_OF_LINUX.to_le_bytes()) {
        Some(rest) if bit == 9 => rest,
        _ => bytes,
    };
    rest.iter().all(|byte| *byte == 0)
}

fn exactly(
    field: &'static str,
    bytes: &[u8],
    want: usize,
    unit: usize,
) -> Result<Vec<u8>, CoreError> {
    if bytes.len() == want {
        return Ok(bytes.to_vec());
    }
    Err(CoreError::Length {
        field,
        got: bytes.len() / unit,
        want: want / unit,
    })
}

fn bytes32(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn bytes64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn u64s(bytes: &[u8]) -> Vec<u64> {
    let word = |chunk: &[u8]| {
        chunk
            .iter()
            .rev()
            .fold(0, |all, byte| all << 8 | u64::from(*byte))
    };
    bytes.chunks_exact(8).map(word).collect()
}

fn u32s(bytes: &[u8]) -> Vec<u32> {
    let word = |chunk: &[u8]| {
        chunk
            .iter()
            .rev()
            .fold(0, |all, byte| all << 8 | u32::from(*byte))
    };
    bytes.chunks_exact(4).map(word).collect()
}
