//! Dump: freeze ─▶ survey ─▶ describe ─▶ drain ─▶ commit ─▶ release.
//!
//! Until *commit* every way out leaves the tasks as they were found: what holds them cures them when
//! it is dropped, and the half-written images go with the store.

use std::rc::Rc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use criu_files::{Collector, Looked, Memory, Names, Validation, look, look_ahead};
use criu_image::{Directory, Durability, Store, StoreExt};
use criu_ipc::Notifications;
use criu_kind::{Error, Result, Subject, Within};
use criu_mm::{DrainOptions, Space, SurveyOptions};
use criu_net::{Departure, Doors};
use criu_ns::Clocks;
use criu_proc::Dev;
use criu_task::{Node, Tree, freeze};
use criu_tracee::{Local, Thread, Tracee, fp_layout};
use nix::unistd::Pid;

use crate::cpuinfo;
use crate::describe::{Described, describe};
use crate::error::Failure;
use crate::explain;
use crate::inventory::{self, Identities};
use crate::ipc::Ipc;
use crate::net;
use crate::options::{DumpOptions, EndState, FileValidation, Tcp};
use crate::progress::Progress;
use crate::scripts::Action;
use crate::stats::DumpStats;
use crate::tables;

/// How long requests that are under way may take to end, and how long tasks go on before the next look.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

/// Dumps the tree of `options` into its images directory. What the tasks have under way, and cannot be kept, may
/// end: then they go on for a moment, and all starts anew.
pub(crate) fn dump(options: &DumpOptions, progress: &Progress) -> Result<(), Failure> {
    options
        .tree
        .scripts
        .run(Action::PreDump, Some(options.root))?;
    net::make_room();
    at("preflight", net::preflight(options.root, &options.tree.tcp))?;
    let start = Instant::now();
    let doors = Doors::new();
    while !attempt(options, progress, &doors, start.elapsed() < PATIENCE)? {
        tracing::debug!("tasks go on until what they have under way is done");
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Whether the tree was dumped; if not, another attempt may succeed, which there is only if `patient`.
fn attempt(
    options: &DumpOptions,
    progress: &Progress,
    doors: &Doors,
    patient: bool,
) -> Result<bool, Failure> {
    let mut stats = DumpStats::start();
    let images = &options.tree.common.images;
    let cpu = cpuinfo::of_dump(options.tree.cpu_cap)?;
    progress.stage("freeze");
    let (tree, mut tracees) = at("freeze", freeze(options.root, options.timeout))?;
    stats.frozen();
    progress.stage("survey");
    if options.tree.plan {
        // On paper: what is written is forgotten.
        let store = criu_image::Memory::new();
        let departure = net::departure(&options.tree.tcp);
        let surveyed = Survey::of(&tree, &tracees, options, &store, departure.clone());
        let mut survey = at("survey", surveyed)?;
        survey.problems.extend(departure.check().err());
        tracing::warn!(target: "criu", "plan:\n{}", survey.plan(&tree));
        return at("survey", survey.check()).map(|()| true);
    }
    // Dropped before it is finished, it leaves nothing.
    let store = at(
        "store",
        Directory::create(images, Durability::Manifest).map_err(Error::from),
    )?;
    let departure = net::departure(&options.tree.tcp);
    let surveyed = Survey::of(&tree, &tracees, options, &store, departure.clone());
    let mut survey = at("survey", surveyed)?;
    let run = survey.identities.run().to_owned();
    // From here on nobody connects.
    survey.problems.extend(departure.shut(doors, &run).err());
    match survey.check() {
        Err(error) if patient && error.may_pass() => return Ok(false),
        checked => at("survey", checked)?,
    }
    progress.stage("describe");
    let described = at(
        "describe",
        describe(&tree, &mut tracees, &mut survey.spaces, fp_layout()),
    )?;
    at("describe", survey.ask(&tree, &mut tracees))?;
    progress.stage("drain");
    // A file for each thread: many take as long as the pages, so they are written at the same time.
    let next = AtomicUsize::new(0);
    let (drained, written) = std::thread::scope(|scope| {
        let write = || described.write_cores(&store, &next);
        let other = (described.threads_in_all() > MANY_THREADS).then(|| scope.spawn(write));
        let drained = drain(&mut tracees, &mut survey, &store, progress);
        let mut written = write();
        if let Some(other) = other {
            written = written.and(other.join().expect("writing does not panic"));
        }
        (drained, written.and_then(|()| described.write(&store)))
    });
    let drained = at("drain", drained)?;
    at("describe", written)?;
    stats.drained(&drained);
    progress.stage("commit");
    if let Some(cpu) = &cpu {
        let written = store.write_entry(criu_image::desc::CPUINFO, (), cpu);
        at("commit", written.map_err(Error::from))?;
    }
    // From here on no packet of the connections comes or goes.
    at("commit", departure.lock(&run))?;
    let locked = Instant::now();
    let names = at(
        "commit",
        commit(&tree, survey, &described, &options.tree.tcp, &store),
    )?;
    tracing::info!("Dumping finished successfully");

    let refused = options
        .tree
        .scripts
        .run(Action::PostDump, Some(options.root));
    let end = if refused.is_err() {
        EndState::Running
    } else {
        options.end
    };
    // Files of tasks that go on need no other names, and they should not see them.
    match end {
        EndState::Running => drop(names),
        EndState::Stopped | EndState::Killed => at("commit", names.keep())?,
    }
    progress.stage("release");
    if end == EndState::Killed {
        at("release", departure.hold())?;
    }
    // Summing needs nobody: it goes on while the tasks end or start to run.
    let (released, summed) = std::thread::scope(|scope| {
        let much = store.has_much_to_sum();
        let sums = much.then(|| scope.spawn(|| store.complete()));
        let condemned = condemn(&tracees, end);
        let early = (end == EndState::Killed && !much).then(|| store.complete());
        // Whoever has a connection is known to be gone before that is.
        let patience = (departure.count() == 0).then_some(BURIAL);
        let released = condemned.and_then(|()| release(tracees, end, patience));
        stats.released();
        let summed = match (sums, early) {
            (Some(sums), _) => sums.join().expect("summing does not panic"),
            (None, Some(early)) => early,
            (None, None) => store.complete(),
        };
        (released, summed)
    });
    at("release", released)?;
    if end == EndState::Killed {
        at("release", departure.depart(&run))?;
    }
    if departure.count() > 0 {
        let (connections, time) = (departure.count(), locked.elapsed());
        tracing::info!(connections, ?time, "connections were locked");
    }
    drop(departure);
    at("manifest", summed.map_err(Error::from))?;
    progress.clear();
    tracing::info!("done");
    stats.write(&options.tree.common.work, options.tree.display_stats)?;
    // Thousands of entries, and the program ends: the kernel takes the memory back at once.
    std::mem::forget(described);
    refused.map(|()| true)
}

/// How long the dead are waited for: small ones are gone when the dump is done, and nobody waits while the kernel
/// frees gigabytes.
const BURIAL: Duration = Duration::from_millis(10);

/// From here on the descriptors of processes are, too.
const MANY_PROCESSES: usize = 8;

/// How many processes are looked at before they are described: their descriptors are open here meanwhile.
const LOOK_AHEAD: usize = 8;

/// So many descriptors we must be allowed, for those to be few among them.
const ROOM_AHEAD: u64 = 16384;

/// From here on the images of threads are worth a thread of the driver.
const MANY_THREADS: usize = 32;

fn at<T>(stage: &'static str, result: Result<T>) -> Result<T, Failure> {
    result.map_err(|error| explain::failure(stage, &error))
}

/// What is known before anything of ours is in a task.
struct Survey<'s> {
    /// In the order of the held processes.
    spaces: Vec<Space>,
    files: Collector<'s>,
    identities: Identities,
    /// `None` if it cannot be dumped.
    ipc: Option<Ipc>,
    /// Who is to be told of messages.
    notifications: Rc<Notifications>,
    /// What they show to the tree while it is held.
    clocks: Option<Clocks>,
    problems: Vec<Error>,
}

impl<'s> Survey<'s> {
    fn of(
        tree: &Tree,
        tracees: &[Tracee],
        options: &DumpOptions,
        store: &'s dyn Store,
        departure: Rc<Departure>,
    ) -> Result<Self> {
        let root = tree.nodes.first().map(|root| &root.proc);
        let identities = Identities::of(root)?;
        let files = file_options(options, tree, tracees, &identities);
        let mut survey = Self {
            spaces: Vec::with_capacity(tracees.len()),
            files: Collector::new(files, store, tables::kinds()),
            identities,
            ipc: None,
            notifications: Rc::default(),
            clocks: None,
            problems: inventory::shell_job(tree, options.tree.shell_job)
                .err()
                .into_iter()
                .collect(),
        };
        survey.files.lend(departure);
        survey.files.lend(survey.notifications.clone());
        let mut alive: Vec<(usize, &Node)> = tree
            .nodes
            .iter()
            .filter_map(|node| Some((node.tracee?, node)))
            .collect();
        alive.sort_by_key(|(tracee, _)| *tracee);
        if alive.len() < MANY_PROCESSES {
            for (tracee, node) in alive {
                survey.take(node, &tracees[tracee], || look(&node.proc));
            }
        } else {
            survey.take_many(&alive, tracees);
        }
        // Without the address spaces of all it is not known who has attached what.
        if survey.spaces.len() == tracees.len() {
            for (space, tracee) in survey.spaces.iter_mut().zip(tracees) {
                let mapped = space.map_as_files(tracee.pid(), &mut survey.files);
                survey.problems.extend(mapped.err());
            }
            match Ipc::of(tree, &survey.spaces) {
                Ok(ipc) => survey.ipc = Some(ipc),
                Err(error) => survey.problems.push(error),
            }
        }
        if survey.problems.is_empty() {
            survey.problems.extend(survey.identities.check(tree).err());
        }
        Ok(survey)
    }

    /// What is said of the descriptors of one process is read while those of the one before are described.
    fn take_many(&mut self, alive: &[(usize, &Node)], tracees: &[Tracee]) {
        let look = if net::has_room(ROOM_AHEAD) {
            look_ahead
        } else {
            look
        };
        let (send, receive) = std::sync::mpsc::sync_channel(LOOK_AHEAD);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for (_, node) in alive {
                    // Nobody listens any more if the other thread has given up.
                    if send.send(look(&node.proc)).is_err() {
                        break;
                    }
                }
            });
            for (tracee, node) in alive {
                let looked = receive.recv();
                let looked = looked.unwrap_or_else(|_| look(&node.proc));
                self.take(node, &tracees[*tracee], || looked);
            }
        });
    }

    fn take(&mut self, node: &Node, tracee: &Tracee, looked: impl FnOnce() -> Result<Looked>) {
        if let Err(error) = self.add(node, tracee, looked).within(|| node.subject()) {
            self.problems.push(error);
        }
    }

    fn add(
        &mut self,
        node: &Node,
        tracee: &Tracee,
        looked: impl FnOnce() -> Result<Looked>,
    ) -> Result<()> {
        let mut problems = Vec::new();
        let options = SurveyOptions {
            allow_uprobes: false,
        };
        match criu_mm::survey(&node.proc, tracee, &mut self.files, &options) {
            Ok(space) => self.spaces.push(space),
            Err(error) => problems.push(error),
        }
        let threads = thread_ids(tracee);
        let table = (self.files).table_of(node.pid, &node.proc, &threads, looked);
        let fs = self.files.fs(node.pid, &node.proc, &threads);
        match (table, fs) {
            (Ok(table), Ok(fs)) => problems.extend(self.identities.add(node, table.id, fs).err()),
            (table, fs) => problems.extend(table.err().into_iter().chain(fs.err())),
        }
        Error::all(problems)
    }

    /// All refusals at once.
    fn check(&mut self) -> Result<()> {
        Error::all(std::mem::take(&mut self.problems))
    }

    /// What only processes can tell about what they share.
    fn ask(&mut self, tree: &Tree, tracees: &mut [Tracee]) -> Result<()> {
        let root = tree.nodes.first().and_then(|root| root.tracee);
        self.clocks = Some(match root {
            Some(root) if !self.identities.same_clocks() => Clocks::of(&mut tracees[root])?,
            _ => Clocks::of(&mut Local)?,
        });
        for node in &tree.nodes {
            if let Some(held) = node.tracee.filter(|_| self.notifications.asks(node.pid)) {
                let asked = self.notifications.ask(&mut tracees[held]);
                asked.within(|| node.subject())?;
            }
        }
        let ipc = self.ipc.as_mut();
        ipc.map_or(Ok(()), |ipc| ipc.ask(tree, tracees))
    }

    fn plan(&self, tree: &Tree) -> String {
        let tasks = tree.nodes.iter().map(|node| {
            let state = if node.tracee.is_some() {
                "alive"
            } else {
                "zombie"
            };
            format!(
                "task {} ({}) parent {} group {} session {}: {state}, {} threads\n",
                node.vpid,
                String::from_utf8_lossy(&node.stat.comm),
                node.vppid,
                node.vpgid,
                node.vsid,
                node.stat.num_threads
            )
        });
        tasks
            .chain([format!("{} problems", self.problems.len())])
            .collect()
    }
}

fn thread_ids(tracee: &Tracee) -> Vec<Pid> {
    tracee.threads().iter().map(Thread::tid).collect()
}

fn file_options(
    options: &DumpOptions,
    tree: &Tree,
    tracees: &[Tracee],
    identities: &Identities,
) -> criu_files::DumpOptions {
    let threads = |node: &Node| match node.tracee {
        Some(held) => thread_ids(&tracees[held]),
        None => vec![node.pid],
    };
    criu_files::DumpOptions {
        tree: tree.nodes.iter().flat_map(threads).collect(),
        namespaces: identities.namespaces(),
        ghost_limit: options.ghost_limit,
        link_remap: options.link_remap,
        file_locks: options.file_locks,
        evasive_devices: options.evasive_devices,
        mounts: false,
        validation: validation(options.tree.validation),
        irmap: options.irmap.clone(),
        devices: devices(options),
        external: options.outside.clone(),
    }
}

fn devices(options: &DumpOptions) -> Vec<(Dev, String)> {
    let device = |(major, minor, name): &(u32, u32, String)| {
        let (major, minor) = (*major, *minor);
        (Dev { major, minor }, name.clone())
    };
    options.external_devices.iter().map(device).collect()
}

/// The option in the words of the files.
pub(crate) fn validation(option: FileValidation) -> Validation {
    match option {
        FileValidation::Size => Validation::Size,
        FileValidation::BuildId => Validation::BuildId,
    }
}

fn drain(
    tracees: &mut [Tracee],
    survey: &mut Survey<'_>,
    store: &dyn Store,
    progress: &Progress,
) -> Result<criu_mm::Stats> {
    progress.bytes(survey.spaces.iter().map(|space| space.resident).sum());
    let mut options = DrainOptions {
        in_target: true,
        next_pages: 1,
    };
    let mut stats = criu_mm::drain(
        tracees,
        &mut survey.spaces,
        store,
        &mut options,
        &mut |bytes| progress.reach(bytes),
    )?;
    if let Some(ipc) = &mut survey.ipc {
        ipc.drain(tracees, store, &mut options, &mut stats)?;
    }
    for Memory { id, object, size } in survey.files.memory() {
        let more = criu_mm::drain_object(object, *size, *id, store, &mut options)
            .within(|| Subject::Object(format!("memory of file {id}")))?;
        stats.shared_scanned += more.shared_scanned;
        stats.shared_written += more.shared_written;
    }
    Ok(stats)
}

fn commit(
    tree: &Tree,
    survey: Survey<'_>,
    described: &Described,
    tcp: &Tcp,
    store: &dyn Store,
) -> Result<Names> {
    for space in &survey.spaces {
        space.write(store)?;
    }
    let names = survey.files.finish()?;
    if let Some(ipc) = &survey.ipc {
        ipc.write(store, survey.identities.ipc())?;
    }
    if let Some(clocks) = survey.clocks {
        clocks.write(store, survey.identities.clocks())?;
    }
    survey.identities.write(tree, described, tcp, store)?;
    store.finish()?;
    Ok(names)
}

/// Begins to end all that are to end, before the first of them is waited for.
fn condemn(tracees: &[Tracee], end: EndState) -> Result<()> {
    let dying = tracees.iter().rev().filter(|_| end == EndState::Killed);
    Ok(dying.into_iter().try_for_each(Tracee::condemn)?)
}

/// Ends or frees the tasks: children before parents.
fn release(tracees: Vec<Tracee>, end: EndState, patience: Option<Duration>) -> Result<()> {
    let deadline = patience.map(|patience| Instant::now() + patience);
    for tracee in tracees.into_iter().rev() {
        match end {
            EndState::Running => tracee.release()?,
            EndState::Stopped => tracee.release_stopped()?,
            EndState::Killed => match deadline {
                None => tracee.kill()?,
                Some(deadline) => tracee.kill_until(deadline)?,
            },
        }
    }
    Ok(())
}
