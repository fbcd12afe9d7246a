//! Registers to and from `thread_info_x86` (`core-x86.proto`).
//!
//! Not here: the extended state, which is in `fp_image.rs`. Shadow stacks are stored but not restored.

use criu_arch::{CoreError, CoreImage, CpuChecks, Next, Regs, ThreadState};
use criu_image::pb;
use criu_image::pb::core_entry::March;

use crate::cpu;
use crate::fp_image::{entry_to_fp, fp_to_entry};
use crate::fpu::XstateLayout;
use crate::regs::X86Regs;
use crate::tls::UserDesc;
use crate::{NT_X86_SHSTK, X86_64};

const NO_SYSCALL: u64 = u64::MAX;

/// Takes the fields that image and kernel name alike.
macro_rules! alike {
    ($call:ident) => {
        $call!(
            r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs,
            flags, sp, ss, fs_base, gs_base, ds, es, fs, gs
        )
    };
}

impl CoreImage for X86_64 {
    fn to_core(
        state: &ThreadState<X86Regs>,
        layout: &XstateLayout,
        core: &mut pb::CoreEntry,
    ) -> Result<(), CoreError> {
        let ssp = state
            .more
            .iter()
            .find(|(note, _)| *note == NT_X86_SHSTK)
            .and_then(|(_, bytes)| Some(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?)));
        let mut fpregs = fp_to_entry(&state.fp, layout)?;
        if let (Some(xsave), Some(ssp)) = (&mut fpregs.xsave, ssp) {
            xsave.cet = Some(pb::UserX86CetEntry { cet: 1, ssp });
        }
        Self::set_machine(core);
        core.thread_info = Some(pb::ThreadInfoX86 {
            clear_tid_addr: 0,
            gpregs: regs_to_entry(&state.regs.reborn(Next::Resume), state.regs.orig_ax),
            fpregs,
            tls: state
                .tls
                .iter()
                .filter_map(|bytes| tls_to_entry(bytes))
                .collect(),
        });
        Ok(())
    }

    fn set_regs(core: &mut pb::CoreEntry, reborn: &X86Regs) {
        if let Some(info) = &mut core.thread_info {
            info.gpregs = regs_to_entry(reborn, info.gpregs.orig_ax);
        }
    }

    fn from_core(
        core: &pb::CoreEntry,
        layout: &XstateLayout,
    ) -> Result<ThreadState<X86Regs>, CoreError> {
        if core.mtype() != March::X8664 {
            return Err(CoreError::Machine(core.mtype));
        }
        let info = core
            .thread_info
            .as_ref()
            .ok_or(CoreError::Missing("thread_info"))?;
        let tls: Vec<UserDesc> = info.tls.iter().map(entry_to_tls).collect();
        let cet = info
            .fpregs
            .xsave
            .as_ref()
            .and_then(|xsave| xsave.cet.as_ref());
        if cet.is_some_and(|cet| cet.ssp != 0) {
            let fact = "the thread has a shadow stack, which cannot be restored yet";
            return Err(CoreError::Unsupported(fact.into()));
        }
        Ok(ThreadState {
            regs: entry_to_regs(&info.gpregs, &tls),
            fp: entry_to_fp(&info.fpregs, layout)?,
            more: Vec::new(),
            tls: tls.iter().map(|desc| desc.to_bytes()).collect(),
        })
    }

    fn set_machine(core: &mut pb::CoreEntry) {
        core.set_mtype(March::X8664);
    }

    fn clear_tid(core: &pb::CoreEntry) -> Option<u64> {
        core.thread_info.as_ref().map(|info| info.clear_tid_addr)
    }

    fn tls_call(_: &pb::CoreEntry) -> Option<(u32, u64)> {
        None
    }

    fn set_clear_tid(core: &mut pb::CoreEntry, address: u64) {
        if let Some(info) = &mut core.thread_info {
            info.clear_tid_addr = address;
        }
    }

    fn describe_cpu(
        identify: &dyn Fn(u32, u32) -> [u32; 4],
    ) -> Result<Option<pb::CpuinfoEntry>, CoreError> {
        let entry = cpu::describe(identify).ok_or_else(|| {
            CoreError::Unsupported("neither Intel nor AMD made this CPU".to_owned())
        })?;
        Ok(Some(pb::CpuinfoEntry {
            x86_entry: vec![entry],
            ..pb::CpuinfoEntry::default()
        }))
    }

    fn compare_cpu(
        written: &pb::CpuinfoEntry,
        here: &pb::CpuinfoEntry,
        checks: CpuChecks,
    ) -> Result<Vec<String>, CoreError> {
        let entry = |info: &pb::CpuinfoEntry| match info.x86_entry.as_slice() {
            [entry] => Ok(entry.clone()),
            entries => Err(CoreError::Length {
                field: "x86_entry",
                got: entries.len(),
                want: 1,
            }),
        };
        Ok(cpu::compare(&entry(written)?, &entry(here)?, checks))
    }
}

fn regs_to_entry(regs: &X86Regs, orig_ax: u64) -> pb::UserX86RegsEntry {
    macro_rules! entry {
        ($($name:ident),*) => { pb::UserX86RegsEntry { $($name: regs.$name,)* mode: None } };
    }
    let mut entry = alike!(entry);
    entry.orig_ax = orig_ax;
    entry.set_mode(if regs.is_compat() {
        pb::UserX86RegsMode::Compat
    } else {
        pb::UserX86RegsMode::Native
    });
    if regs.is_compat() {
        let half = |word: &mut u64| *word &= 0xffff_ffff;
        for word in [&mut entry.ax, &mut entry.bx, &mut entry.cx, &mut entry.dx] {
            half(word);
        }
        for word in [&mut entry.si, &mut entry.di, &mut entry.bp, &mut entry.sp] {
            half(word);
        }
        for word in [&mut entry.ip, &mut entry.orig_ax] {
            half(word);
        }
        for word in [&mut entry.r8, &mut entry.r9, &mut entry.r10, &mut entry.r11] {
            *word = 0;
        }
        for word in [
            &mut entry.r12,
            &mut entry.r13,
            &mut entry.r14,
            &mut entry.r15,
        ] {
            *word = 0;
        }
    }
    entry
}

fn entry_to_regs(entry: &pb::UserX86RegsEntry, tls: &[UserDesc]) -> X86Regs {
    macro_rules! regs {
        ($($name:ident),*) => { X86Regs { $($name: entry.$name,)* } };
    }
    let mut regs = alike!(regs);
    // The call that it was in is no longer under way.
    regs.orig_ax = NO_SYSCALL;
    if entry.mode() == pb::UserX86RegsMode::Compat {
        // CRIU leaves the bases out: they follow from the selectors.
        let base = |selector: u64| {
            tls.iter()
                .find(|desc| u64::from(desc.entry) == selector >> 3)
                .map_or(0, |desc| desc.base.into())
        };
        for (word, selector) in [(&mut regs.fs_base, entry.fs), (&mut regs.gs_base, entry.gs)] {
            if *word == 0 {
                *word = base(selector);
            }
        }
    }
    regs
}

fn tls_to_entry(bytes: &[u8]) -> Option<pb::UserDescT> {
    let desc = UserDesc::from_bytes(bytes)?;
    Some(pb::UserDescT {
        entry_number: desc.entry,
        base_addr: desc.base,
        limit: desc.limit,
        seg_32bit: desc.bit(0),
        contents_l: desc.bit(1),
        contents_h: desc.bit(2),
        read_exec_only: desc.bit(3),
        limit_in_pages: desc.bit(4),
        seg_not_present: desc.bit(5),
        usable: desc.bit(6),
    })
}

fn entry_to_tls(entry: &pb::UserDescT) -> UserDesc {
    let flags = [
        entry.seg_32bit,
        entry.contents_l,
        entry.contents_h,
        entry.read_exec_only,
        entry.limit_in_pages,
        entry.seg_not_present,
        entry.usable,
    ];
    let bits = (0..).zip(flags).map(|(n, flag)| u32::from(flag) << n).sum();
    UserDesc {
        entry: entry.entry_number,
        base: entry.base_addr,
        limit: entry.limit,
        bits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fp_image::PKRU_OF_LINUX;
    use crate::fpu::XSTATE_BV;
    use crate::fpu::tests::{amd, intel};

    const XSTATE: &[u8] = include_bytes!("../fixtures/xstate.amd");
    const CRIU: &[u8] = include_bytes!("../fixtures/core.criu-4.2.img");

    fn state(fp: &[u8]) -> ThreadState<X86Regs> {
        ThreadState {
            regs: X86Regs::default(),
            fp: fp.into(),
            more: Vec::new(),
            tls: Vec::new(),
        }
    }

    fn image(fp: &[u8], layout: &XstateLayout) -> Result<pb::CoreEntry, CoreError> {
        let mut core = pb::CoreEntry::default();
        X86_64::to_core(&state(fp), layout, &mut core).map(|()| core)
    }

    fn by_criu() -> pb::CoreEntry {
        use criu_image::{ImageReader, desc};
        let reader = ImageReader::new(desc::CORE, "core-2.img", CRIU).expect("an image");
        reader
            .read_only::<pb::CoreEntry>()
            .expect("an entry")
            .message
    }

    #[test]
    fn extended_state_comes_back_byte_for_byte() {
        let core = image(XSTATE, &amd()).expect("all known");
        let back = X86_64::from_core(&core, &amd())
            .expect("the same processor")
            .fp;
        // Behind the registers the kernel notes sizes for signal frames; it does not read them back.
        assert_eq!(back[..416], XSTATE[..416]);
        assert_eq!(back[512..], XSTATE[512..]);
        assert_eq!(core.thread_info.expect("set").fpregs.mxcsr, 0x7f80);
    }

    #[test]
    fn another_maker_keeps_it_elsewhere() {
        let core = image(XSTATE, &amd()).expect("all known");
        let fp = X86_64::from_core(&core, &intel()).expect("as able").fp;
        for bit in [2, 5, 6, 7, 9] {
            let (there, here) = (
                amd().part(bit).expect("known"),
                intel().part(bit).expect("known"),
            );
            assert_eq!(fp[here], XSTATE[there], "component {bit}");
        }
        let again = image(&fp, &intel()).expect("all known");
        let spaces = |core: pb::CoreEntry| {
            let xsave = core.thread_info.expect("set").fpregs.xsave.expect("set");
            (xsave.ymmh_space, xsave.hi16_zmm, xsave.pkru)
        };
        assert_eq!(spaces(again), spaces(core));
    }

    #[test]
    fn an_image_of_criu() {
        let core = by_criu();
        let state = X86_64::from_core(&core, &amd()).expect("the same processor");
        assert_eq!(state.regs.ip, 140_024_443_848_743);
        assert_eq!(state.regs.orig_ax, NO_SYSCALL);
        assert_eq!((state.fp.len(), state.tls.len()), (2440, 3));
        let mut again = pb::CoreEntry::default();
        X86_64::to_core(&state, &amd(), &mut again).expect("all known");
        let (info, before) = (
            again.thread_info.expect("set"),
            core.thread_info.expect("set"),
        );
        assert_eq!(info.tls, before.tls);
        assert_eq!(info.fpregs.xmm_space, before.fpregs.xmm_space);
        let (xsave, before) = (
            info.fpregs.xsave.expect("set"),
            before.fpregs.xsave.expect("set"),
        );
        assert_eq!(
            (xsave.xstate_bv, xsave.hi16_zmm),
            (before.xstate_bv | 3, before.hi16_zmm)
        );
        assert_eq!(
            (xsave.opmask_reg, xsave.pkru),
            (before.opmask_reg, before.pkru)
        );
    }

    #[test]
    fn what_cannot_be_held_is_named() {
        let mut fp = XSTATE.to_vec();
        fp[XSTATE_BV + 2] |= 4;
        let error = image(&fp, &amd()).expect_err("AMX");
        let text = "extended state \"AMX tile data\" is in use, and images have no field for it";
        assert_eq!(error.to_string(), text);

        let core = image(XSTATE, &amd()).expect("all known");
        let old = XstateLayout::from_cpuid(&|leaf, subleaf| match (leaf, subleaf) {
            (1, 0) => [0, 0, 1 << 27, 0],
            (0xd, 0) => [3, 576, 576, 0],
            _ => [0; 4],
        });
        let error = X86_64::from_core(&core, &old).expect_err("no AVX");
        assert_eq!(
            error.to_string(),
            "extended state \"AVX\" is in use, and this processor has none"
        );
    }

    #[test]
    fn a_component_that_was_never_touched_can_be_left_behind() {
        let mut core = image(XSTATE, &amd()).expect("all known");
        let none = XstateLayout::from_cpuid(&|_, _| [0; 4]);
        assert!(X86_64::from_core(&core, &none).is_err());
        let fpregs = &mut core.thread_info.as_mut().expect("set").fpregs;
        let xsave = fpregs.xsave.as_mut().expect("set");
        for words in [
            &mut xsave.opmask_reg,
            &mut xsave.zmm_upper,
            &mut xsave.hi16_zmm,
        ] {
            words.fill(0);
        }
        xsave.ymmh_space.fill(0);
        xsave.pkru = vec![PKRU_OF_LINUX, 0];
        let fp = X86_64::from_core(&core, &none).expect("nothing is lost").fp;
        // Behind the registers the kernel notes sizes for signal frames.
        assert_eq!((fp.len(), &fp[..416]), (512, &XSTATE[..416]));
        let again = image(&fp, &none).expect("all known");
        assert_eq!(again.thread_info.expect("set").fpregs.xsave, None);
    }

    #[test]
    fn hostile_lengths_are_refused() {
        let mut core = image(XSTATE, &amd()).expect("all known");
        let fpregs = &mut core.thread_info.as_mut().expect("set").fpregs;
        fpregs.xsave.as_mut().expect("set").hi16_zmm.push(0);
        let error = X86_64::from_core(&core, &amd()).expect_err("too long");
        assert_eq!(
            error.to_string(),
            "hi16_zmm has 129 elements instead of 128"
        );
        let fpregs = &mut core.thread_info.as_mut().expect("set").fpregs;
        fpregs.st_space.pop();
        assert!(X86_64::from_core(&core, &amd()).is_err());
        core.set_mtype(March::Aarch64);
        assert_eq!(X86_64::from_core(&core, &amd()), Err(CoreError::Machine(3)));
    }

    #[test]
    fn an_interrupted_call_is_made_again_by_the_new_task() {
        let (ax, orig_ax, ip) = ((-512i64).cast_unsigned(), 202, 0x1002);
        let regs = X86Regs {
            ax,
            orig_ax,
            ip,
            ..X86Regs::default()
        };
        let state = ThreadState {
            regs,
            ..state(XSTATE)
        };
        let mut core = pb::CoreEntry::default();
        X86_64::to_core(&state, &amd(), &mut core).expect("all known");
        // CRIU's own tools look at the call it was in.
        assert_eq!(core.thread_info.as_ref().expect("set").gpregs.orig_ax, 202);
        let regs = X86_64::from_core(&core, &amd())
            .expect("the same processor")
            .regs;
        assert_eq!((regs.ip, regs.ax, regs.orig_ax), (0x1000, 202, NO_SYSCALL));
    }

    #[test]
    fn a_32_bit_thread_finds_its_tls() {
        let mut core = by_criu();
        let info = core.thread_info.as_mut().expect("set");
        info.gpregs.set_mode(pb::UserX86RegsMode::Compat);
        (info.gpregs.gs, info.gpregs.gs_base) = (0x63, 0);
        info.tls[0].base_addr = 0xf7d0_1000;
        let state = X86_64::from_core(&core, &amd()).expect("the same processor");
        assert_eq!(state.regs.gs_base, 0xf7d0_1000);
    }
}
