//! Running programs in held tasks.

use std::ops::Range;

use criu_arch::{Arch, Entry, Job as StubJob, Regs};
use syscalls::Sysno;

use crate::encode::{Chunk, Progress, failure};
use crate::error::{CallError, Error, Result};
use crate::look::closing_signal;
use crate::native::Native;
use crate::program::{Blob, Program};
use crate::site::Outcome;
use crate::stop::{Hold, Running, Stop};
use crate::tracee::{HEAL_ROOM, LEADER_ROOM, THREAD_ROOM, Tracee, UNDO_ROOM};

const SI_TKILL: i32 = -6;

/// Where the stub and the rooms of the threads lie in a task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workplace {
    pub(crate) code: u64,
    pub(crate) rooms: u64,
    pub(crate) size: u64,
}

/// The room of a thread.
pub(crate) fn room(rooms: u64, index: usize) -> Range<u64> {
    if index == 0 {
        rooms..rooms + LEADER_ROOM
    } else {
        let start = rooms + LEADER_ROOM + (index as u64 - 1) * THREAD_ROOM;
        start..start + THREAD_ROOM
    }
}

/// A program for one thread of one process.
#[derive(Debug)]
pub struct Job<'p> {
    /// Which of the processes.
    pub tracee: usize,
    /// Which of its threads.
    pub thread: usize,
    /// What to run.
    pub program: &'p Program,
}

/// Runs one program in one thread.
pub(crate) fn run(tracee: &mut Tracee, thread: usize, program: &Program) -> Result<Outcome> {
    tracing::trace!(target: "criu::program", tid = tracee.threads()[thread].tid().as_raw(), "\n{program}");
    let mut progress = Progress::new(program);
    run_rest(tracee, thread, &mut progress)?;
    Ok(progress.into_outcome())
}

/// Runs the rest of a program while nobody else runs: the leader's room, by far the largest, is free.
fn run_rest(tracee: &mut Tracee, thread: usize, progress: &mut Progress<'_>) -> Result<()> {
    while let Some((chunk, running)) = begin(tracee, thread, 0, progress)? {
        finish(tracee, thread, 0, progress, &chunk, (running, true))?;
    }
    Ok(())
}

/// Runs many programs at once, each in its own thread; the results are in the order of the jobs.
///
/// All are started before the first is waited for, so tasks work side by side. The first failure is
/// returned after every running program has come to its end.
pub fn run_all(tracees: &mut [Tracee], jobs: &[Job<'_>]) -> Result<Vec<Outcome>> {
    run_each(tracees, jobs).map_err(|(_, error)| error)
}

/// The same; a failure comes with the index of its job.
pub fn run_each(
    tracees: &mut [Tracee],
    jobs: &[Job<'_>],
) -> std::result::Result<Vec<Outcome>, (usize, Error)> {
    let mut progress: Vec<Progress<'_>> =
        jobs.iter().map(|job| Progress::new(job.program)).collect();
    let mut open: Vec<usize> = (0..jobs.len()).collect();
    let mut large = Vec::new();
    let mut failed = None;
    while !open.is_empty() && failed.is_none() {
        let mut started = Vec::with_capacity(open.len());
        for index in open.drain(..) {
            let job = &jobs[index];
            match begin(
                &mut tracees[job.tracee],
                job.thread,
                job.thread,
                &progress[index],
            ) {
                Ok(Some((chunk, running))) => started.push((index, chunk, running)),
                Ok(None) => {}
                Err(Error::TooLarge { .. }) if job.thread != 0 => large.push(index),
                Err(error) => {
                    failed.get_or_insert((index, error));
                    break;
                }
            }
        }
        let alone = started.len() == 1;
        for (index, chunk, running) in started {
            let job = &jobs[index];
            match finish(
                &mut tracees[job.tracee],
                job.thread,
                job.thread,
                &mut progress[index],
                &chunk,
                (running, alone),
            ) {
                Ok(()) => open.push(index),
                Err(error) => {
                    failed.get_or_insert((index, error));
                }
            }
        }
    }
    // What is too large for its thread's room goes on alone, in the leader's.
    for index in large {
        let job = &jobs[index];
        if failed.is_none() {
            let rest = run_rest(&mut tracees[job.tracee], job.thread, &mut progress[index]);
            failed = rest.err().map(|error| (index, error));
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(progress.into_iter().map(Progress::into_outcome).collect()),
    }
}

/// Starts the next chunk of a program in a thread; `place` is the thread whose room it lies in.
fn begin(
    tracee: &mut Tracee,
    thread: usize,
    place: usize,
    progress: &Progress<'_>,
) -> Result<Option<(Chunk, Running)>> {
    let pid = tracee.pid();
    if tracee.workplace.is_none() {
        tracee.install()?;
    }
    let workplace = tracee.workplace.ok_or(Error::NoPlace(pid))?;
    let (base, size) = batch_room(&workplace, thread, place);
    let Some(chunk) = progress.chunk(base, size)? else {
        return Ok(None);
    };
    tracee.memory().write(base, &chunk.bytes)?;
    let running = enter(tracee, thread, workplace.code, StubJob::Batch(base))?;
    Ok(Some((chunk, running)))
}

/// Waits for the end of a chunk; whether it is the only one that runs is told beside the thread.
fn finish(
    tracee: &mut Tracee,
    thread: usize,
    place: usize,
    progress: &mut Progress<'_>,
    chunk: &Chunk,
    (running, alone): (Running, bool),
) -> Result<()> {
    let workplace = tracee.workplace.ok_or(Error::NoPlace(tracee.pid()))?;
    wait_end(tracee, thread, workplace.code, running, alone)?;
    let base = room(workplace.rooms, place).start + HEAL_ROOM;
    let mut back = vec![0; chunk.back];
    tracee.memory().read(base, &mut back)?;
    progress.absorb(chunk, &back)
}

/// One call with its arguments in registers: no room is needed yet, or any more.
pub(crate) fn once(
    tracee: &mut Tracee,
    code: u64,
    heal: u64,
    sysno: Sysno,
    args: [u64; 6],
) -> Result<i64> {
    debug_assert_eq!(tracee.heal_at(0), heal);
    let nr = u64::from(sysno.id().unsigned_abs());
    let running = enter(tracee, 0, code, StubJob::Once { nr, args })?;
    wait_end(tracee, 0, code, running, true)?;
    let ret = Native::once_result(&tracee.threads()[0].stopped()?.regs()?);
    match failure(ret) {
        Some(errno) => Err(CallError {
            sysno,
            errno,
            index: 0,
            text: format!("{sysno}({args:x?})"),
        }
        .into()),
        None => Ok(ret),
    }
}

impl Tracee {
    /// Ends batches with this signal from now on: one that the process does not have pending.
    pub fn close_with(&mut self, signal: i32) {
        self.signal = signal;
    }

    /// Ends batches with another signal than this one from now on, if there is another.
    pub fn close_with_other(&mut self, than: i32) -> Result<bool> {
        if self.signal == than {
            let leader = &self.threads()[0];
            let (status, stop) = (leader.status_text(), leader.stop);
            self.signal = closing_signal(&status, stop, Some(than));
            // Those that have run something for us block the one, and let the other through.
            let mask = all_but(self.signal);
            let mut hijacked = self.threads().iter().filter(|thread| thread.hijacked);
            hijacked.try_for_each(|thread| thread.stopped()?.set_mask(&mask))?;
        }
        Ok(self.signal != than)
    }

    /// Where a blob will lie when the leader runs this program, which must fit one batch: for a
    /// [`Tracee::set_undo`] that has to know what the program will have written there.
    pub fn address_of(&mut self, program: &Program, blob: Blob) -> Result<Option<u64>> {
        self.install()?;
        let workplace = self.workplace.ok_or(Error::NoPlace(self.pid()))?;
        let (base, size) = batch_room(&workplace, 0, 0);
        let chunk = Progress::new(program).chunk(base, size)?;
        Ok(chunk.and_then(|chunk| Some(base + chunk.offset_of(blob)? as u64)))
    }
}

/// Where a thread's batches lie in the room of `place`, and how large they may be.
fn batch_room(workplace: &Workplace, thread: usize, place: usize) -> (u64, usize) {
    let room = room(workplace.rooms, place);
    let base = room.start + HEAL_ROOM;
    let kept = if thread == 0 || place == 0 {
        UNDO_ROOM
    } else {
        0
    };
    (base, usize::try_from(room.end - base - kept).unwrap_or(0))
}

/// A program as bytes for when nobody is there to read its results.
pub(crate) fn undo(program: &Program, at: u64) -> Result<Option<Vec<u8>>> {
    let room = usize::try_from(UNDO_ROOM).unwrap_or(0);
    Ok(Progress::new(program)
        .chunk(at, room)?
        .map(|chunk| chunk.bytes))
}

/// Points a thread at the stub and lets it run.
fn enter(tracee: &mut Tracee, index: usize, code: u64, job: StubJob) -> Result<Running> {
    let heal = tracee.heal_at(index);
    let signal = tracee.signal;
    let tgid = tracee.vpid().as_raw().cast_unsigned();
    let hold = tracee.hold();
    let thread = tracee.thread_mut(index);
    let stopped = thread.stopped.take().ok_or(Error::Gone(thread.tid))?;
    let mut regs = thread.natural().clone();
    let vtid = thread.vtid.as_raw().cast_unsigned();
    Native::enter(
        &mut regs,
        code,
        &Entry {
            job,
            thread: (tgid, vtid),
            signal: signal.cast_unsigned(),
            heal,
        },
    );
    // Registers before the mask: from here on the thread heals itself, mask included.
    stopped.set_regs(&regs)?;
    if !thread.hijacked || hold == Hold::Restore {
        let mask = all_but(signal);
        // A thread that was cloned by a program of ours was born with its mask.
        if !thread.fresh || thread.mask != mask {
            stopped.set_mask(&mask)?;
        }
        thread.hijacked = true;
    }
    thread.fresh = false;
    stopped.cont(0)
}

/// Every signal but the one that closes a batch.
pub(crate) fn all_but(signal: i32) -> Vec<u8> {
    let mut mask = vec![0xff; Native::SIGSET];
    let bit = usize::try_from(signal - 1).unwrap_or(0);
    mask[bit / 8] &= !(1 << (bit % 8));
    mask
}

/// Waits until the stub has come to its end. Signals that cannot be blocked are remembered.
fn wait_end(
    tracee: &mut Tracee,
    index: usize,
    code: u64,
    running: Running,
    alone: bool,
) -> Result<()> {
    let closing = tracee.signal;
    let end = code + Native::STUB.stopped as u64;
    let (pid, vpid) = (tracee.pid(), tracee.vpid().as_raw());
    let thread = tracee.thread_mut(index);
    let mut running = running;
    loop {
        let (stopped, stop) = if alone {
            running.wait()?
        } else {
            running.wait_among_many()?
        };
        running = match stop {
            Stop::Signal(signal) => {
                let info = stopped.siginfo()?;
                // The place tells ours from one that the process had sent itself before: Go does.
                if signal == closing
                    && info.code() == SI_TKILL
                    && info.sender() == vpid
                    && stopped.regs()?.ip() == end
                {
                    thread.stopped = Some(stopped);
                    return Ok(());
                }
                if is_fault(signal) && info.code() > 0 {
                    let ip = stopped.regs()?.ip();
                    thread.stopped = Some(stopped);
                    return Err(Error::Stray {
                        pid,
                        stop: format!("{info:?}"),
                        ip,
                    });
                }
                thread.deferred.push(info);
                stopped.cont(0)?
            }
            Stop::Interrupt | Stop::Group(_) | Stop::Syscall => stopped.cont(0)?,
        };
    }
}

fn is_fault(signal: i32) -> bool {
    [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGTRAP,
        libc::SIGSYS,
    ]
    .contains(&signal)
}

/// Unmaps the nursery from built processes, from all at the same time. A task is stopped behind the call, still
/// inside the kernel, so no instruction is needed there: the caller sets the final registers. The stop is one of its
/// own, not the exit of the call: at such an exit some kernels would take the new registers for the result of
/// `munmap` and issue that again if they look so.
pub(crate) fn vanish(tracees: &mut [(&mut Tracee, Workplace)]) -> Result<()> {
    let alone = tracees.len() == 1;
    let mut open = Vec::with_capacity(tracees.len());
    for (index, (tracee, workplace)) in tracees.iter_mut().enumerate() {
        open.push((index, start_to_vanish(tracee, *workplace)?, 0));
    }
    while !open.is_empty() {
        for (index, running, mut crossings) in std::mem::take(&mut open) {
            let on = go_on_vanishing(tracees[index].0, running, &mut crossings, alone)?;
            open.extend(on.map(|running| (index, running, crossings)));
        }
    }
    Ok(())
}

fn start_to_vanish(tracee: &mut Tracee, workplace: Workplace) -> Result<Running> {
    let signal = tracee.signal;
    let tgid = tracee.vpid().as_raw().cast_unsigned();
    let start = workplace.code.min(workplace.rooms);
    let end = (workplace.rooms + workplace.size).max(workplace.code + 4096);
    let nr = u64::from(Sysno::munmap.id().unsigned_abs());
    let job = StubJob::Once {
        nr,
        args: [start, end - start, 0, 0, 0, 0],
    };
    let thread = tracee.thread_mut(0);
    let stopped = thread.stopped.take().ok_or(Error::Gone(thread.tid))?;
    let mut regs = thread.natural().clone();
    let entry = Entry {
        job,
        thread: (tgid, tgid),
        signal: signal.cast_unsigned(),
        heal: 0,
    };
    Native::enter(&mut regs, workplace.code, &entry);
    stopped.set_regs(&regs)?;
    stopped.set_mask(&all_but(signal))?;
    thread.hijacked = true;
    stopped.until_syscall()
}

/// From one stop to the next; `None`: it has come to the last.
fn go_on_vanishing(
    tracee: &mut Tracee,
    running: Running,
    crossings: &mut u32,
    alone: bool,
) -> Result<Option<Running>> {
    let pid = tracee.pid();
    let thread = tracee.thread_mut(0);
    let (stopped, stop) = if alone {
        running.wait()?
    } else {
        running.wait_among_many()?
    };
    match stop {
        Stop::Syscall => *crossings += 1,
        Stop::Signal(signal) if is_fault(signal) => {
            let ip = stopped.regs()?.ip();
            return Err(Error::Stray {
                pid,
                stop: format!("{stop:?}"),
                ip,
            });
        }
        Stop::Signal(_) => thread.deferred.push(stopped.siginfo()?),
        Stop::Interrupt | Stop::Group(_) => {}
    }
    if *crossings < 2 {
        stopped.until_syscall().map(Some)
    } else if stop == Stop::Interrupt {
        thread.stopped = Some(stopped);
        Ok(None)
    } else {
        stopped.interrupt()?;
        stopped.cont(0).map(Some)
    }
}
