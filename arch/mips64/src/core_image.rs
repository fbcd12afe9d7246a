//! Registers to and from `thread_info_mips` (`core-mips.proto`).
//!
//! There is no field for MSA vectors: a thread that uses them is refused.

use criu_arch::{CoreError, CoreImage, Next, Regs, ThreadState};
use criu_image::pb;
use criu_image::pb::core_entry::March;

use crate::fpu::{FpRegs, NT_MIPS_MSA, uses_vectors};
use crate::regs::Mips64Regs;
use crate::{Mips64, tls};

/// Takes the numbered fields of an entry.
macro_rules! numbered {
    ($call:ident) => {
        $call!(
            r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, r12, r13, r14, r15, r16, r17, r18,
            r19, r20, r21, r22, r23, r24, r25, r26, r27, r28, r29, r30, r31
        )
    };
}

impl CoreImage for Mips64 {
    fn to_core(
        state: &ThreadState<Mips64Regs>,
        (): &(),
        core: &mut pb::CoreEntry,
    ) -> Result<(), CoreError> {
        let msa = state.more.iter().find(|(note, _)| *note == NT_MIPS_MSA);
        if msa.is_some_and(|(_, bytes)| uses_vectors(bytes)) {
            let fact = "the thread uses MSA vector registers, which cannot be restored";
            return Err(CoreError::Unsupported(fact.into()));
        }
        let fp = FpRegs::from_bytes(&state.fp).ok_or(CoreError::Length {
            field: "the FP state",
            got: state.fp.len(),
            want: FpRegs::SIZE,
        })?;
        let tls = state.tls.first().and_then(|area| tls::from_bytes(area));
        Self::set_machine(core);
        core.ti_mips = Some(pb::ThreadInfoMips {
            clear_tid_addr: 0,
            tls: tls.ok_or(CoreError::Missing("thread area"))?,
            gpregs: regs_to_entry(&state.regs.reborn(Next::Resume)),
            fpregs: fp_to_entry(&fp),
        });
        Ok(())
    }

    fn set_regs(core: &mut pb::CoreEntry, reborn: &Mips64Regs) {
        if let Some(info) = &mut core.ti_mips {
            info.gpregs = regs_to_entry(reborn);
        }
    }

    fn from_core(core: &pb::CoreEntry, (): &()) -> Result<ThreadState<Mips64Regs>, CoreError> {
        if core.mtype() != March::Mips {
            return Err(CoreError::Machine(core.mtype));
        }
        let info = core.ti_mips.as_ref().ok_or(CoreError::Missing("ti_mips"))?;
        Ok(ThreadState {
            regs: entry_to_regs(&info.gpregs),
            fp: entry_to_fp(&info.fpregs).to_bytes(),
            more: Vec::new(),
            tls: vec![tls::to_bytes(info.tls)],
        })
    }

    fn set_machine(core: &mut pb::CoreEntry) {
        core.set_mtype(March::Mips);
    }

    fn clear_tid(core: &pb::CoreEntry) -> Option<u64> {
        core.ti_mips.as_ref().map(|info| info.clear_tid_addr)
    }

    fn tls_call(core: &pb::CoreEntry) -> Option<(u32, u64)> {
        core.ti_mips.as_ref().map(|info| (tls::SET, info.tls))
    }

    fn set_clear_tid(core: &mut pb::CoreEntry, address: u64) {
        if let Some(info) = &mut core.ti_mips {
            info.clear_tid_addr = address;
        }
    }
}

fn regs_to_entry(regs: &Mips64Regs) -> pb::UserMipsRegsEntry {
    macro_rules! entry {
        ($($name:ident),*) => {{
            let [$($name),*] = regs.r;
            pb::UserMipsRegsEntry {
                $($name,)*
                lo: regs.lo,
                hi: regs.hi,
                cp0_epc: regs.epc,
                cp0_badvaddr: regs.badvaddr,
                cp0_status: regs.status,
                cp0_cause: regs.cause,
            }
        }};
    }
    numbered!(entry)
}

fn entry_to_regs(entry: &pb::UserMipsRegsEntry) -> Mips64Regs {
    macro_rules! array {
        ($($name:ident),*) => { [$(entry.$name),*] };
    }
    let mut r = numbered!(array);
    // The call that it was in is no longer under way.
    r[0] = 0;
    Mips64Regs {
        r,
        lo: entry.lo,
        hi: entry.hi,
        epc: entry.cp0_epc,
        badvaddr: entry.cp0_badvaddr,
        status: entry.cp0_status,
        cause: entry.cp0_cause,
    }
}

fn fp_to_entry(fp: &FpRegs) -> pb::UserMipsFpregsEntry {
    macro_rules! entry {
        ($($name:ident),*) => {{
            let [$($name),*] = fp.f;
            pb::UserMipsFpregsEntry {
                $($name,)*
                // An FPU has none: CRIU leaves them 0, too.
                lo: 0,
                hi: 0,
                fpu_fcr31: fp.fcsr,
                fpu_id: fp.fir,
            }
        }};
    }
    numbered!(entry)
}

fn entry_to_fp(entry: &pb::UserMipsFpregsEntry) -> FpRegs {
    macro_rules! array {
        ($($name:ident),*) => { [$(entry.$name),*] };
    }
    FpRegs {
        f: numbered!(array),
        fcsr: entry.fpu_fcr31,
        fir: entry.fpu_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> ThreadState<Mips64Regs> {
        let count = |first: u64| core::array::from_fn(|index| first + index as u64);
        let mut regs = Mips64Regs {
            r: count(100),
            lo: 1,
            hi: 2,
            epc: 0x1004,
            badvaddr: 3,
            status: 4,
            cause: 5,
        };
        regs.r[0] = 0;
        let fp = FpRegs {
            f: count(200),
            fcsr: 0x0080_0001,
            fir: 0x00f3_0000,
        };
        ThreadState {
            regs,
            fp: fp.to_bytes(),
            more: Vec::new(),
            tls: vec![0x1_5e30_3760u64.to_le_bytes().to_vec()],
        }
    }

    fn image(state: &ThreadState<Mips64Regs>) -> Result<pb::CoreEntry, CoreError> {
        let mut core = pb::CoreEntry::default();
        Mips64::to_core(state, &(), &mut core).map(|()| core)
    }

    #[test]
    fn a_thread_comes_back_as_it_was() {
        let state = state();
        let core = image(&state).expect("all known");
        let info = core.ti_mips.as_ref().expect("set");
        assert_eq!((info.gpregs.r31, info.fpregs.r31), (131, 231));
        assert_eq!(
            (info.tls, info.fpregs.fpu_fcr31),
            (0x1_5e30_3760, 0x0080_0001)
        );
        assert_eq!(Mips64::tls_call(&core), Some((5242, 0x1_5e30_3760)));
        assert_eq!(Mips64::from_core(&core, &()), Ok(state));
    }

    #[test]
    fn what_cannot_be_held_is_named() {
        let mut state = state();
        let mut msa = vec![0xff; 528];
        msa[8] = 0;
        state.more = vec![(NT_MIPS_MSA, msa)];
        let error = image(&state).expect_err("MSA");
        let text = "the thread uses MSA vector registers, which cannot be restored";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn hostile_images_are_refused() {
        let mut core = image(&state()).expect("all known");
        core.ti_mips = None;
        assert_eq!(
            Mips64::from_core(&core, &()),
            Err(CoreError::Missing("ti_mips"))
        );
        core.set_mtype(March::X8664);
        assert_eq!(Mips64::from_core(&core, &()), Err(CoreError::Machine(1)));
        let mut short = state();
        short.fp.pop();
        assert!(matches!(image(&short), Err(CoreError::Length { .. })));
    }

    #[test]
    fn an_interrupted_call_is_made_again_by_the_new_task() {
        let mut state = state();
        (state.regs.r[0], state.regs.r[2], state.regs.r[7]) = (5194, 512, 1);
        let core = image(&state).expect("all known");
        let regs = Mips64::from_core(&core, &()).expect("whole").regs;
        assert_eq!((regs.epc, regs.r[2], regs.r[0]), (0x1000, 5194, 0));
        // Its fourth argument comes from k0.
        assert_eq!(regs.r[7], 126);
    }
}
