//! What tasks are given when all of them are there: terminals, sockets, descriptors.

use std::collections::HashMap;

use criu_files::{Arrivals, Sites};
use criu_image::id::{FdTableId, VPid};
use criu_kind::{Result, Within};
use criu_task::birth;
use criu_tracee::{Job, Program, Site, Tracee, run_each};
use nix::unistd::Pid;

use crate::world::World;

impl World<'_> {
    /// The groups in the foreground of terminals.
    pub(crate) fn foreground(&mut self) -> Result<()> {
        for (sid, fd, pgrp) in self.files.controlling_terminals() {
            let leader = self
                .alive
                .iter()
                .find(|(image, _)| self.model.tasks[*image].entry.pid == sid);
            let lives = self.model.tasks.iter().any(|task| task.entry.pgid == pgrp);
            if let Some((image, here)) = leader.copied()
                && lives
            {
                birth::set_foreground(&mut self.held[here], fd, pgrp)
                    .within(|| self.model.tasks[image].subject())?;
            }
        }
        Ok(())
    }

    /// Files whose makers are remembered.
    fn open_late(&mut self) -> Result<()> {
        let places = self.held.iter().enumerate();
        let places = places.map(|(here, held)| (held.vpid().as_raw().unsigned_abs(), here));
        let mut sites = Processes {
            places: places.collect(),
            held: &mut self.held,
        };
        self.files.open_late(&mut sites)
    }

    /// Processes that are dead but whose directories in `/proc` are open.
    pub(crate) fn raise_helpers(&mut self) -> Result<()> {
        let pids: Vec<i32> = self
            .files
            .helper_pids()
            .map(|pid| pid.get().cast_signed())
            .collect();
        for pid in pids {
            let helper = birth::clone_child(&mut self.held[0], pid, 0, &self.nursery)?;
            self.helpers.push((self.held.len(), pid));
            self.held.push(helper);
        }
        let makers: Vec<i32> = self
            .files
            .maker_pids()
            .map(|pid| pid.get().cast_signed())
            .collect();
        for pid in makers {
            match birth::clone_child(&mut self.held[0], pid, 0, &self.nursery) {
                Ok(helper) => {
                    self.helpers.push((self.held.len(), pid));
                    self.held.push(helper);
                }
                Err(error) => {
                    tracing::warn!(pid, %error, "sockets that this process made will say that another one did");
                }
            }
        }
        Ok(())
    }

    /// Gives some processes what they are to have, all at the same time.
    fn furnish(&mut self, ready: &mut Vec<Furnishing>) -> Result<()> {
        let ready = std::mem::take(ready);
        let jobs = ready.iter().map(|one| Job {
            tracee: one.here,
            thread: 0,
            program: &one.program,
        });
        let jobs: Vec<Job<'_>> = jobs.collect();
        let outcomes = run_each(&mut self.held, &jobs);
        let failed = |(index, error): (usize, criu_tracee::Error)| {
            let failed: Result<()> = Err(error.into());
            let subject = || self.task(ready[index].image).subject();
            failed
                .within(subject)
                .expect_err("it is an error from the start")
        };
        let outcomes = outcomes.map_err(failed)?;
        for (one, outcome) in ready.iter().zip(outcomes) {
            let placed = one.arrivals.check(&outcome);
            placed.within(|| self.task(one.image).subject())?;
        }
        Ok(())
    }

    pub(crate) fn place(&mut self) -> Result<()> {
        let mut tables: Vec<(FdTableId, usize, usize)> = Vec::new();
        for (image, here) in &self.alive {
            let Some(body) = &self.model.tasks[*image].body else {
                continue;
            };
            let table = FdTableId::new(body.ids.files_id);
            self.files
                .set_tasks([(table, VPid::new(self.model.tasks[*image].entry.pid))]);
            tables.push((table, *image, *here));
        }
        tables.sort_by_key(|(table, ..)| *table);
        self.open_late()?;
        let lanes = self.files.lanes();
        let mut ready: Vec<Furnishing> = Vec::new();
        for (position, (table, image, here)) in tables.iter().enumerate() {
            let task = self.task(*image);
            let Some(body) = &task.body else { continue };
            // Of those that share a table the last one fills it: nothing of ours is in it then.
            let fills = tables.get(position + 1).map(|(next, ..)| next) != Some(table);
            if ready.len() == lanes || fills && self.files.needs_others(*table) {
                self.furnish(&mut ready)?;
            }
            let mut program = Program::new();
            self.files.fs_program(&body.fs, &mut program)?;
            let arrivals = match fills {
                true => self.files.place(*table, &mut program)?,
                false => Arrivals::default(),
            };
            ready.push(Furnishing {
                image: *image,
                here: *here,
                program,
                arrivals,
            });
            if !fills {
                // Who shares its table must be done with it when that is filled.
                self.furnish(&mut ready)?;
            }
        }
        self.furnish(&mut ready)?;
        let everybody = tables.clone();
        tables.dedup_by_key(|(table, ..)| *table);
        for (here, pid) in std::mem::take(&mut self.helpers).into_iter().rev() {
            debug_assert_eq!(here, self.held.len() - 1);
            if let Some(helper) = self.held.pop() {
                helper.exit(0)?;
                birth::reap(&mut self.held[0], pid)?;
            }
        }
        for (table, image, here) in &tables {
            let mut program = Program::new();
            self.files.settle(*table, &mut program)?;
            if program.is_empty() {
                continue;
            }
            self.held[*here]
                .run(&program)
                .within(|| self.model.tasks[*image].subject())?;
        }
        for (table, image, here) in &tables {
            let mut program = Program::new();
            self.files.arm(*table, &mut program)?;
            if program.is_empty() {
                continue;
            }
            self.held[*here]
                .run(&program)
                .within(|| self.model.tasks[*image].subject())?;
        }
        let armers = self.files.armers();
        for (table, image, here) in &everybody {
            let pid = VPid::new(self.model.tasks[*image].entry.pid);
            if !armers.contains(&pid) {
                continue;
            }
            let mut program = Program::new();
            self.files.arm_own(pid, *table, &mut program)?;
            self.held[*here]
                .run(&program)
                .within(|| self.model.tasks[*image].subject())?;
        }
        self.files.last()
    }
}

/// What a process is about to be given.
struct Furnishing {
    image: usize,
    here: usize,
    program: Program,
    arrivals: Arrivals,
}

/// The held processes by pid.
struct Processes<'a> {
    places: HashMap<u32, usize>,
    held: &'a mut [Tracee],
}

impl Sites for Processes<'_> {
    fn process(&mut self, pid: VPid) -> Option<(&mut dyn Site, Pid)> {
        let held = &mut self.held[*self.places.get(&pid.get())?];
        let real = held.pid();
        Some((held, real))
    }

    fn root(&self) -> VPid {
        VPid::new(self.held[0].vpid().as_raw().unsigned_abs())
    }
}
