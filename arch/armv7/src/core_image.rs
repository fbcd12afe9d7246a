//! Registers to and from `thread_info_arm` (`core-arm.proto`).

use criu_arch::{CoreError, CoreImage, Next, Regs, ThreadState};
use criu_image::pb;
use criu_image::pb::core_entry::March;

use crate::Armv7;
use crate::fpu::VFP;
use crate::regs::ArmRegs;
use crate::tls::SET_TLS;

/// Takes the fields that are named alike in the message and in `struct pt_regs`, in order.
macro_rules! in_order {
    ($call:ident) => {
        $call!(
            r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, fp, ip, sp, lr, pc
        )
    };
}

impl CoreImage for Armv7 {
    fn to_core(
        state: &ThreadState<ArmRegs>,
        (): &(),
        core: &mut pb::CoreEntry,
    ) -> Result<(), CoreError> {
        let tls = state.tls.first().and_then(|area| area[..].try_into().ok());
        Self::set_machine(core);
        core.ti_arm = Some(pb::ThreadInfoArm {
            clear_tid_addr: 0,
            tls: u32::from_le_bytes(tls.ok_or(CoreError::Missing("TLS"))?),
            gpregs: regs_to_entry(&state.regs.reborn(Next::Resume)),
            fpstate: vfp_to_entry(&state.fp)?,
        });
        Ok(())
    }

    fn set_regs(core: &mut pb::CoreEntry, reborn: &ArmRegs) {
        if let Some(info) = &mut core.ti_arm {
            info.gpregs = regs_to_entry(reborn);
        }
    }

    fn from_core(core: &pb::CoreEntry, (): &()) -> Result<ThreadState<ArmRegs>, CoreError> {
        if core.mtype() != March::Arm {
            return Err(CoreError::Machine(core.mtype));
        }
        let info = core.ti_arm.as_ref().ok_or(CoreError::Missing("ti_arm"))?;
        Ok(ThreadState {
            regs: entry_to_regs(&info.gpregs),
            fp: entry_to_vfp(&info.fpstate)?,
            more: Vec::new(),
            tls: vec![info.tls.to_le_bytes().to_vec()],
        })
    }

    fn set_machine(core: &mut pb::CoreEntry) {
        core.set_mtype(March::Arm);
    }

    fn clear_tid(core: &pb::CoreEntry) -> Option<u64> {
        core.ti_arm.as_ref().map(|info| info.clear_tid_addr)
    }

    fn tls_call(core: &pb::CoreEntry) -> Option<(u32, u64)> {
        let info = core.ti_arm.as_ref()?;
        Some((SET_TLS, info.tls.into()))
    }

    fn set_clear_tid(core: &mut pb::CoreEntry, address: u64) {
        if let Some(info) = &mut core.ti_arm {
            info.clear_tid_addr = address;
        }
    }
}

fn regs_to_entry(regs: &ArmRegs) -> pb::UserArmRegsEntry {
    macro_rules! entry {
        ($($name:ident),*) => {{
            let [$($name),*] = regs.r;
            pb::UserArmRegsEntry { $($name,)* cpsr: regs.cpsr, orig_r0: regs.orig_r0 }
        }};
    }
    in_order!(entry)
}

fn entry_to_regs(entry: &pb::UserArmRegsEntry) -> ArmRegs {
    macro_rules! words {
        ($($name:ident),*) => { [$(entry.$name),*] };
    }
    ArmRegs {
        r: in_order!(words),
        cpsr: entry.cpsr,
        orig_r0: entry.orig_r0,
        woken: None,
    }
}

fn vfp_to_entry(vfp: &[u8]) -> Result<pb::UserArmVfpstateEntry, CoreError> {
    length("the VFP state", vfp.len(), VFP)?;
    let word = |bytes: &[u8]| {
        let bytes = bytes.iter().rev();
        bytes.fold(0u64, |all, byte| all << 8 | u64::from(*byte))
    };
    let fpscr = u32::from_le_bytes([vfp[256], vfp[257], vfp[258], vfp[259]]);
    Ok(pb::UserArmVfpstateEntry {
        vfp_regs: vfp[..256].chunks_exact(8).map(word).collect(),
        fpscr,
        // Enabled, and nothing pending: CRIU takes them from the frame it restores by.
        fpexc: 1 << 30,
        fpinst: 0,
        fpinst2: 0,
    })
}

fn entry_to_vfp(entry: &pb::UserArmVfpstateEntry) -> Result<Vec<u8>, CoreError> {
    length("vfp_regs", entry.vfp_regs.len(), 32)?;
    let mut vfp: Vec<u8> = entry
        .vfp_regs
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    vfp.extend(entry.fpscr.to_le_bytes());
    Ok(vfp)
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

    fn state() -> ThreadState<ArmRegs> {
        let mut regs = ArmRegs::default();
        (regs.cpsr, regs.orig_r0) = (0x6000_0030, 9);
        for (slot, value) in regs.r.iter_mut().zip(0x100..) {
            *slot = value;
        }
        ThreadState {
            regs,
            fp: (0..=255).cycle().take(VFP).collect(),
            more: Vec::new(),
            tls: vec![vec![1, 2, 3, 4]],
        }
    }

    #[test]
    fn a_thread_comes_back() {
        let mut core = pb::CoreEntry::default();
        Armv7::to_core(&state(), &(), &mut core).expect("all known");
        let back = Armv7::from_core(&core, &()).expect("the same machine");
        assert_eq!(back, state());
        assert_eq!(Armv7::tls_call(&core), Some((0xf_0005, 0x0403_0201)));
    }

    #[test]
    fn hostile_lengths_are_refused() {
        let mut core = pb::CoreEntry::default();
        Armv7::to_core(&state(), &(), &mut core).expect("all known");
        let info = core.ti_arm.as_mut().expect("set");
        info.fpstate.vfp_regs.pop();
        let error = Armv7::from_core(&core, &()).expect_err("too short");
        assert_eq!(error.to_string(), "vfp_regs has 31 elements instead of 32");
        core.set_mtype(March::X8664);
        assert_eq!(Armv7::from_core(&core, &()), Err(CoreError::Machine(1)));
    }
}
