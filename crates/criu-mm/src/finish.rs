//! The last touch to an address space: what children must not inherit, or would make filling fail.

use std::ops::Range;

use criu_image::pb;
use criu_kind::{Result, Within};
use criu_tracee::arch::Arch;
use criu_tracee::{Job, Native, Program, Ret, Sysno, Tracee, run_all};

use crate::bits::{madv, map};
use crate::clear::remap;
use crate::drain::subject;
use crate::fill::FillJob;
use crate::ground::Ground;
use crate::image::{Backing, SpaceImage, backing};
use crate::vdso::{Fate, check_compat, fate};

/// `PR_SET_VMA` and `PR_SET_VMA_ANON_NAME`, Linux 5.17.
const PR_SET_VMA: i32 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: i32 = 0;

/// Gives tasks that were filled, and whose children were cloned, the memory they will go on with.
pub fn finish(tracees: &mut [Tracee], jobs: &[FillJob<'_>], ground: &Ground) -> Result<()> {
    let plans = jobs.iter().map(|job| {
        let plan = plan(job.image, ground);
        plan.within(|| subject(&tracees[job.tracee]))
    });
    let plans = plans.collect::<Result<Vec<_>>>()?;
    // The jumps before the programs: those take the permission to write.
    for (job, plan) in jobs.iter().zip(&plans) {
        for (at, code) in &plan.jumps {
            let tracee = &tracees[job.tracee];
            tracee
                .memory()
                .write(*at, code)
                .within(|| subject(tracee))?;
        }
    }
    let programs = jobs.iter().zip(&plans).map(|(job, plan)| Job {
        tracee: job.tracee,
        thread: 0,
        program: &plan.program,
    });
    let outcomes = run_all(tracees, &programs.collect::<Vec<_>>())?;
    for (plan, outcome) in plans.iter().zip(&outcomes) {
        for (ret, what) in &plan.hints {
            if let Err(errno) = outcome.get(*ret) {
                tracing::debug!(what, %errno, "the kernel did not take a hint");
            }
        }
    }
    for (job, plan) in jobs.iter().zip(&plans) {
        if let Some((code, theirs)) = &plan.compat {
            let tracee = &tracees[job.tracee];
            check_compat(tracee.memory(), code, theirs).within(|| subject(tracee))?;
        }
    }
    for job in jobs {
        let tracee = &mut tracees[job.tracee];
        let done = crate::aio::restore(tracee, job.image);
        done.within(|| subject(tracee))?;
    }
    Ok(())
}

/// What is done to one task.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) program: Program,
    jumps: Vec<(u64, Vec<u8>)>,
    hints: Vec<(Ret, &'static str)>,
    /// A vdso that must be there in the end.
    compat: Option<(Range<u64>, Vec<u8>)>,
}

pub(crate) fn plan(image: &SpaceImage, ground: &Ground) -> Result<Plan> {
    let mut plan = Plan::default();
    let fate = fate(image, ground.vdso.as_ref(), ground.park)?;
    for vma in image.vmas() {
        let (start, size) = (vma.start, vma.end - vma.start);
        match backing(vma) {
            Backing::Anonymous | Backing::File | Backing::Shared => {}
            Backing::Vdso | Backing::Vvar if matches!(fate, Fate::Proxy(_)) => {}
            _ => continue,
        }
        if image.fill_prot(vma) != vma.prot {
            plan.program.mprotect(start, size, vma.prot);
        }
        plan.advise(vma);
        if vma.flags & map::LOCKED != 0 {
            plan.program.mlock(start, size);
            // What may not be touched cannot be brought in; it is locked all the same.
            plan.hint("mlock");
        }
    }
    for guard in image.guards() {
        plan.program
            .madvise(guard.start, guard.end - guard.start, madv::GUARD_INSTALL);
    }
    for named in image.ext.iter().flat_map(|ext| &ext.vma_names) {
        let name = plan.program.cstr(&named.name);
        let size = named.end.saturating_sub(named.start);
        plan.program
            .prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, named.start, size, name);
        plan.hint("a name of memory");
    }
    plan.settle_vdso(fate, ground);
    Ok(plan)
}

impl Plan {
    fn hint(&mut self, what: &'static str) {
        self.program.tolerate();
        let last = self.program.len() - 1;
        self.hints.push((self.program.ret(last), what));
    }

    fn advise(&mut self, vma: &pb::VmaEntry) {
        let kept = madv::KEPT.iter().map(|(advice, _)| *advice);
        for advice in kept.filter(|advice| vma.madv() >> advice & 1 == 1) {
            self.program.madvise(vma.start, vma.end - vma.start, advice);
            // Who asked that a child should not see its memory relies on that.
            if !madv::BINDING.contains(&advice) {
                self.hint("madvise");
            }
        }
    }

    fn settle_vdso(&mut self, fate: Fate, ground: &Ground) {
        let Some(own) = &ground.vdso else {
            return;
        };
        let parked = |part: &Range<u64>| {
            let at = ground.park + (part.start - own.span.start);
            at..at + (part.end - part.start)
        };
        match fate {
            Fate::Gone => {
                for part in &own.parts {
                    self.program
                        .munmap(parked(part).start, part.end - part.start);
                }
            }
            Fate::Home(home) => {
                for part in &own.parts {
                    let from = parked(part);
                    remap(
                        &mut self.program,
                        &from,
                        home + (part.start - own.span.start),
                    );
                }
            }
            Fate::Proxy(jumps) => self.jumps = jumps,
            Fate::Compat {
                start,
                code,
                theirs,
            } => {
                for part in &own.parts {
                    let part = parked(part);
                    self.program.munmap(part.start, part.end - part.start);
                }
                let call = Native::COMPAT.and_then(|abi| abi.map_vdso);
                if let Some((number, sub)) =
                    call.and_then(|(number, sub)| Some((Sysno::new(number as usize)?, sub)))
                {
                    self.program.call(number, [sub.into(), start.into()]);
                }
                self.compat = Some((code, theirs));
            }
        }
    }
}
