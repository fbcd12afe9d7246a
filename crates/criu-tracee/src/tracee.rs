//! A held process: its threads, its memory, and the room in which programs run.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use criu_arch::{Arch, HealContext, Regs, Timeout, TimeoutForm};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{Context, Error, Result, gone_is_fine, if_allowed};
use crate::keep::Tail;
use crate::look;
use crate::memory::Memory;
use crate::native::{Native, NativeRegs};
use crate::place::Place;
use crate::program::{Program, numbered};
use crate::ptrace;
use crate::run::{self, Workplace};
use crate::site::{Outcome, Site, word};
use crate::sleep::Naps;
use crate::spawn::Nursery;
use crate::stop::{Hold, Running, Stop, Stopped};
use crate::thread::Thread;
use crate::wait;

/// Bytes of the leader's room for records and data, and of every other thread's.
pub(crate) const LEADER_ROOM: u64 = 128 << 10;
pub(crate) const THREAD_ROOM: u64 = (HEAL_ROOM + (7 << 8)).next_multiple_of(256);
/// The end of the leader's room holds what it does first when it heals itself.
pub(crate) const UNDO_ROOM: u64 = 2 << 10;
/// The front of a room holds its thread's healing context.
pub(crate) const HEAL_ROOM: u64 = Native::HEAL_SIZE.next_multiple_of(256) as u64;

/// A held process.
///
/// Dropping it lets a dumped process go on as it was found, and ends one that was being built.
#[derive(Debug)]
pub struct Tracee {
    pub(crate) pid: Pid,
    vpid: Pid,
    hold: Hold,
    pub(crate) threads: Vec<Thread>,
    memory: Memory,
    place: Option<Place>,
    pub(crate) workplace: Option<Workplace>,
    pub(crate) signal: i32,
    tail: Option<Tail>,
}

impl Tracee {
    /// Stops all threads of a process, also those that appear meanwhile.
    pub fn seize(pid: Pid) -> Result<Self> {
        let mut all = Self::seize_all(&[pid], None)?;
        all.pop().ok_or(Error::Gone(pid))
    }

    /// Stops all threads of several processes: all are interrupted before the first is waited for.
    /// Processes that have gone are left out. Who has not stopped by the deadline is an error.
    pub fn seize_all(pids: &[Pid], deadline: Option<Instant>) -> Result<Vec<Self>> {
        let mut found: Vec<(Pid, Vec<Thread>)> =
            pids.iter().map(|pid| (*pid, Vec::new())).collect();
        let list = || -> Vec<Vec<Pid>> { pids.iter().map(|pid| look::thread_ids(*pid)).collect() };
        let mut seen = list();
        let running = pids.iter().zip(&seen);
        let running = running.flat_map(|(pid, tids)| tids.iter().map(|tid| (*pid, *tid)));
        let naps = Naps::of(&running.collect::<Vec<_>>());
        loop {
            let mut fresh = Vec::new();
            for (slot, (_, threads)) in found.iter().enumerate() {
                let known: HashSet<Pid> = threads.iter().map(|thread| thread.tid).collect();
                for tid in std::mem::take(&mut seen[slot]) {
                    if known.contains(&tid) {
                        continue;
                    }
                    match Running::seize(tid, Hold::Dump) {
                        Ok(running) => fresh.push((slot, tid, running)),
                        Err(Error::Gone(_)) => {}
                        // Who is just dying may not be seized: it will be gone, or a zombie.
                        Err(_) if look::is_dead(tid) => {}
                        Err(error) => return Err(look::already_traced(tid, error)),
                    }
                }
            }
            if fresh.is_empty() {
                break;
            }
            for (_, _, running) in &fresh {
                gone_is_fine(running.interrupt())?;
            }
            for (slot, tid, running) in fresh {
                let held = running.wait_held(deadline);
                match held.and_then(|held| Thread::pass(held, deadline)) {
                    Ok(held) => {
                        let mut thread = Thread::held(tid, tid, held)?;
                        if let Some(sleep) = naps.of_stopped(tid) {
                            thread.slept = sleep.lasted;
                            let (nr, args, ip) = &sleep.call;
                            thread.natural.woken_in(*nr, args, *ip);
                        }
                        thread.keep_regsets()?;
                        found[slot].1.push(thread);
                    }
                    Err(Error::Gone(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            // Until there are no others: those that ran so far may have made some.
            seen = list();
        }
        let mut all = Vec::new();
        for (pid, mut threads) in found {
            threads.sort_by_key(|thread| (thread.tid != pid, thread.tid));
            if threads.is_empty() {
                continue;
            }
            let memory = Memory::open(pid)?;
            let tids: Vec<Pid> = threads.iter().map(|thread| thread.tid).collect();
            let statuses = look::side_by_side(&tids, |tid| look::thread_status(pid, *tid));
            for (thread, status) in threads.iter_mut().zip(statuses) {
                gone_is_fine(thread.look_at_status(status))?;
                gone_is_fine(thread.look_at_rseq(&memory))?;
            }
            let signal = look::closing_signal(&threads[0].status_text(), threads[0].stop, None);
            let vpid = threads[0].vtid;
            all.push(Self {
                pid,
                vpid,
                hold: Hold::Dump,
                threads,
                memory,
                place: None,
                workplace: None,
                signal,
                tail: None,
            });
        }
        Ok(all)
    }

    /// Takes over a process that was born traced with the nursery in its memory.
    pub fn adopt(pid: Pid, vpid: Pid, nursery: &Nursery) -> Result<Self> {
        let held = Running::born(pid).wait_held(None)?;
        Self::adopt_held(pid, vpid, nursery, held)
    }

    pub(crate) fn adopt_held(
        pid: Pid,
        vpid: Pid,
        nursery: &Nursery,
        held: (Stopped, Stop),
    ) -> Result<Self> {
        let mut thread = Thread::held(pid, vpid, held)?;
        thread.hijacked = true;
        Ok(Self {
            pid,
            vpid,
            hold: Hold::Restore,
            threads: vec![thread],
            memory: Memory::open(pid)?,
            place: None,
            workplace: Some(Workplace {
                code: nursery.code(),
                rooms: nursery.rooms(),
                size: nursery.rooms_size(),
            }),
            signal: libc::SIGURG,
            tail: None,
        })
    }

    /// Takes over a thread that a program of this process cloned with `CLONE_PTRACE`.
    pub fn adopt_thread(&mut self, tid: Pid, vtid: Pid) -> Result<usize> {
        let held = Running::born(tid).wait_held(None)?;
        let mut thread = Thread::held(tid, vtid, held)?;
        thread.hijacked = true;
        self.threads.push(thread);
        Ok(self.threads.len() - 1)
    }

    /// The process id as the tracer sees it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The process id in its own pid namespace.
    pub fn vpid(&self) -> Pid {
        self.vpid
    }

    /// Its threads, the leader first.
    pub fn threads(&self) -> &[Thread] {
        &self.threads
    }

    /// Its threads, the leader first.
    pub fn threads_mut(&mut self) -> &mut [Thread] {
        &mut self.threads
    }

    /// Its memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Bytes of a visited process that the stub lies over, as they are without it: where and what.
    pub fn borrowed(&self) -> Option<(u64, &[u8])> {
        self.place.as_ref().map(Place::before)
    }

    pub(crate) fn hold(&self) -> Hold {
        self.hold
    }

    pub(crate) fn thread_mut(&mut self, index: usize) -> &mut Thread {
        &mut self.threads[index]
    }

    /// Lets threads under seccomp filters run our calls until they are let go. Without `CAP_SYS_ADMIN`
    /// filters stay in force, and what they forbid fails.
    pub fn suspend_seccomp_if_allowed(&self) -> Result<()> {
        for thread in &self.threads {
            if_allowed(thread.stopped()?.suspend_seccomp(self.hold))?;
        }
        Ok(())
    }

    /// A thread other than the leader as a site.
    pub fn thread(&mut self, index: usize) -> ThreadSite<'_> {
        ThreadSite {
            tracee: self,
            index,
        }
    }

    /// Brings the stub and the room for programs into a visited process. Mappings change: read
    /// `/proc/PID/maps` before.
    pub fn install(&mut self) -> Result<()> {
        if self.workplace.is_some() {
            return Ok(());
        }
        let place = Place::take(self.pid, &self.memory)?;
        let code = place.code();
        let heal = place.heal();
        self.place = Some(place);
        self.write_heal(0, heal, (0, 0), 0)?;
        let others = self.threads.len() as u64 - 1;
        let size = (LEADER_ROOM + others * THREAD_ROOM).next_multiple_of(64 << 10);
        let prot = (libc::PROT_READ | libc::PROT_WRITE).cast_unsigned();
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).cast_unsigned();
        // A task of 32 bits finds no place without a hint below 4 GiB.
        let hint = if self.threads[0].natural.is_compat() {
            look::low_hole(self.pid, size)?
        } else {
            0
        };
        let args = [hint, size, prot.into(), flags.into(), u64::MAX, 0];
        let map = numbered(Native::CALLS.mmap.0);
        let rooms = word(run::once(self, code, heal, map, args)?);
        self.workplace = Some(Workplace { code, rooms, size });
        self.write_heal(0, heal, self.unmap(), 0)?;
        for index in 1..self.threads.len() {
            let at = run::room(rooms, index).start;
            self.write_heal(index, at, (0, 0), 0)?;
        }
        Ok(())
    }

    /// What a leader that heals itself unmaps: the rooms, if no other thread may still be in its own.
    fn unmap(&self) -> (u64, u64) {
        match &self.workplace {
            Some(workplace) if self.threads.len() == 1 => (workplace.rooms, workplace.size),
            _ => (0, 0),
        }
    }

    fn write_heal(&self, index: usize, at: u64, unmap: (u64, u64), undo: u64) -> Result<()> {
        let thread = &self.threads[index];
        let context = HealContext {
            regs: &thread.natural,
            kept: &thread.kept,
            mask: &thread.mask,
            undo,
            unmap,
        };
        self.memory.write(at, &Native::heal(&context))
    }

    /// What the leader does first if it has to heal itself: close descriptors that a program left open
    /// between two batches, say. `None`: nothing. The program must fit 2 KiB.
    pub fn set_undo(&mut self, program: Option<&Program>) -> Result<()> {
        let (Some(_), Some(workplace)) = (&self.place, &self.workplace) else {
            return Ok(());
        };
        let at = workplace.rooms + LEADER_ROOM - UNDO_ROOM;
        let mut undo = 0;
        if let Some(program) = program
            && let Some(bytes) = run::undo(program, at)?
        {
            self.memory.write(at, &bytes)?;
            undo = at;
        }
        self.write_heal(0, self.heal_at(0), self.unmap(), undo)
    }

    pub(crate) fn heal_at(&self, index: usize) -> u64 {
        match (&self.place, &self.workplace) {
            (Some(place), _) if index == 0 => place.heal(),
            (Some(_), Some(workplace)) => run::room(workplace.rooms, index).start,
            _ => 0,
        }
    }

    /// Removes what [`Tracee::install`] brought and gives all threads back to themselves, still
    /// stopped.
    fn uninstall(&mut self) -> Result<()> {
        if let (Some(place), Some(workplace)) = (&self.place, &self.workplace) {
            let (code, heal) = (place.code(), place.heal());
            let (rooms, size) = (workplace.rooms, workplace.size);
            for index in 1..self.threads.len() {
                self.settle(index)?;
            }
            self.write_heal(0, heal, (0, 0), 0)?;
            run::once(
                self,
                code,
                heal,
                syscalls::Sysno::munmap,
                [rooms, size, 0, 0, 0, 0],
            )?;
            self.workplace = None;
        }
        for index in 0..self.threads.len() {
            self.settle(index)?;
        }
        if let Some(place) = self.place.take() {
            place.give_back(&self.memory)?;
        }
        Ok(())
    }

    /// Gives a thread back to itself.
    fn settle(&mut self, index: usize) -> Result<()> {
        if self.threads[index].settled {
            return Ok(());
        }
        let regs = self.as_found(index);
        let thread = &mut self.threads[index];
        // Not even a thread that did nothing for us goes on by itself where the kernel would not issue
        // its call again.
        thread.hijacked |= regs != thread.natural;
        thread.put_back(&regs)?;
        thread.settled = true;
        match &thread.rseq {
            Some(rseq) => rseq.put_back(&self.memory),
            None => Ok(()),
        }
    }

    /// The registers with which a thread goes on as if it had not been stopped.
    fn as_found(&mut self, index: usize) -> NativeRegs {
        let thread = &self.threads[index];
        let mut regs = thread.natural.resumed();
        if !thread.natural.is_interrupted() {
            return regs;
        }
        // The thread still is at the end of its call, and the kernel knows what becomes of that when a
        // handler runs or a stopped thread is continued.
        let handler = look::handler_is_next(thread.tid, &thread.mask);
        if handler || matches!(thread.stop, Stop::Group(_)) {
            return thread.natural.left_to_kernel(handler);
        }
        if let Some((timeout, rest)) = thread.rest(&self.memory)
            && !timeout.remembered
            && let Some(value) = self.keep_time(&timeout, rest)
        {
            regs.set_argument(timeout.argument, value);
        }
        regs
    }

    /// The argument that says how long to wait still, for a call that is to be issued again. A time
    /// that the call reads from memory is kept in the process, if there is room.
    pub fn keep_time(&mut self, timeout: &Timeout, rest: Duration) -> Option<u64> {
        if timeout.form == TimeoutForm::Millis {
            // Rather too many.
            return u64::try_from(rest.as_micros().div_ceil(1000)).ok();
        }
        if self.tail.is_none() {
            self.tail = Tail::of(self.pid, &self.memory);
        }
        self.tail.as_mut()?.keep(&self.memory, timeout, rest)
    }

    /// Lets the process go on as it was found.
    pub fn release(mut self) -> Result<()> {
        self.let_go()
    }

    /// Lets go of the process but leaves it stopped, as by `SIGSTOP`.
    pub fn release_stopped(mut self) -> Result<()> {
        gone_is_fine(kill(self.pid, Signal::SIGSTOP).call("kill"))?;
        self.let_go()
    }

    fn let_go(&mut self) -> Result<()> {
        let cured = self.uninstall();
        let mut stop_again = false;
        for mut thread in self.threads.drain(..).rev() {
            for info in thread.deferred.drain(..) {
                stop_again |= info.signal() == libc::SIGSTOP;
                if info.signal() != libc::SIGSTOP {
                    gone_is_fine(ptrace::tgkill(self.pid, thread.tid, info.signal()))?;
                }
            }
            if let Some(stopped) = thread.stopped.take() {
                if stop_again && thread.tid == self.pid {
                    gone_is_fine(kill(self.pid, Signal::SIGSTOP).call("kill"))?;
                }
                gone_is_fine(stopped.detach())?;
            }
        }
        gone_is_fine(cured)
    }

    /// Begins to end the process: that takes the kernel a moment, in which other work can be done.
    pub fn condemn(&self) -> Result<()> {
        gone_is_fine(kill(self.pid, Signal::SIGKILL).call("kill"))
    }

    /// Ends the process. It stays a zombie for whoever is its parent.
    pub fn kill(mut self) -> Result<()> {
        self.condemn()?;
        // A traced thread must be waited for by its tracer, or its leader cannot be reaped.
        let threads = std::mem::take(&mut self.threads);
        self.place = None;
        let mut threads = threads.iter().rev();
        threads.try_for_each(|thread| gone_is_fine(wait::stop_of_many(thread.tid).map(drop)))
    }

    /// The same, but it is waited for no longer than until the deadline: to free gigabytes takes a while. What is
    /// left of it then ends by itself, and whoever is its parent can reap it once this tracer has ended too.
    pub fn kill_until(mut self, deadline: Instant) -> Result<()> {
        self.condemn()?;
        let threads = std::mem::take(&mut self.threads);
        self.place = None;
        let mut threads = threads.iter().rev();
        threads.try_for_each(|thread| match wait::stop(thread.tid, Some(deadline)) {
            Err(Error::Unresponsive(_)) => Ok(()),
            ended => gone_is_fine(ended.map(drop)),
        })
    }
}

impl Site for Tracee {
    fn run(&mut self, program: &Program) -> Result<Outcome> {
        run::run(self, 0, program)
    }
}

/// A thread of a process as a site.
#[derive(Debug)]
pub struct ThreadSite<'a> {
    tracee: &'a mut Tracee,
    index: usize,
}

impl Site for ThreadSite<'_> {
    fn run(&mut self, program: &Program) -> Result<Outcome> {
        run::run(self.tracee, self.index, program)
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        match self.hold {
            Hold::Dump => {
                if let Err(error) = self.let_go() {
                    tracing::error!(pid = self.pid.as_raw(), %error, "a held process could not be put back");
                }
            }
            Hold::Restore => {
                for thread in self
                    .threads
                    .iter()
                    .rev()
                    .filter(|thread| thread.tid != self.pid)
                {
                    kill(thread.tid, Signal::SIGKILL).ok();
                }
                if !self.threads.is_empty() {
                    // It fails for who is dead already; the others die with us in any case (EXITKILL).
                    kill(self.pid, Signal::SIGKILL).ok();
                    for thread in self.threads.iter().rev() {
                        drop(wait::reap(thread.tid));
                    }
                }
            }
        }
    }
}
