//! Images to a model: everything parsed, every reference resolved, before anything is made.

use std::collections::{BTreeSet, HashMap};

use criu_image::id::{FileId, NsId, VPid};
use criu_image::{Entry, Store, StoreExt, desc, pb, shmem};
use criu_kind::{Error, Now, Result, Saved, Subject, Within};
use criu_mm::SpaceImage;
use criu_ns::Clocks;
use criu_task::{End, Plan, TaskState};

/// One process of the images.
#[derive(Debug)]
pub(crate) struct Task {
    /// Its place in the tree.
    pub(crate) entry: pb::PstreeEntry,
    /// What it was.
    pub(crate) core: Box<pb::CoreEntry>,
    /// Its other threads, in the order of the tree's entry.
    pub(crate) threads: Vec<(i32, Box<pb::CoreEntry>)>,
    /// What lives in a process that is no zombie.
    pub(crate) body: Option<Body>,
    ext: HashMap<u32, pb::TaskExtEntry>,
}

/// The parts of a living process.
#[derive(Debug)]
pub(crate) struct Body {
    /// The objects it uses.
    pub(crate) ids: pb::TaskKobjIdsEntry,
    /// Where it is in the file system.
    pub(crate) fs: pb::FsEntry,
    /// Its memory: index in [`Model::spaces`].
    pub(crate) space: usize,
}

impl Task {
    /// The images of its threads' registers, the leader's first, each with what those have no field for.
    pub(crate) fn registers(
        &self,
    ) -> impl Iterator<Item = (&pb::CoreEntry, Option<&pb::TaskExtEntry>)> {
        let others = self.threads.iter().map(|(tid, core)| (*tid, &**core));
        let all = [(self.pid(), &*self.core)].into_iter().chain(others);
        all.map(|(tid, core)| (core, self.ext.get(&tid.unsigned_abs())))
    }

    /// Whether it is stopped and its parent has been told.
    pub(crate) fn stop_reported(&self) -> bool {
        let ext = self.ext.get(&self.pid().unsigned_abs());
        ext.is_some_and(|ext| ext.stop_reported())
    }

    /// Whether such a signal is queued for the process or one of its threads.
    pub(crate) fn has_queued(&self, signal: i32) -> bool {
        let cores = self.threads.iter().map(|(_, core)| &**core);
        cores.chain([&*self.core]).any(|core| {
            let own = core
                .thread_core
                .as_ref()
                .and_then(|thread| thread.signals_p.as_ref());
            let shared = core.tc.as_ref().and_then(|task| task.signals_s.as_ref());
            let queues = [own, shared].into_iter().flatten();
            queues
                .flat_map(|queue| &queue.signals)
                .any(|info| info.siginfo.starts_with(&signal.to_ne_bytes()))
        })
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> i32 {
        self.entry.pid.cast_signed()
    }

    /// The subject of errors about it.
    pub(crate) fn subject(&self) -> Subject {
        let comm = self
            .core
            .tc
            .as_ref()
            .map_or(&[][..], |tc| tc.comm.as_slice());
        Subject::Task {
            pid: self.pid(),
            comm: String::from_utf8_lossy(comm).into_owned(),
        }
    }
}

/// All of a dump.
#[derive(Debug)]
pub(crate) struct Model {
    /// Parents before children.
    pub(crate) tasks: Vec<Task>,
    /// Their memory.
    pub(crate) spaces: Vec<SpaceImage>,
    /// Seccomp filters.
    pub(crate) seccomp: pb::SeccompEntry,
    /// What they showed when the tree was dumped.
    pub(crate) clocks: Option<Clocks>,
}

/// Reads and checks all images.
pub(crate) fn model(store: &(dyn Store + Sync)) -> Result<Model> {
    let inventory = store
        .entry::<pb::InventoryEntry>(desc::INVENTORY, ())?
        .message;
    if inventory.img_version > 2 {
        return Err(Error::corrupt(
            "inventory.img",
            format!("image version {}, newer than 2", inventory.img_version),
        ));
    }
    let pstree = store.entries::<pb::PstreeEntry>(desc::PSTREE, ())?;
    let pstree = pstree.ok_or_else(|| Error::corrupt("pstree.img", "it is missing"))?;
    let mut spaces = Vec::new();
    let mut tasks = Vec::with_capacity(pstree.len());
    let mut cores = cores(store, &pstree);
    for entry in pstree {
        let pid = entry.message.pid;
        tasks.push(
            task(store, entry.message, &mut cores, &mut spaces).within(|| Subject::Task {
                pid: pid.cast_signed(),
                comm: String::new(),
            })?,
        );
    }
    let objects = shmem::anonymous(store)?;
    for space in &mut spaces {
        space.name_objects(&objects);
    }
    let seccomp = store
        .entries::<pb::SeccompEntry>(desc::SECCOMP, ())?
        .unwrap_or_default();
    let seccomp = seccomp
        .into_iter()
        .next()
        .map(|entry| entry.message)
        .unwrap_or_default();
    let clocks = clocks(store, inventory.root_ids.as_ref(), tasks.first())?;
    Ok(Model {
        tasks,
        spaces,
        seccomp,
        clocks,
    })
}

/// The clocks of a tree are its own if its root is in another time namespace than the dumper was.
fn clocks(
    store: &dyn Store,
    dumper: Option<&pb::TaskKobjIdsEntry>,
    root: Option<&Task>,
) -> Result<Option<Clocks>> {
    let root = root.and_then(|root| root.body.as_ref()?.ids.time_ns_id);
    let own = root.filter(|_| dumper.is_some_and(|ids| ids.time_ns_id != root));
    Clocks::load(store, NsId::new(own.unwrap_or(0)))
}

/// By process or thread, its core image, or why there is none.
type Cores = HashMap<u32, Result<Box<pb::CoreEntry>>>;

/// Reads the core images of all processes and threads: one may have thousands, so all processors do.
fn cores(store: &(dyn Store + Sync), pstree: &[Entry<pb::PstreeEntry>]) -> Cores {
    /// Images for which it is worth to start a thread.
    const SHARE: usize = 64;
    let ids = |entry: &Entry<pb::PstreeEntry>| {
        let threads = entry.threads.iter().copied();
        [entry.pid].into_iter().chain(threads).collect::<Vec<_>>()
    };
    let mut ids: Vec<u32> = pstree.iter().flat_map(ids).collect();
    ids.sort_unstable();
    ids.dedup();
    let read = |ids: &[u32]| -> Vec<(u32, Result<Box<pb::CoreEntry>>)> {
        let core = |id: u32| Ok(Box::new(store.entry(desc::CORE, VPid::new(id))?.message));
        ids.iter().map(|id| (*id, core(*id))).collect()
    };
    // To count processors takes longer than to read an image: cgroups are asked.
    let processors = match ids.len() {
        ..=SHARE => 1,
        _ => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let share = ids.len().div_ceil(processors).max(SHARE);
    let (own, others) = ids.split_at(share.min(ids.len()));
    std::thread::scope(|scope| {
        let others = others.chunks(share);
        let others: Vec<_> = others.map(|ids| scope.spawn(move || read(ids))).collect();
        let mut cores: Cores = read(own).into_iter().collect();
        for other in others {
            cores.extend(other.join().expect("reading does not panic"));
        }
        cores
    })
}

/// Each image is of one thread: a pid that is there twice finds nothing the second time.
fn take(cores: &mut Cores, id: u32) -> Result<Box<pb::CoreEntry>> {
    let twice = || Error::corrupt("pstree.img", format!("{id} is there twice"));
    cores.remove(&id).unwrap_or_else(|| Err(twice()))
}

fn task(
    store: &dyn Store,
    entry: pb::PstreeEntry,
    cores: &mut Cores,
    spaces: &mut Vec<SpaceImage>,
) -> Result<Task> {
    let id = VPid::new(entry.pid);
    let core = take(cores, entry.pid)?;
    let Some(tc) = &core.tc else {
        return Err(Error::corrupt(
            desc::CORE.file_name(id),
            "it has no task part",
        ));
    };
    let mut ext = HashMap::new();
    for entry in store
        .entries::<pb::TaskExtEntry>(desc::TASK_EXT, id)?
        .unwrap_or_default()
    {
        ext.insert(entry.tid, entry.message);
    }
    if tc.task_state == TaskState::Dead.number() {
        return Ok(Task {
            entry,
            core,
            threads: Vec::new(),
            body: None,
            ext,
        });
    }
    let ids = match core.ids {
        Some(ids) => ids,
        None => store.entry::<pb::TaskKobjIdsEntry>(desc::IDS, id)?.message,
    };
    let fs = store.entry::<pb::FsEntry>(desc::FS, id)?.message;
    let mut threads = Vec::new();
    for tid in entry.threads.iter().filter(|tid| **tid != entry.pid) {
        threads.push((tid.cast_signed(), take(cores, *tid)?));
    }
    spaces.push(SpaceImage::load(store, id)?);
    let space = spaces.len() - 1;
    Ok(Task {
        entry,
        core,
        threads,
        body: Some(Body { ids, fs, space }),
        ext,
    })
}

impl Model {
    /// Files that tasks need before they are sent their own: what is mapped, and directories.
    pub(crate) fn files(&self) -> BTreeSet<FileId> {
        let bodies = self.tasks.iter().filter_map(|task| task.body.as_ref());
        let directories = bodies.flat_map(|body| [body.fs.cwd_id, body.fs.root_id]);
        let mapped = self.spaces.iter().flat_map(SpaceImage::files);
        mapped.chain(directories.map(FileId::new)).collect()
    }

    /// What aspects are given of thread `index` (0: the leader) of a task; `None` of a zombie.
    pub(crate) fn saved<'a>(
        &'a self,
        task: &'a Task,
        index: usize,
        now: &'a Now,
    ) -> Option<Saved<'a>> {
        let body = task.body.as_ref()?;
        let (vtid, core) = match index.checked_sub(1) {
            None => (task.pid(), &*task.core),
            Some(other) => task.threads.get(other).map(|(tid, core)| (*tid, &**core))?,
        };
        Some(Saved {
            core,
            leader_core: &task.core,
            ext: task.ext.get(&vtid.unsigned_abs()),
            mm: &self.spaces[body.space].mm,
            filters: &self.seccomp.seccomp_filters,
            now,
            leader: index == 0,
            vtid,
            vpid: task.pid(),
        })
    }

    /// How the tree is born.
    pub(crate) fn plan(&self, shell_job: bool) -> Result<Plan> {
        let processes: Vec<_> = self
            .tasks
            .iter()
            .enumerate()
            .map(|(index, task)| {
                let entry = &task.entry;
                let tc = task.core.tc.as_ref();
                let end = match tc {
                    Some(tc) if tc.task_state == TaskState::Dead.number() => {
                        End::Dead(tc.exit_code)
                    }
                    _ => End::Alive,
                };
                let reaper = index == 0 || tc.is_some_and(|tc| tc.child_subreaper == Some(true));
                let raw = |id: u32| id.cast_signed();
                (
                    raw(entry.pid),
                    raw(entry.ppid),
                    raw(entry.pgid),
                    raw(entry.sid),
                    end,
                    reaper,
                )
            })
            .collect();
        Plan::make(&processes, shell_job)
    }

    /// The IPC namespace of the tree.
    pub(crate) fn ipc(&self) -> u32 {
        let body = self.tasks.first().and_then(|task| task.body.as_ref());
        body.map_or(0, |body| crate::ipc::namespace(&body.ids))
    }

    /// Whether there is only one thread to restore.
    pub(crate) fn is_one_thread(&self) -> bool {
        self.tasks.len() == 1 && self.tasks[0].threads.is_empty()
    }

    /// Every pid the tree needs, threads too.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = self
            .tasks
            .iter()
            .flat_map(|task| {
                [task.pid()]
                    .into_iter()
                    .chain(task.threads.iter().map(|(tid, _)| *tid))
            })
            .collect();
        pids.sort_unstable();
        pids
    }
}
