//! Registers to and from `thread_info_aarch64` (`core-aarch64.proto`).
//!
//! The vector length and the upper parts of SVE registers have no field there: they are kept in the
//! extension ([`criu_arch::Arch::EXTRA_NOTES`]). What cannot be set again is refused.

use criu_arch::{CoreError, CoreImage, Next, Regs, ThreadState};
use criu_image::pb;
use criu_image::pb::core_entry::March;

use crate::fpu::{self, FPSIMD};
use crate::regs::Arm64Regs;
use crate::tls::{self, NT_ARM_TLS};
use crate::{Aarch64, Abilities, NT_PAC_ENABLED_KEYS, NT_PACA_KEYS, NT_PACG_KEYS};

impl CoreImage for Aarch64 {
    fn to_core(
        state: &ThreadState<Arm64Regs>,
        _: &Abilities,
        core: &mut pb::CoreEntry,
    ) -> Result<(), CoreError> {
        let mut all = state.more.iter();
        if let Some(fact) = all.find_map(|(note, bytes)| fpu::unsupported(*note, bytes)) {
            return Err(CoreError::Unsupported(fact.into()));
        }
        let tls = more(state, NT_ARM_TLS).unwrap_or_default();
        if tls::second(tls) != 0 {
            let fact = "the thread has a buffer to save ZA to (TPIDR2, SME)";
            return Err(CoreError::Unsupported(fact.into()));
        }
        Self::set_machine(core);
        core.ti_aarch64 = Some(pb::ThreadInfoAarch64 {
            clear_tid_addr: 0,
            tls: tls::pointer(tls).unwrap_or(0),
            gpregs: regs_to_entry(&state.regs.reborn(Next::Resume)),
            fpsimd: fp_to_entry(&state.fp)?,
            pac_keys: keys_to_entry(state),
        });
        Ok(())
    }

    fn set_regs(core: &mut pb::CoreEntry, reborn: &Arm64Regs) {
        if let Some(info) = &mut core.ti_aarch64 {
            info.gpregs = regs_to_entry(reborn);
        }
    }

    fn from_core(core: &pb::CoreEntry, _: &Abilities) -> Result<ThreadState<Arm64Regs>, CoreError> {
        if core.mtype() != March::Aarch64 {
            return Err(CoreError::Machine(core.mtype));
        }
        let info = core
            .ti_aarch64
            .as_ref()
            .ok_or(CoreError::Missing("ti_aarch64"))?;
        let mut more = vec![(NT_ARM_TLS, info.tls.to_le_bytes().to_vec())];
        more.extend(
            info.pac_keys
                .as_ref()
                .map(entry_to_keys)
                .unwrap_or_default(),
        );
        Ok(ThreadState {
            regs: entry_to_regs(&info.gpregs)?,
            fp: entry_to_fp(&info.fpsimd)?,
            more,
            tls: Vec::new(),
        })
    }

    fn set_machine(core: &mut pb::CoreEntry) {
        core.set_mtype(March::Aarch64);
    }

    fn clear_tid(core: &pb::CoreEntry) -> Option<u64> {
        core.ti_aarch64.as_ref().map(|info| info.clear_tid_addr)
    }

    fn tls_call(_: &pb::CoreEntry) -> Option<(u32, u64)> {
        None
    }

    fn set_clear_tid(core: &mut pb::CoreEntry, address: u64) {
        if let Some(info) = &mut core.ti_aarch64 {
            info.clear_tid_addr = address;
        }
    }
}

fn more(state: &ThreadState<Arm64Regs>, note: u32) -> Option<&[u8]> {
    let mut all = state.more.iter();
    all.find_map(|(known, bytes)| (*known == note).then_some(&bytes[..]))
}

fn regs_to_entry(regs: &Arm64Regs) -> pb::UserAarch64RegsEntry {
    pb::UserAarch64RegsEntry {
        regs: regs.x.to_vec(),
        sp: regs.sp,
        pc: regs.pc,
        pstate: regs.pstate,
    }
}

fn entry_to_regs(entry: &pb::UserAarch64RegsEntry) -> Result<Arm64Regs, CoreError> {
    let mut regs = Arm64Regs::default();
    length("regs", entry.regs.len(), regs.x.len())?;
    regs.x.copy_from_slice(&entry.regs);
    (regs.sp, regs.pc, regs.pstate) = (entry.sp, entry.pc, entry.pstate);
    Ok(regs)
}

fn u64s(bytes: &[u8]) -> Vec<u64> {
    let word = |chunk: &[u8]| {
        let bytes = chunk.iter().rev();
        bytes.fold(0, |all, byte| all << 8 | u64::from(*byte))
    };
    bytes.chunks_exact(8).map(word).collect()
}

fn fp_to_entry(fp: &[u8]) -> Result<pb::UserAarch64FpsimdContextEntry, CoreError> {
    length("the FP state", fp.len(), FPSIMD)?;
    let half = |at: usize| u32::from_le_bytes([fp[at], fp[at + 1], fp[at + 2], fp[at + 3]]);
    Ok(pb::UserAarch64FpsimdContextEntry {
        vregs: u64s(&fp[..512]),
        fpsr: half(512),
        fpcr: half(516),
    })
}

fn entry_to_fp(entry: &pb::UserAarch64FpsimdContextEntry) -> Result<Vec<u8>, CoreError> {
    length("vregs", entry.vregs.len(), 64)?;
    let mut fp: Vec<u8> = entry
        .vregs
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    fp.extend(entry.fpsr.to_le_bytes());
    fp.extend(entry.fpcr.to_le_bytes());
    fp.resize(FPSIMD, 0);
    Ok(fp)
}

fn keys_to_entry(state: &ThreadState<Arm64Regs>) -> Option<pb::PacKeys> {
    let words = |note| more(state, note).map(u64s);
    let address = words(NT_PACA_KEYS).filter(|keys| keys.len() == 8);
    let generic = words(NT_PACG_KEYS).filter(|keys| keys.len() == 2);
    if address.is_none() && generic.is_none() {
        return None;
    }
    let enabled = words(NT_PAC_ENABLED_KEYS).and_then(|words| words.first().copied());
    Some(pb::PacKeys {
        pac_address_keys: address.map(|key| pb::PacAddressKeys {
            apiakey_lo: key[0],
            apiakey_hi: key[1],
            apibkey_lo: key[2],
            apibkey_hi: key[3],
            apdakey_lo: key[4],
            apdakey_hi: key[5],
            apdbkey_lo: key[6],
            apdbkey_hi: key[7],
            pac_enabled_key: enabled.unwrap_or(0),
        }),
        pac_generic_keys: generic.map(|key| pb::PacGenericKeys {
            apgakey_lo: key[0],
            apgakey_hi: key[1],
        }),
    })
}

fn entry_to_keys(entry: &pb::PacKeys) -> Vec<(u32, Vec<u8>)> {
    let bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut more = Vec::new();
    if let Some(key) = &entry.pac_address_keys {
        let words = [
            key.apiakey_lo,
            key.apiakey_hi,
            key.apibkey_lo,
            key.apibkey_hi,
            key.apdakey_lo,
            key.apdakey_hi,
            key.apdbkey_lo,
            key.apdbkey_hi,
        ];
        more.push((NT_PACA_KEYS, bytes(&words)));
        more.push((NT_PAC_ENABLED_KEYS, bytes(&[key.pac_enabled_key])));
    }
    if let Some(key) = &entry.pac_generic_keys {
        more.push((NT_PACG_KEYS, bytes(&[key.apgakey_lo, key.apgakey_hi])));
    }
    more
}

fn length(field: &'static str, got: usize, want: usize) -> Result<(), CoreError> {
    if got == want {
        return Ok(());
    }
    Err(CoreError::Length { field, got, want })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> ThreadState<Arm64Regs> {
        let mut regs = Arm64Regs::default();
        for (index, slot) in regs.x.iter_mut().enumerate() {
            *slot = 0x100 + index as u64;
        }
        (regs.sp, regs.pc, regs.pstate) = (0x7ff0, 0x4000, 0x6000_0000);
        let mut fp: Vec<u8> = (0..=255).cycle().take(520).collect();
        fp.resize(FPSIMD, 0);
        let keys = |from: u8, count| (from..).take(count).collect::<Vec<u8>>();
        ThreadState {
            regs,
            fp,
            more: vec![
                (NT_ARM_TLS, vec![5, 0, 0, 0, 0, 0, 0, 1]),
                (NT_PACA_KEYS, keys(1, 64)),
                (NT_PAC_ENABLED_KEYS, vec![0xf, 0, 0, 0, 0, 0, 0, 0]),
                (NT_PACG_KEYS, keys(100, 16)),
            ],
            tls: Vec::new(),
        }
    }

    #[test]
    fn a_thread_comes_back() {
        let mut core = pb::CoreEntry::default();
        Aarch64::to_core(&state(), &Abilities::default(), &mut core).expect("all known");
        let back = Aarch64::from_core(&core, &Abilities::default()).expect("the same machine");
        assert_eq!(back, state());
    }

    #[test]
    fn what_cannot_be_set_again_is_named() {
        let mut state = state();
        let mut za = 64_u32.to_le_bytes().to_vec();
        za.resize(64, 0);
        state.more.push((0x40c, za));
        let error = Aarch64::to_core(&state, &Abilities::default(), &mut pb::CoreEntry::default());
        let text = error.expect_err("ZA").to_string();
        assert_eq!(text, "the thread uses the ZA array (SME)");
    }

    #[test]
    fn hostile_lengths_are_refused() {
        let mut core = pb::CoreEntry::default();
        Aarch64::to_core(&state(), &Abilities::default(), &mut core).expect("all known");
        let good = core.clone();
        let info = core.ti_aarch64.as_mut().expect("set");
        info.gpregs.regs.pop();
        let error = Aarch64::from_core(&core, &Abilities::default()).expect_err("too short");
        assert_eq!(error.to_string(), "regs has 30 elements instead of 31");
        core = good;
        core.ti_aarch64.as_mut().expect("set").fpsimd.vregs.push(0);
        assert!(Aarch64::from_core(&core, &Abilities::default()).is_err());
        core.set_mtype(March::X8664);
        assert_eq!(
            Aarch64::from_core(&core, &Abilities::default()),
            Err(CoreError::Machine(1))
        );
    }
}
