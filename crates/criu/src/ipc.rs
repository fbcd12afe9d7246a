//! Where System V IPC, address spaces and processes meet: who has attached what, and who moves the content.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;

use criu_image::id::ShmId;
use criu_image::{Store, pb};
use criu_ipc::{Creator, Objects, Scope, Task, Users, shm};
use criu_kind::{Error, Result, Subject, Within};
use criu_mm::{DrainOptions, Segments, Space, SpaceImage, Stats, page_size};
use criu_proc::ProcDir;
use criu_task::{Node, Tree};
use criu_tracee::{Local, Program, Site, Sysno, Tracee};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, getegid, geteuid, sysconf};

/// `KCMP_SYSVSEM`.
const KCMP_SYSVSEM: u32 = 6;

/// What the tree uses of the IPC namespace that it shares with the driver.
pub(crate) struct Ipc {
    survey: criu_ipc::Survey,
    /// A mapping of each attached segment: which of the held processes has it, and where.
    mapped: BTreeMap<ShmId, (usize, Range<u64>)>,
}

impl Ipc {
    /// Looks what there is. `spaces` are those of the held processes.
    pub(crate) fn of(tree: &Tree, spaces: &[Space]) -> Result<Self> {
        let mut users = Users::default();
        let boot = boot_time()?;
        let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
        let ticks = i64::from(ticks).unsigned_abs().max(1);
        for node in &tree.nodes {
            let born = node.stat.starttime / ticks;
            let task = Task {
                vpid: node.vpid.unsigned_abs(),
                born: boot + born.cast_signed(),
            };
            users.tasks.insert(node.pid.as_raw(), task);
        }
        let mut mapped = BTreeMap::new();
        for (tracee, space) in spaces.iter().enumerate() {
            for (id, range) in space.segments() {
                *users.attached.entry(id).or_default() += 1;
                mapped.entry(id).or_insert((tracee, range));
            }
        }
        let survey = criu_ipc::survey(&mut Local, Scope::Used, users)?;
        Ok(Self { survey, mapped })
    }

    /// Asks every process what it owes to semaphores.
    pub(crate) fn ask(&mut self, tree: &Tree, tracees: &mut [Tracee]) -> Result<()> {
        if !self.survey.asks() {
            return Ok(());
        }
        for node in &tree.nodes {
            if let Some(tracee) = node.tracee {
                let asked = self.ask_one(node, &mut tracees[tracee]);
                asked.within(|| node.subject())?;
            }
        }
        self.survey.check(&mut Local)
    }

    fn ask_one(&mut self, node: &Node, tracee: &mut Tracee) -> Result<()> {
        for thread in tracee.threads().iter().skip(1) {
            let mut program = Program::new();
            let (one, other) = (tracee.pid().as_raw(), thread.tid().as_raw());
            let same = program.call(Sysno::kcmp, [one.into(), other.into(), KCMP_SYSVSEM.into()]);
            if Local.run(&program)?.value(same) != 0 {
                let refusal: Result<()> = Err(Error::unsupported(
                    "it takes back what it did to semaphores by itself, and not with its process",
                    "let the thread end before the dump",
                ));
                refusal.within(|| Subject::Thread(other))?;
            }
        }
        self.survey.ask(tracee, node.vpid.unsigned_abs())
    }

    /// Writes the content of the segments.
    pub(crate) fn drain(
        &mut self,
        tracees: &mut [Tracee],
        store: &dyn Store,
        options: &mut DrainOptions,
        stats: &mut Stats,
    ) -> Result<()> {
        let all: Vec<_> = self.survey.segments().collect();
        for (id, size, maker) in all {
            let written = self.content(id, maker, tracees).and_then(|file| {
                if let Ok(fs) = fstatfs(&file)
                    && fs.filesystem_type() == HUGETLBFS_MAGIC
                {
                    let page = u64::try_from(fs.block_size()).unwrap_or(page_size());
                    self.survey.set_huge(id, page);
                }
                criu_mm::drain_object(&file, size, id, store, options)
            });
            let more =
                written.within(|| Subject::Object(format!("System V shared memory {id}")))?;
            stats.shared_scanned += more.shared_scanned;
            stats.shared_written += more.shared_written;
        }
        Ok(())
    }

    /// A segment as a file, by way of a mapping. One that nobody has is made for it, by who made the segment.
    fn content(&self, id: ShmId, maker: i32, tracees: &mut [Tracee]) -> Result<File> {
        if let Some((tracee, range)) = self.mapped.get(&id) {
            return open(tracees[*tracee].pid(), range);
        }
        let pid = Pid::from_raw(maker);
        let tracee = tracees.iter_mut().find(|tracee| tracee.pid() == pid);
        let tracee = tracee.ok_or(Error::Gone(pid))?;
        let start = shm::look(tracee, id)?;
        let file = mapping_at(pid, start).and_then(|range| open(pid, &range));
        shm::detach(tracee, start)?;
        file
    }

    /// Writes the images.
    pub(crate) fn write(&self, store: &dyn Store, ns: u32) -> Result<()> {
        self.survey.write(store, ns)
    }
}

fn mapping_at(pid: Pid, start: u64) -> Result<Range<u64>> {
    let maps = ProcDir::open(pid)?.read("maps")?;
    for vma in criu_proc::Vmas::new(&maps) {
        let vma = vma.map_err(criu_proc::Error::from)?;
        if vma.start == start {
            return Ok(vma.start..vma.end);
        }
    }
    Err(Error::corrupt(
        "/proc/PID/maps",
        format!("nothing at {start:#x}"),
    ))
}

fn open(pid: Pid, range: &Range<u64>) -> Result<File> {
    let name = format!("map_files/{:x}-{:x}", range.start, range.end);
    match ProcDir::open(pid)?.open_file(&name, OFlag::O_RDONLY) {
        Ok(fd) => Ok(fd.into()),
        Err(criu_proc::Error::Kernel {
            errno: Errno::EPERM | Errno::EACCES,
            ..
        }) => Err(Error::unsupported(
            "it may not be opened through /proc/PID/map_files by this user",
            "run with CAP_CHECKPOINT_RESTORE",
        )),
        Err(error) => Err(error.into()),
    }
}

/// When this machine started, in seconds since 1970: `btime` of `/proc/stat`, which counts every interrupt before
/// it tells that.
fn boot_time() -> Result<i64> {
    let now = |clock| clock_gettime(clock).map_err(Error::kernel("clock_gettime"));
    let (now, up) = (now(ClockId::CLOCK_REALTIME)?, now(ClockId::CLOCK_BOOTTIME)?);
    Ok((now - up).tv_sec().into())
}

/// The objects of the images on their way back.
pub(crate) struct Back {
    objects: Objects,
    /// For who attaches segments.
    pub(crate) segments: Segments,
}

impl Back {
    /// Opens the content of segments, and checks what address spaces say of them.
    pub(crate) fn load(objects: Objects, spaces: &[SpaceImage], store: &dyn Store) -> Result<Self> {
        let all = objects.segments().iter();
        let all: Vec<_> = all.map(|one| (one.id(), one.span(page_size()))).collect();
        let segments = Segments::load(&all, store)?;
        spaces.iter().try_for_each(|space| segments.check(space))?;
        Ok(Self { objects, segments })
    }

    /// Makes all objects through the first task of the tree, and brings in the content of segments.
    pub(crate) fn make(&mut self, first: &mut Tracee) -> Result<()> {
        let creator = Creator {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            may_change: true,
        };
        self.objects.make(first, creator)?;
        for segment in self.objects.segments() {
            bring(segment, &self.segments, first)
                .within(|| Subject::Object(format!("System V shared memory {}", segment.id())))?;
        }
        Ok(())
    }

    /// What processes do when all have their memory: each owes what it owed, then is who operated what it operated
    /// last, and segments that were removed go with their last user.
    pub(crate) fn settle(
        &self,
        held: &mut [Tracee],
        tasks: impl Iterator<Item = (u32, usize)> + Clone,
    ) -> Result<()> {
        for add in [Objects::settle, Objects::touch] {
            for (vpid, here) in tasks.clone() {
                let mut program = Program::new();
                add(&self.objects, vpid, &mut program);
                if !program.is_empty() {
                    held[here].run(&program)?;
                }
            }
        }
        let mut program = Program::new();
        self.objects.remove(&mut program);
        if let Some(first) = held.first_mut().filter(|_| !program.is_empty()) {
            first.run(&program)?;
        }
        Ok(())
    }

    /// Removes what was made. It outlives processes.
    pub(crate) fn undo(&self) {
        undo(&self.objects);
    }

    /// The restore has succeeded.
    pub(crate) fn keep(&mut self) {
        self.objects.keep();
    }
}

/// Removes what was made of these, or may have been.
pub(crate) fn undo(objects: &Objects) {
    for made in objects.absent().into_iter().rev() {
        made.remove();
    }
}

fn bring(segment: &criu_ipc::Segment, segments: &Segments, first: &mut Tracee) -> Result<()> {
    let at = segment.attach(first, page_size())?;
    match &segment.raw {
        Some(raw) => {
            let size = usize::try_from(segment.entry.size).unwrap_or(usize::MAX);
            first.memory().write(at, &raw[..size.min(raw.len())])?;
        }
        None => segments.fill(first, segment.id(), at)?,
    }
    shm::detach(first, at)
}

/// The IPC namespace of the first task of the images.
pub(crate) fn namespace(ids: &pb::TaskKobjIdsEntry) -> u32 {
    ids.ipc_ns_id.unwrap_or(0)
}
