//! The tasks on their way back: born, filled, settled, sealed, and let go together.

use criu_files::Files;
use criu_image::Store;
use criu_ipc::Objects;
use criu_kind::{Now, Result, Within};
use criu_mm::{FillJob, FillStats, Ground, Materials, Shared, SpaceImage};
use criu_ns::Going;
use criu_proc::ProcDir;
use criu_task::{Machine, NewThread, Plan, Role, Step, birth};
use criu_tracee::{Job, Near, Nursery, Program, Site, Tracee, run_all, spawn_root};
use nix::unistd::Pid;

use crate::blame::blame;
use crate::ipc;
use crate::load::{Model, Task};
use crate::progress::Progress;
use crate::shares::Shares;

/// `clone3(2)`: the new task is a child of our parent.
const CLONE_PARENT: u64 = 0x8000;

/// The held tasks. Dropping it ends them all.
pub(crate) struct World<'m> {
    pub(crate) model: &'m Model,
    pub(crate) files: Files<'m>,
    ground: Ground,
    shared: Shared,
    pub(crate) ipc: ipc::Back,
    /// What became of the pages.
    pub(crate) filled: FillStats,
    progress: &'m Progress,
    /// Bytes of pages that the tasks have read.
    brought: u64,
    /// Processes of the images that live, parents first: index in the model, and where.
    pub(crate) alive: Vec<(usize, usize)>,
    /// All that are held, zombies and helpers gone.
    pub(crate) held: Vec<Tracee>,
    /// Helpers that must be there until descriptors are placed.
    pub(crate) helpers: Vec<(usize, i32)>,
    pub(crate) nursery: Nursery,
    /// Which nodes of the plan clone others.
    bears: Vec<bool>,
    /// What processes have in common.
    shares: Shares,
    /// Tasks whose memory nobody inherits.
    unfilled: Vec<Unfilled>,
}

/// A task that is cloned but not yet filled: its index in the model, where it is held, and the process of
/// the images whose memory it was cloned with.
#[derive(Clone, Copy)]
struct Unfilled {
    image: usize,
    here: usize,
    parent: Option<usize>,
}

/// How many tasks are filled at once.
const AT_ONCE: usize = 16;

impl<'m> World<'m> {
    /// Clones the tree, lays out its memory, makes sessions and groups, and ends zombies and helpers.
    pub(crate) fn spawn(
        model: &'m Model,
        files: Files<'m>,
        ipc: Objects,
        plan: &Plan,
        store: &dyn Store,
        sibling: bool,
        progress: &'m Progress,
    ) -> Result<Self> {
        progress.bytes(model.spaces.iter().map(SpaceImage::stored).sum());
        let threads = model
            .tasks
            .iter()
            .map(|task| task.threads.len())
            .max()
            .unwrap_or(0);
        let shared = Shared::create(&model.spaces, store)?;
        let ipc = ipc::Back::load(ipc, &model.spaces, store)?;
        let ground = Ground::find(&model.spaces, threads)?;
        let nursery = ground.nursery()?;
        let world = Self {
            model,
            files,
            ground,
            shared,
            ipc,
            filled: FillStats::default(),
            progress,
            brought: 0,
            alive: Vec::new(),
            held: Vec::new(),
            helpers: Vec::new(),
            nursery,
            bears: plan.bears(),
            shares: Shares::of(model, plan)?,
            unfilled: Vec::new(),
        };
        world.follow(plan, if sibling { CLONE_PARENT } else { 0 })
    }

    fn follow(mut self, plan: &Plan, flags: u64) -> Result<Self> {
        // Where each node is held.
        let mut at: Vec<Option<usize>> = vec![None; plan.nodes.len()];
        let mut ended = Vec::new();
        for (number, step) in plan.steps.iter().enumerate() {
            let (Step::Clone(node)
            | Step::Fill(node)
            | Step::Setsid(node)
            | Step::Setpgid(node)
            | Step::End(node)) = *step;
            if let (Step::Clone(_), None) = (step, at[node]) {
                let together = self.born_together(plan, number);
                self.bear(plan, &together, flags, &mut at)
                    .within(|| self.subject(plan, node))?;
            }
            let done = self.step(*step, plan, &at, &mut ended);
            done.within(|| self.subject(plan, node))?;
        }
        self.leave_shared(plan, &at)?;
        let unfilled = std::mem::take(&mut self.unfilled);
        for tasks in unfilled.chunks(AT_ONCE) {
            self.fill(tasks)?;
        }
        self.name_reapers()?;
        self.part_from(ended)?;
        Ok(self)
    }

    /// The tasks that one creator can clone in one go, from this step on: all until it has to do something else. (What
    /// leaves are filled with can wait.)
    fn born_together(&self, plan: &Plan, from: usize) -> Vec<usize> {
        let mut together = Vec::new();
        let mut creator = None;
        for step in &plan.steps[from..] {
            match *step {
                Step::Clone(node) if together.is_empty() || plan.nodes[node].creator == creator => {
                    creator = plan.nodes[node].creator;
                    together.push(node);
                    if creator.is_none() {
                        break;
                    }
                }
                Step::Fill(node) if !self.bears[node] => {}
                _ => break,
            }
        }
        together
    }

    /// Clones the root, or children of one creator.
    fn bear(
        &mut self,
        plan: &Plan,
        nodes: &[usize],
        flags: u64,
        at: &mut [Option<usize>],
    ) -> Result<()> {
        let pid = |node: usize| plan.nodes[node].pid;
        let born = match plan.nodes[nodes[0]].creator {
            None => vec![self.root_task(pid(nodes[0]), flags)?],
            Some(creator) => {
                let creator = at[creator].expect("creators are cloned before their children");
                let children = nodes.iter();
                let children = children.map(|node| (pid(*node), self.shares.at_birth(*node)));
                let children: Vec<_> = children.collect();
                birth::clone_children(&mut self.held[creator], &children, &self.nursery)?
            }
        };
        for (node, born) in nodes.iter().zip(born) {
            at[*node] = Some(self.held.len());
            self.held.push(born);
        }
        Ok(())
    }

    /// Who only passed a descriptor table on, or a working directory, gets one of its own.
    fn leave_shared(&mut self, plan: &Plan, at: &[Option<usize>]) -> Result<()> {
        for (node, flags) in self.shares.left() {
            let here = at[node].expect("all are cloned");
            birth::unshare(&mut self.held[here], flags).within(|| self.subject(plan, node))?;
        }
        Ok(())
    }

    /// Orphans find their reaper when whoever bore them ends.
    fn name_reapers(&mut self) -> Result<()> {
        for (image, here) in &self.alive {
            let tc = self.model.tasks[*image].core.tc.as_ref();
            if tc.is_some_and(|tc| tc.child_subreaper == Some(true)) {
                birth::adopt_orphans(&mut self.held[*here])?;
            }
        }
        Ok(())
    }

    fn step(
        &mut self,
        step: Step,
        plan: &Plan,
        at: &[Option<usize>],
        ended: &mut Vec<(usize, u32, Option<usize>)>,
    ) -> Result<()> {
        match step {
            Step::Clone(node) => {
                if plan.nodes[node].creator.is_none() {
                    let root = self.held.last_mut().expect("it was pushed");
                    if let Some(clocks) = self.model.clocks {
                        let process = ProcDir::open(root.pid())?;
                        match criu_ns::go_on(root, &process, clocks)? {
                            Going::On(shift) => self.files.set_shift(shift),
                            Going::AsTheyAre | Going::Not(_) => {}
                        }
                    }
                    self.ipc.make(root)?;
                }
            }
            Step::Fill(node) => {
                let image = plan.nodes[node]
                    .image
                    .expect("only processes of the images are filled");
                let here = at[node].expect("it is cloned before it is filled");
                let task = Unfilled {
                    image,
                    here,
                    parent: parent_image(plan, node),
                };
                // Who has children has to be filled before they are cloned; the others can wait for
                // each other.
                if self.bears[node] {
                    self.fill(&[task])?;
                } else {
                    self.unfilled.push(task);
                }
            }
            Step::Setsid(node) => {
                let leader = &mut self.held[at[node].expect("cloned")];
                birth::setsid(leader)?;
                let sid = plan.nodes[node].pid.unsigned_abs();
                let terminals = self.files.controlling_terminals();
                if let Some((_, fd, _)) = terminals.iter().find(|(session, ..)| *session == sid) {
                    // Now, as its children inherit it.
                    birth::take_terminal(leader, *fd)?;
                }
            }
            Step::Setpgid(node) => birth::setpgid(
                &mut self.held[at[node].expect("cloned")],
                plan.nodes[node].pgid,
            )?,
            Step::End(node) => {
                let here = at[node].expect("cloned");
                let node = &plan.nodes[node];
                match node.role {
                    Role::Zombie(status) => ended.push((here, status, None)),
                    _ => ended.push((here, 0, node.creator.and_then(|creator| at[creator]))),
                }
            }
        }
        Ok(())
    }

    fn root_task(&self, pid: i32, flags: u64) -> Result<Tracee> {
        let mut root =
            spawn_root(&self.nursery, &[pid], flags).map_err(|error| birth::taken(pid, error))?;
        criu_mm::clear(&mut root, &self.ground)?;
        let mut program = Program::new();
        self.files.leave(&mut program);
        root.run(&program)?;
        Ok(root)
    }

    /// Fills tasks side by side: each brings in its own pages.
    fn fill(&mut self, tasks: &[Unfilled]) -> Result<()> {
        let model = self.model;
        let space = |image: usize| {
            model.tasks[image]
                .body
                .as_ref()
                .map(|body| &model.spaces[body.space])
        };
        let materials = Materials {
            ground: &self.ground,
            files: &self.files,
            shared: &self.shared,
            segments: &self.ipc.segments,
        };
        let jobs: Vec<FillJob<'_>> = tasks
            .iter()
            .map(|task| FillJob {
                tracee: task.here,
                image: space(task.image).expect("only living processes are filled"),
                parent: task.parent.and_then(space),
            })
            .collect();
        let stats = criu_mm::fill(&mut self.held, &jobs, &materials, &mut |bytes| {
            self.brought += bytes;
            self.progress.reach(self.brought);
        })?;
        self.filled.pages_compared += stats.pages_compared;
        self.filled.pages_skipped_cow += stats.pages_skipped_cow;
        self.filled.pages_restored += stats.pages_restored;
        let filled = tasks.iter().map(|task| (task.image, task.here));
        self.alive.extend(filled);
        Ok(())
    }

    /// Ends zombies and helpers, in order; whoever is to reap a helper does.
    fn part_from(&mut self, ended: Vec<(usize, u32, Option<usize>)>) -> Result<()> {
        let mut held: Vec<Option<Tracee>> = std::mem::take(&mut self.held)
            .into_iter()
            .map(Some)
            .collect();
        for (here, status, reaper) in ended {
            let Some(tracee) = held[here].take() else {
                continue;
            };
            let mut tracee = tracee;
            let pid = tracee.vpid().as_raw();
            if reaper.is_none()
                && let Some((_, task)) = self
                    .model
                    .tasks
                    .iter()
                    .enumerate()
                    .find(|(_, task)| task.pid() == pid)
                && let Some(tc) = &task.core.tc
            {
                birth::name(&mut tracee, &tc.comm)?;
            }
            tracee.exit(status)?;
            if let Some(reaper) = reaper.and_then(|reaper| held[reaper].as_mut()) {
                birth::reap(reaper, pid)?;
            }
        }
        // The numbers of those who stay change.
        let mut place = vec![usize::MAX; held.len()];
        for (old, tracee) in held.into_iter().enumerate() {
            if let Some(tracee) = tracee {
                place[old] = self.held.len();
                self.held.push(tracee);
            }
        }
        for (_, here) in &mut self.alive {
            *here = place[*here];
        }
        Ok(())
    }

    fn subject(&self, plan: &Plan, node: usize) -> criu_kind::Subject {
        match plan.nodes[node].image {
            Some(image) => self.model.tasks[image].subject(),
            None => criu_kind::Subject::Task {
                pid: plan.nodes[node].pid,
                comm: "helper".to_owned(),
            },
        }
    }

    pub(crate) fn task(&self, image: usize) -> &'m Task {
        &self.model.tasks[image]
    }

    /// The root of the tree.
    pub(crate) fn root(&self) -> Pid {
        self.held[0].pid()
    }

    /// Threads, final memory, descriptors.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.foreground()?;
        if let Some(first) = self.held.first_mut() {
            self.shared.fill(first)?;
        }
        self.raise_helpers()?;
        for (image, here) in self.alive.clone() {
            let task = self.task(image);
            let tids: Vec<i32> = task.threads.iter().map(|(tid, _)| *tid).collect();
            let held = &mut self.held[here];
            birth::clone_threads(held, &tids).within(|| task.subject())?;
        }
        let model = self.model;
        let jobs: Vec<FillJob<'_>> = self
            .alive
            .iter()
            .filter_map(|(image, here)| {
                let body = model.tasks[*image].body.as_ref()?;
                Some(FillJob {
                    tracee: *here,
                    image: &model.spaces[body.space],
                    parent: None,
                })
            })
            .collect();
        criu_mm::finish(&mut self.held, &jobs, &self.ground, &self.files)?;
        let pid = |image: &usize| model.tasks[*image].entry.pid;
        let tasks = self.alive.iter().map(|(image, here)| (pid(image), *here));
        self.ipc.settle(&mut self.held, tasks)?;
        self.place()
    }

    /// Every thread gets what makes it what it was; the last of it takes its power away.
    pub(crate) fn seal(&mut self, machine: &Machine, near: Option<&Near>) -> Result<()> {
        let program = birth::forget_children();
        let jobs = self.alive.iter().map(|(_, here)| Job {
            tracee: *here,
            thread: 0,
            program: &program,
        });
        let jobs: Vec<Job<'_>> = jobs.collect();
        run_all(&mut self.held, &jobs)?;
        for (image, here) in self.alive.clone() {
            let task = self.task(image);
            let cores = task
                .threads
                .iter()
                .map(|(_, core)| &**core)
                .chain([&*task.core]);
            let signal = criu_task::closing_signal(cores).within(|| task.subject())?;
            self.held[here].close_with(signal);
            self.held[here].suspend_seccomp_if_allowed()?;
        }
        let now: Vec<Now> = self
            .alive
            .iter()
            .map(|(_, here)| self.now(*here, near))
            .collect::<Result<_>>()?;
        // Leaders last: they set what their threads share.
        for leaders in [false, true] {
            self.dress(leaders, &now)?;
        }
        for ((image, here), now) in self.alive.clone().into_iter().zip(&now) {
            self.push(image, here, now, machine)
                .within(|| self.model.tasks[image].subject())?;
        }
        Ok(())
    }

    fn dress(&mut self, leaders: bool, now: &[Now]) -> Result<()> {
        let mut programs = Vec::new();
        for ((image, here), now) in self.alive.iter().zip(now) {
            let task = self.task(*image);
            let range = if leaders {
                0..1
            } else {
                1..task.threads.len() + 1
            };
            for index in range {
                let Some(saved) = self.model.saved(task, index, now) else {
                    continue;
                };
                let mut program = Program::new();
                let dressed = criu_task::dress(&saved, &mut program).within(|| task.subject())?;
                programs.push((*image, *here, index, program, dressed));
            }
        }
        let jobs: Vec<Job<'_>> = programs
            .iter()
            .map(|(_, here, index, program, _)| Job {
                tracee: *here,
                thread: *index,
                program,
            })
            .collect();
        match run_all(&mut self.held, &jobs) {
            Ok(_) => Ok(()),
            Err(error) => Err(blame(error, &programs, self.model)),
        }
    }

    /// What a process and its threads are before they are dressed.
    fn now(&self, here: usize, near: Option<&Near>) -> Result<Now> {
        let process = ProcDir::open(self.held[here].pid())?;
        Ok(Now {
            status: process.status()?,
            loginuid: criu_task::loginuid(&process)?,
            processors: near.map(Near::before),
        })
    }

    fn push(&mut self, image: usize, here: usize, now: &Now, machine: &Machine) -> Result<()> {
        let model = self.model;
        let task = &model.tasks[image];
        let mut new: Vec<NewThread> = Vec::new();
        let process = ProcDir::open(self.held[here].pid())?;
        // The leader's, which all were cloned with.
        let born = criu_task::thread_areas(self.held[here].threads()[0].stopped()?)?;
        for index in 0..=task.threads.len() {
            let Some(saved) = model.saved(task, index, now) else {
                continue;
            };
            let held = &mut self.held[here];
            let thread = &held.threads()[index];
            criu_task::push(&saved, &process)?;
            let mut state = criu_task::natural(&saved, machine)?;
            state.set(thread.stopped()?, &born)?;
            state.wait_on(&saved, held);
            new.push(state);
        }
        for (thread, state) in self.held[here].threads_mut().iter_mut().zip(&new) {
            thread.set_natural(state.regs().clone(), state.mask().to_vec());
        }
        Ok(())
    }
}

/// The process of the images whose memory a node is cloned with: helpers have their creator's.
fn parent_image(plan: &Plan, node: usize) -> Option<usize> {
    let mut at = plan.nodes[node].creator;
    while let Some(here) = at {
        if plan.nodes[here].role == Role::Task {
            return plan.nodes[here].image;
        }
        at = plan.nodes[here].creator;
    }
    None
}
