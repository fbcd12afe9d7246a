//! The part of a thread that lives in the processor, and the frame of its core image.

use criu_image::pb;
use criu_kind::{Draft, Error, Result, Saved, ThreadView};
use criu_proc::Stat;
use criu_tracee::arch::{Arch, CoreError, CoreImage, ThreadState};
use criu_tracee::{FpLayout, Native, NativeRegs, Stop, Stopped, Tracee, fp_layout, newborn};

use crate::words::{sigset, to_sigset};

/// `task_state` in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// It runs or sleeps.
    Alive,
    /// A zombie.
    Dead,
    /// Job control has stopped it.
    Stopped,
}

impl TaskState {
    /// The number in the image.
    pub fn number(self) -> u32 {
        match self {
            Self::Alive => 1,
            Self::Dead => 2,
            Self::Stopped => 3,
        }
    }

    /// From the number; `None` for one that no image of a task has.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Alive, Self::Dead, Self::Stopped]
            .into_iter()
            .find(|state| state.number() == number)
    }
}

fn misfit(error: CoreError) -> Error {
    match error {
        CoreError::Unsupported(fact) => Error::unsupported(fact, "use a machine that has it"),
        other => Error::corrupt("core", other.to_string()),
    }
}

/// The draft of a held thread: what ptrace and stat tell. Ids, cgroups and the answers to
/// [`crate::describe`] are still missing.
pub fn core(view: &ThreadView<'_>, layout: &FpLayout) -> Result<Draft> {
    let mut core = pb::CoreEntry::default();
    let state = processor_state(view, layout)?;
    Native::to_core(&state, layout, &mut core).map_err(misfit)?;
    let (mask, mask_extended) = sigset(view.thread.mask());
    let mut thread = pb::ThreadCoreEntry::default();
    if view.leader {
        let (state, stop) = match view.thread.stop() {
            Stop::Group(signal) => (TaskState::Stopped, Some(signal.unsigned_abs())),
            _ => (TaskState::Alive, None),
        };
        core.tc = Some(pb::TaskCoreEntry {
            task_state: state.number(),
            stop_signo: stop,
            flags: view.stat.flags,
            blk_sigset: mask,
            blk_sigset_extended: mask_extended,
            ..pb::TaskCoreEntry::default()
        });
    } else {
        thread.blk_sigset = Some(mask);
        thread.blk_sigset_extended = mask_extended;
    }
    core.thread_core = Some(thread);
    // The code of a stop is there until the parent takes it, in the stat of the process, not of its first
    // thread: `do_task_stat` in `fs/proc/array.c`.
    let stopped = view.leader && matches!(view.thread.stop(), Stop::Group(_));
    let reported = stopped && view.process.stat()?.exit_code == 0;
    let tid = view.thread.vtid().as_raw().cast_unsigned();
    Ok(Draft {
        core,
        ext: pb::TaskExtEntry {
            tid,
            stop_reported: reported.then_some(true),
            regsets: extra(state.more),
            ..pb::TaskExtEntry::default()
        },
        dumpable: None,
        thp_disabled: None,
    })
}

/// Regsets that the image has no field for, where they say anything.
fn extra(more: Vec<(u32, Vec<u8>)>) -> Vec<pb::RegsetEntry> {
    more.into_iter()
        .filter(|(note, content)| {
            is_fixed(*note)
                || Native::EXTRA_NOTES.contains(note) && Native::is_extra(*note, content)
        })
        .map(|(note, content)| pb::RegsetEntry { note, content })
        .collect()
}

fn is_fixed(note: u32) -> bool {
    Native::FIXED_NOTE == Some(note)
}

fn processor_state(view: &ThreadView<'_>, layout: &FpLayout) -> Result<ThreadState<NativeRegs>> {
    let stopped = view.thread.stopped()?;
    let mut more = Vec::new();
    for note in Native::MORE_NOTES.iter().chain(Native::EXTRA_NOTES) {
        more.extend(view.thread.regset(*note)?.map(|bytes| (*note, bytes)));
    }
    if let Some(note) = Native::FIXED_NOTE {
        more.extend(view.thread.regset(note)?.map(|bytes| (note, bytes)));
    }
    Ok(ThreadState {
        regs: view.thread.natural().clone(),
        fp: view
            .thread
            .regset(Native::fp_note(layout))?
            .unwrap_or_default(),
        more,
        tls: thread_areas(stopped)?,
    })
}

/// The thread areas that a thread has: [`Arch::TLS`].
pub fn thread_areas(stopped: &Stopped) -> Result<Vec<Vec<u8>>> {
    let slots = Native::TLS.slots.iter();
    let areas: Result<_, _> = slots.map(|slot| stopped.thread_area(*slot)).collect();
    Ok(areas?)
}

/// The core image of a zombie.
pub fn zombie(stat: &Stat) -> pb::CoreEntry {
    let mut core = pb::CoreEntry {
        tc: Some(pb::TaskCoreEntry {
            task_state: TaskState::Dead.number(),
            exit_code: stat.exit_code.cast_unsigned(),
            comm: stat.comm.clone(),
            ..pb::TaskCoreEntry::default()
        }),
        ..pb::CoreEntry::default()
    };
    Native::set_machine(&mut core);
    core
}

/// What a new thread goes on with.
#[derive(Clone, Debug)]
pub struct NewThread {
    state: ThreadState<NativeRegs>,
    fp_note: u32,
    mask: Vec<u8>,
}

impl NewThread {
    /// The general registers, for [`criu_tracee::Thread::set_natural`]: after the last program but one,
    /// since programs run on the stack pointer they find.
    pub fn regs(&self) -> &NativeRegs {
        &self.state.regs
    }

    /// Keeps what is left of the time that the thread's call wants to wait for. After this the place of
    /// the vdso must not change.
    pub fn wait_on(&mut self, saved: &Saved<'_>, held: &mut Tracee) {
        crate::wait::rest(saved, &mut self.state.regs, held);
    }

    /// The signal mask, for the same.
    pub fn mask(&self) -> &[u8] {
        &self.mask
    }

    /// Sets everything but the general registers and the mask. Programs do not touch it. `born` is with
    /// which thread areas the thread came: most go on with those.
    pub fn set(&self, stopped: &Stopped, born: &[Vec<u8>]) -> Result<()> {
        for (index, area) in self.state.tls.iter().enumerate() {
            if born.get(index) != Some(area) {
                stopped.set_thread_area(Native::TLS.slots[index], area)?;
            }
        }
        stopped.set_regset(self.fp_note, &self.state.fp)?;
        for (note, bytes) in &self.state.more {
            stopped.set_regset(*note, bytes)?;
        }
        Ok(())
    }
}

/// What this machine has for its threads.
#[derive(Debug)]
pub struct Machine {
    layout: &'static FpLayout,
    born: Vec<(u32, Vec<u8>)>,
}

impl Machine {
    /// Asks the processor, and looks at a new thread where that is not enough.
    pub fn here() -> Result<Self> {
        Ok(Self {
            layout: fp_layout(),
            born: newborn(Native::BORN_NOTES)?,
        })
    }

    /// Ways to protect memory, beside the usual three: [`Arch::protections`].
    pub fn protections(&self) -> u32 {
        Native::protections(self.layout)
    }

    fn born(&self, note: u32) -> Option<&[u8]> {
        let mut all = self.born.iter();
        all.find_map(|(known, bytes)| (*known == note).then_some(&bytes[..]))
    }

    /// Whether a thread takes this regset.
    fn takes(&self, note: u32) -> bool {
        !is_fixed(note) && (!Native::BORN_NOTES.contains(&note) || self.born(note).is_some())
    }
}

/// Whether the registers of a thread fit this machine: what it has in use is there.
pub fn fits(core: &pb::CoreEntry, ext: Option<&pb::TaskExtEntry>, machine: &Machine) -> Result<()> {
    let state = state(core, ext, machine)?;
    let all = state.more.iter();
    let mut born = all.filter(|(note, _)| Native::BORN_NOTES.contains(note));
    let lack = born
        .find_map(|(note, bytes)| Native::lack(*note, bytes, machine.born(*note), machine.layout));
    match lack {
        Some(lack) => Err(Error::unsupported(lack.fact, lack.remedy)),
        None => Ok(()),
    }
}

/// Whether this machine has what a program of this memory uses because it was told of it.
pub fn fits_told(mm: &pb::MmEntry, machine: &Machine) -> Result<()> {
    match Native::lack_of_told(&mm.mm_saved_auxv, machine.layout) {
        Some(lack) => Err(Error::unsupported(lack.fact, lack.remedy)),
        None => Ok(()),
    }
}

fn state(
    core: &pb::CoreEntry,
    ext: Option<&pb::TaskExtEntry>,
    machine: &Machine,
) -> Result<ThreadState<NativeRegs>> {
    let mut state = Native::from_core(core, machine.layout).map_err(misfit)?;
    for regset in ext.iter().flat_map(|ext| &ext.regsets) {
        if !is_fixed(regset.note) && !Native::EXTRA_NOTES.contains(&regset.note) {
            let why = format!("a regset {:#x} of another machine", regset.note);
            return Err(Error::corrupt("criu-rs-task", why));
        }
        state.more.push((regset.note, regset.content.clone()));
    }
    Ok(state)
}

/// The registers and the signal mask of a thread, from its image. What this machine has not, a thread that [`fits`] has
/// not in use.
pub fn natural(saved: &Saved<'_>, machine: &Machine) -> Result<NewThread> {
    let mut state = state(saved.core, saved.ext, machine)?;
    state.more.retain(|(note, _)| machine.takes(*note));
    let thread = saved.core.thread_core.as_ref();
    let task = saved.core.tc.as_ref();
    let (low, extended) = match (task, thread) {
        (Some(task), _) if saved.leader => (task.blk_sigset, task.blk_sigset_extended),
        (_, Some(thread)) => (thread.blk_sigset.unwrap_or(0), thread.blk_sigset_extended),
        _ => return Err(Error::corrupt("core", "no thread_core")),
    };
    Ok(NewThread {
        state,
        fp_note: Native::fp_note(machine.layout),
        mask: to_sigset(low, extended),
    })
}
