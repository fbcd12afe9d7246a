//! Restore: load ─▶ plan ─▶ spawn ─▶ fill ─▶ settle ─▶ seal ─▶ wake.
//!
//! Until *wake* every task is held and dies with the world that holds it.

use std::time::{Duration, Instant};

use criu_files::{FilePolicy, Files, Policies};
use criu_image::{Checked, Directory, Store};
use criu_ipc::Objects;
use criu_kind::{Error, Result, Within};
use criu_mm::SpaceImage;
use criu_net::Arrival;
use criu_proc::{ProcDir, Status, TaskState};
use criu_task::{Machine, Plan, birth};
use criu_tracee::{Heir, Local, Near};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cpuinfo;
use crate::error::Failure;
use crate::explain;
use crate::ipc;
use crate::load::{self, Model};
use crate::net;
use crate::options::RestoreOptions;
use crate::policy::How;
use crate::progress::Progress;
use crate::scripts::Action;
use crate::stats::RestoreStats;
use crate::tables;
use crate::verbs::write_pidfile;
use crate::world::World;

/// Restores the tree in the images directory of `options`.
pub(crate) fn restore(options: &RestoreOptions, progress: &Progress) -> Result<(), Failure> {
    let mut stats = RestoreStats::start();
    let tree = &options.tree;
    progress.stage("load");
    let images = at("load", Images::open(options).map_err(Error::from))?;
    let store = images.store();
    cpuinfo::check(store, tree.cpu_cap)?;
    let model = at("load", load::model(store))?;
    let arrival = at("load", net::arrival(&tree.tcp, &options.remaps, store))?;
    let mut files = at(
        "load",
        Files::load(store, file_options(options), tables::kinds()),
    )?;
    files.lend(arrival.clone());
    let mut ipc = at("load", Objects::load(store, model.ipc()))?;
    let plan = at("plan", model.plan(tree.shell_job))?;
    let machine = at("plan", Machine::here())?;
    let mut checked = preflight(&model, &files, &mut ipc, &plan, &arrival, &machine);
    if tree.plan || tree.scripts.paths.is_empty() {
        checked = checked.and_then(|()| arrival.check_addresses());
    }
    if tree.plan {
        tracing::warn!(target: "criu", "plan:\n{plan}");
        return at("plan", checked);
    }
    at("plan", checked)?;
    // Until all are ready to go on no packet of the connections comes or goes. A script may bring their addresses.
    at("plan", arrival.lock())?;
    tree.scripts.run(Action::PreRestore, None)?;
    at("plan", arrival.check_addresses())?;

    std::thread::scope(|scope| {
        // Many pages are summed while they are brought in; nobody wakes before they are known to be right.
        let sums = images
            .has_many_pages()
            .then(|| scope.spawn(|| images.verify_pages()));
        let sums = || match sums {
            Some(sums) => sums.join().expect("summing does not panic"),
            None => images.verify_pages(),
        };
        build(
            options, progress, &mut stats, &model, files, ipc, &plan, &arrival, &machine, store,
            sums,
        )
    })?;
    progress.clear();
    tracing::info!("Restore finished successfully. Tasks resumed.");
    stats.write(&tree.common.work, tree.display_stats)?;
    // Thousands of entries, and nobody looks at them any more: the kernel takes the memory back at once.
    std::mem::forget(model);
    Ok(())
}

/// The images, compared with their manifest as they are read, unless that is not wanted.
enum Images {
    Checked(Checked),
    AsFound(Directory),
}

impl Images {
    fn open(options: &RestoreOptions) -> Result<Self, criu_image::Error> {
        let path = &options.tree.common.images;
        Ok(if options.verify {
            Self::Checked(Checked::open(path)?)
        } else {
            Self::AsFound(Directory::open(path)?)
        })
    }

    fn store(&self) -> &(dyn Store + Sync) {
        match self {
            Self::Checked(store) => store,
            Self::AsFound(store) => store,
        }
    }

    /// Whether it is worth a thread to compare the pages.
    fn has_many_pages(&self) -> bool {
        const MANY: u64 = 4 << 20;
        matches!(self, Self::Checked(store) if store.pages() >= MANY)
    }

    fn verify_pages(&self) -> Result<(), criu_image::Error> {
        match self {
            Self::Checked(store) => store.verify_pages(),
            Self::AsFound(_) => Ok(()),
        }
    }
}

/// From the first clone to the last detach.
#[allow(
    clippy::too_many_arguments,
    reason = "the stages of one function, cut where the checksums join"
)]
fn build(
    options: &RestoreOptions,
    progress: &Progress,
    stats: &mut RestoreStats,
    model: &Model,
    mut files: Files<'_>,
    ipc: Objects,
    plan: &Plan,
    arrival: &Arrival,
    machine: &Machine,
    store: &dyn Store,
    pages_are_right: impl FnOnce() -> Result<(), criu_image::Error>,
) -> Result<(), Failure> {
    let tree = &options.tree;
    let mut early = at("open", heir(options, &mut files, &ipc))?;
    progress.stage("open");
    files.inherit(model.files());
    files.share(model.spaces.iter().flat_map(SpaceImage::shared_files));
    at("open", files.open_all())?;
    progress.stage("spawn");
    // A script may start what stays.
    let near = (model.is_one_thread() && tree.scripts.paths.is_empty())
        .then(Near::keep)
        .flatten();
    let mut world = at(
        "spawn",
        World::spawn(model, files, ipc, plan, store, options.sibling, progress),
    )?;
    stats.forked();
    stats.filled(
        world.filled.pages_compared,
        world.filled.pages_skipped_cow,
        world.filled.pages_restored,
    );
    let root = world.root();
    tree.scripts.run(Action::SetupNamespaces, Some(root))?;
    tree.scripts.run(Action::PostSetupNamespaces, Some(root))?;
    progress.stage("settle");
    at("settle", world.settle())?;
    progress.stage("seal");
    at("seal", world.seal(machine, near.as_ref()))?;
    drop(near);
    at("verify", pages_are_right().map_err(Error::from))?;
    tree.scripts.run(Action::PostRestore, Some(root))?;
    if let Some(path) = &options.pidfile {
        let names = world.files.names_mut();
        write_pidfile(path, root, names)?;
    }
    tree.scripts.run(Action::PreResume, Some(root))?;
    progress.stage("wake");
    at("wake", world.wake(options.stopped, arrival, early.take()))?;
    tree.scripts.run(Action::PostResume, Some(root))?;
    Ok(())
}

/// Who removes what outlives processes if the driver dies before [`World::wake`], if there is any. It has none of the
/// files of the tasks: they are not open yet.
fn heir(
    options: &RestoreOptions,
    files: &mut Files<'_>,
    objects: &Objects,
) -> Result<Option<Heir>> {
    let named = files.begin_names()?;
    if !named && options.pidfile.is_none() && objects.absent().is_empty() {
        return Ok(None);
    }
    files.names_mut().begin()?;
    let names = files.names();
    let undo = || {
        ipc::undo(objects);
        names.undo();
    };
    Ok(Some(Heir::appoint(&[], undo, || ())?))
}

fn file_options(options: &RestoreOptions) -> criu_files::RestoreOptions {
    criu_files::RestoreOptions {
        validation: crate::dump::validation(options.tree.validation),
        skip_permissions: !options.check_permissions,
        inherited: options
            .inherited
            .iter()
            .map(|given| (given.key.clone(), given.fd))
            .collect(),
        devices: options.devices.clone(),
        policies: policies(options),
        external: options.outside.clone(),
        root: None,
        memory: criu_mm::bring_object,
    }
}

/// What may have happened to files, in the words of the files: the first that is about a path counts.
fn policies(options: &RestoreOptions) -> Policies {
    let policies = options.policies.clone();
    Box::new(move |path| {
        let policy = policies.iter().find(|policy| policy.covers(path));
        match policy.map(|policy| &policy.how) {
            None | Some(How::Strict) => FilePolicy::Strict,
            Some(How::Ignore) => FilePolicy::Ignore,
            Some(How::Append) => FilePolicy::Append,
            Some(How::Truncate) => FilePolicy::Truncate,
            Some(How::Replace(other)) => FilePolicy::Replace(other.clone().into_bytes()),
        }
    })
}

fn at<T>(stage: &'static str, result: Result<T>) -> Result<T, Failure> {
    result.map_err(|error| explain::failure(stage, &error))
}

/// All that can be seen to fail before anything is made, in one list.
fn preflight(
    model: &Model,
    files: &Files<'_>,
    ipc: &mut Objects,
    plan: &Plan,
    arrival: &Arrival,
    machine: &Machine,
) -> Result<()> {
    let mut problems = Vec::new();
    let mut wanted = model.pids();
    wanted.extend(
        plan.nodes
            .iter()
            .map(|node| node.pid)
            .filter(|pid| *pid != 0),
    );
    wanted.sort_unstable();
    wanted.dedup();
    for pid in still_taken(wanted) {
        problems.push(Error::unsupported(
            format!("pid {pid} is taken{}", birth::occupier(pid)),
            "stop that process, or restore in a new pid namespace (unshare --pid --fork --mount-proc)",
        ));
    }
    problems.extend(files.check().err());
    problems.extend(arrival.check().err());
    let pids = model.pids();
    let of_tree = |pid: i32| pids.binary_search(&pid).is_ok();
    problems.extend(ipc.check(&mut Local, &of_tree).err());
    for task in &model.tasks {
        let Some(body) = &task.body else { continue };
        // One thread tells enough of its process.
        let misfit = task.registers().find_map(|(core, ext)| {
            let fits = criu_task::fits(core, ext, machine);
            fits.within(|| task.subject()).err()
        });
        problems.extend(misfit);
        let space = &model.spaces[body.space];
        let told = criu_task::fits_told(&space.mm, machine);
        problems.extend(told.within(|| task.subject()).err());
        let fits = space.fits(machine.protections());
        problems.extend(fits.within(|| task.subject()).err());
    }
    Error::all(problems)
}

/// How long to wait for the dead to be buried: init takes its time.
const BURIAL: Duration = Duration::from_secs(3);

/// The pids that are in use. Zombies, and groups whose last member is one, are given a moment: those of
/// a tree that was dumped just now are reaped by whoever adopted them.
fn still_taken(mut pids: Vec<i32>) -> Vec<i32> {
    let start = Instant::now();
    loop {
        pids.retain(|pid| in_use(*pid));
        if !pids.iter().all(|pid| is_dying(*pid)) || pids.is_empty() || start.elapsed() > BURIAL {
            return pids;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a pid belongs to a task, or to a process group.
fn in_use(pid: i32) -> bool {
    [pid, -pid]
        .into_iter()
        .any(|pid| kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH))
}

/// Whether who has the pid is dead, and only has to be reaped, or about to be: it has been killed, or the kernel is
/// freeing what it had.
fn is_dying(pid: i32) -> bool {
    /// `PF_EXITING` of `include/linux/sched.h`.
    const EXITING: u32 = 4;
    let look = |proc: ProcDir| {
        let stat = proc.stat()?;
        let dead = matches!(stat.state, TaskState::Zombie | TaskState::Dead);
        let killed = |status: Status| status.sig_pending.contains(Signal::SIGKILL as u32);
        Ok(dead || stat.flags & EXITING != 0 || killed(proc.status()?))
    };
    ProcDir::open(Pid::from_raw(pid))
        .and_then(look)
        .unwrap_or(true)
}
