//! The end of a restore: all are let go in one moment.

use criu_kind::{Result, Within};
use criu_net::Arrival;
use criu_task::{TaskState, birth};
use criu_tracee::{Heir, Tracee, leave_all};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::world::World;

impl World<'_> {
    /// Lets all go together: if the driver dies meanwhile, either all end or all go on. With several processes, with
    /// connections or with what outlives processes, somebody else sees to that: from here on, in place of `early`.
    pub(crate) fn wake(
        mut self,
        stopped: bool,
        arrival: &Arrival,
        early: Option<Heir>,
    ) -> Result<()> {
        let processes: Vec<Pid> = self.held.iter().map(Tracee::pid).collect();
        let mut heir = None;
        if processes.len() > 1 || arrival.count() > 0 || early.is_some() {
            let or_say = |done: Result<()>| {
                if let Err(error) = done {
                    tracing::error!(%error, "the driver has died, and its connections are left as they are");
                }
            };
            let names = self.files.names();
            let undo = || {
                or_say(arrival.recall());
                self.ipc.undo();
                names.undo();
            };
            let rest = || {
                or_say(arrival.go());
                names.finish();
            };
            heir = Some(Heir::appoint(&processes, undo, rest)?);
        }
        if let Some(mut early) = early {
            early.commit()?;
            early.dismiss()?;
        }
        let order = self.prepare(stopped)?;
        arrival.ready()?;
        if let Some(heir) = &mut heir {
            for tracee in &order {
                tracee.unbind()?;
            }
            heir.commit()?;
        }
        self.ipc.keep();
        self.files.names_mut().keep();
        arrival.go()?;
        self.files.names().finish();
        if let Some(heir) = &mut heir {
            heir.dismiss()?;
        }
        for tracee in order {
            let_go(tracee)?;
        }
        // Thousands of entries of which nothing is open any more, and the program ends.
        std::mem::forget(self.files);
        Ok(())
    }

    /// Gives all what they go on with, and nothing of ours is left in them; children come before parents.
    fn prepare(&mut self, stopped: bool) -> Result<Vec<Tracee>> {
        let mut held: Vec<Option<Tracee>> = self.held.drain(..).map(Some).collect();
        // Whose stop the parent knows of already stops while that still is held and can forget it.
        for (image, here) in self.alive.iter().rev() {
            let task = &self.model.tasks[*image];
            let signal = self.stop_signal(*image, stopped);
            let Some(parent) = self.parent(*image).filter(|_| task.stop_reported()) else {
                continue;
            };
            if let (Some(signal), Some(mut child)) = (signal, held[*here].take()) {
                child.leave()?;
                child.stop(signal)?;
                let pid = child.pid();
                let_go(child)?;
                let told = self.forget_stop(&mut held, parent, task.pid());
                told.inspect_err(|_| {
                    // It may have ended by itself; why the restore fails is told in any case.
                    kill(pid, Signal::SIGKILL).ok();
                })?;
            }
        }
        leave_all(held.iter_mut().flatten())?;
        let mut signals: Vec<Option<i32>> = vec![None; held.len()];
        for (image, here) in &self.alive {
            signals[*here] = self.stop_signal(*image, stopped);
        }
        let mut order = Vec::new();
        for (tracee, signal) in held.into_iter().zip(signals).rev() {
            let Some(mut tracee) = tracee else { continue };
            if let Some(signal) = signal {
                tracee.stop(signal)?;
            }
            order.push(tracee);
        }
        Ok(order)
    }

    /// The signal that a process is to be stopped with.
    fn stop_signal(&self, image: usize, all: bool) -> Option<i32> {
        let tc = self.model.tasks[image].core.tc.as_ref();
        let stopped = tc.is_some_and(|tc| tc.task_state == TaskState::Stopped.number());
        let signal = tc.and_then(|tc| tc.stop_signo).unwrap_or(0).cast_signed();
        (all || stopped).then_some(if signal == 0 { libc_sigstop() } else { signal })
    }

    /// The living parent of a process, if it is restored too: image and where it is held.
    fn parent(&self, image: usize) -> Option<(usize, usize)> {
        let ppid = self.model.tasks[image].entry.ppid;
        let of = |image: &usize| self.model.tasks[*image].entry.pid;
        let found = self.alive.iter().find(|(image, _)| of(image) == ppid);
        found.copied()
    }

    /// Lets a parent forget that its child was stopped.
    fn forget_stop(
        &self,
        held: &mut [Option<Tracee>],
        (image, here): (usize, usize),
        child: i32,
    ) -> Result<()> {
        let task = &self.model.tasks[image];
        match &mut held[here] {
            Some(parent) => birth::take_stop_report(parent, child, task.has_queued(libc_sigchld()))
                .within(|| task.subject()),
            None => Ok(()),
        }
    }
}

fn let_go(tracee: Tracee) -> Result<()> {
    match tracee.detach() {
        Ok(()) | Err(criu_tracee::Error::Gone(_)) => Ok(()),
        Err(error) if error.errno() == Some(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn libc_sigchld() -> i32 {
    Signal::SIGCHLD as i32
}

fn libc_sigstop() -> i32 {
    Signal::SIGSTOP as i32
}
