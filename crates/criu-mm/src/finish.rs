//! The last touch to an address space: what children must not inherit, or would make filling fail.

use std::ops::Range;

use criu_image::pb;
use criu_kind::{Error, FileFds, Result, Within};
use criu_proc::{MapName, ProcDir, Vmas};
use criu_tracee::arch::Arch;
use criu_tracee::{Job, Native, Program, Ret, Sysno, Tracee, run_all};

use crate::bits::{madv, map};
use crate::clear::remap;
use crate::drain::subject;
use crate::fill::FillJob;
use crate::ground::Ground;
use crate::image::{Backing, SpaceImage, backing};
use crate::vdso::{Fate, fate, sigpage_home};

/// `PR_SET_VMA` and `PR_SET_VMA_ANON_NAME`, Linux 5.17.
const PR_SET_VMA: i32 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: i32 = 0;
/// Linux 4.4.
const MLOCK_ONFAULT: i32 = 1;

/// Gives tasks that were filled, and whose children were cloned, the memory they will go on with.
pub fn finish(
    tracees: &mut [Tracee],
    jobs: &[FillJob<'_>],
    ground: &Ground,
    files: &dyn FileFds,
) -> Result<()> {
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
        let tracee = &mut tracees[job.tracee];
        if let Some(code) = plan.compat_code {
            check_compat(tracee, code).within(|| subject(tracee))?;
        }
        let done = crate::aio::restore(tracee, job.image);
        done.within(|| subject(tracee))?;
        let done = crate::ring::restore(tracee, job.image, files);
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
    /// Where the code of a 32-bit program's vdso must have come to lie.
    compat_code: Option<u64>,
}

pub(crate) fn plan(image: &SpaceImage, ground: &Ground) -> Result<Plan> {
    let mut plan = Plan::default();
    let fate = fate(image, ground.vdso.as_ref(), ground.park)?;
    // From the top: a mapping is cut into many the faster when its lower part stays itself.
    for vma in image.vmas().iter().rev() {
        let (start, size) = (vma.start, vma.end - vma.start);
        match backing(vma) {
            Backing::Anonymous
            | Backing::File
            | Backing::Shared
            | Backing::Segment
            | Backing::Socket => {}
            Backing::Vdso | Backing::Vvar if matches!(fate, Fate::Proxy(_)) => {}
            _ => continue,
        }
        if image.fill_prot(vma) != vma.prot {
            plan.program.mprotect(start, size, vma.prot);
        }
        plan.advise(vma);
        if vma.flags & map::LOCKED != 0 {
            plan.program.mlock2(start, size, MLOCK_ONFAULT);
            let ext = image.ext.iter();
            let on_fault = ext
                .flat_map(|ext| &ext.locked_on_fault)
                .any(|range| range.start <= start && vma.end <= range.end);
            if !on_fault {
                plan.program.mlock(start, size);
                // It is locked now; what may not be touched cannot be brought in.
                plan.hint("mlock");
            }
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
    if let Some(own) = &ground.vdso
        && let Some((sigpage, _)) = &own.sigpage
        && let Some(home) = sigpage_home(image, own)?
    {
        remap(&mut plan.program, &ground.parked(own, sigpage), home);
    }
    if let Some(flags) = image.ext.as_ref().and_then(|ext| ext.lock_future) {
        plan.program.mlockall(flags);
    }
    Ok(plan)
}

/// The kernel takes an address as a hint, and its vdso may have another layout.
fn check_compat(tracee: &Tracee, code: u64) -> Result<()> {
    let maps = ProcDir::open(tracee.pid())?.read("maps")?;
    for vma in Vmas::new(&maps) {
        let vma = vma.map_err(criu_proc::Error::from)?;
        if vma.name == MapName::Vdso && vma.start == code {
            return Ok(());
        }
    }
    Err(Error::unsupported(
        "the vdso of 32-bit programs is another one on this kernel",
        "restore on the kernel of the dump",
    ))
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
        let parked = |part: &Range<u64>| ground.parked(own, part);
        match fate {
            Fate::Gone | Fate::Compat { .. } => {
                for part in &own.parts {
                    self.program
                        .munmap(parked(part).start, part.end - part.start);
                }
                if let (Fate::Compat { at, code }, Some((nr, operation))) =
                    (fate, Native::COMPAT_VDSO)
                    && let Some(sysno) = Sysno::new(nr)
                {
                    self.program.call(sysno, [operation.into(), at.into()]);
                    self.compat_code = Some(code);
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
        }
    }
}
