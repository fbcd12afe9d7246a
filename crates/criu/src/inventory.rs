//! Which kernel objects each task uses, and the images that say so: inventory, pstree, ids, fs.

use std::collections::HashMap;
use std::io::Read;

use criu_image::id::{FdTableId, NsId, VPid};
use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{Error, Result};
use criu_proc::{NsKind, ProcDir};
use criu_task::{Node, Tree};
use criu_tracee::{Kcmp, find, kcmp};
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::describe::Described;
use crate::options::Tcp;
use crate::shares::Shares;

/// The version of the image format.
const IMG_VERSION: u32 = 2;

/// Refuses a tree whose root belongs to a session outside of it, unless that is wanted.
pub(crate) fn shell_job(tree: &Tree, wanted: bool) -> Result<()> {
    let Some(root) = tree.nodes.first() else {
        return Ok(());
    };
    if root.vsid == root.vpid || wanted {
        return Ok(());
    }
    Err(Error::unsupported(
        format!(
            "task {} is not a session leader: its session {} is outside of the tree",
            root.pid, root.vsid
        ),
        "use --shell-job (-j), or start the program with setsid",
    ))
}

/// Ids of the objects that tasks share, and where each task is in the file system.
#[derive(Debug)]
pub(crate) struct Identities {
    namespaces: HashMap<(&'static str, u64), u32>,
    own: pb::TaskKobjIdsEntry,
    /// The time namespace of the tree, where the kernel has such.
    time: Option<u64>,
    tasks: HashMap<Pid, (pb::TaskKobjIdsEntry, pb::FsEntry)>,
    /// The first process with each address space, table of signal actions, and working directory; in the order
    /// of the kernel.
    spaces: Vec<(Pid, Pid)>,
    actions: Vec<(Pid, Pid)>,
    directories: Vec<(Pid, u32)>,
    next: u32,
    run: String,
}

fn set(ids: &mut pb::TaskKobjIdsEntry, kind: NsKind, id: u32) {
    let slot = match kind {
        NsKind::Pid => &mut ids.pid_ns_id,
        NsKind::Net => &mut ids.net_ns_id,
        NsKind::Ipc => &mut ids.ipc_ns_id,
        NsKind::Uts => &mut ids.uts_ns_id,
        NsKind::Mnt => &mut ids.mnt_ns_id,
        NsKind::User => &mut ids.user_ns_id,
        NsKind::Cgroup => &mut ids.cgroup_ns_id,
        NsKind::Time => &mut ids.time_ns_id,
    };
    *slot = Some(id);
}

impl Identities {
    /// Starts with the dumper's own namespaces: those of the tree must be the same, but for its time namespace,
    /// which must be that of its root.
    pub(crate) fn of(root: Option<&ProcDir>) -> Result<Self> {
        let mut identities = Self {
            namespaces: HashMap::new(),
            own: pb::TaskKobjIdsEntry::default(),
            time: match root {
                Some(root) => namespace(root, NsKind::Time.name())?,
                None => None,
            },
            tasks: HashMap::new(),
            spaces: Vec::new(),
            actions: Vec::new(),
            directories: Vec::new(),
            next: 1,
            run: run_id()?,
        };
        let me = ProcDir::open(Pid::this())?;
        for kind in NsKind::ALL {
            if let Some(inode) = namespace(&me, kind.name())? {
                let id = identities.name(kind, inode);
                set(&mut identities.own, kind, id);
            }
        }
        if let Some(time) = identities.time {
            identities.name(NsKind::Time, time);
        }
        Ok(identities)
    }

    /// The id of a namespace.
    fn name(&mut self, kind: NsKind, inode: u64) -> u32 {
        let next = u32::try_from(self.namespaces.len()).unwrap_or(u32::MAX) + 1;
        *self.namespaces.entry((kind.name(), inode)).or_insert(next)
    }

    /// Whether the clocks of the tree are the dumper's.
    pub(crate) fn same_clocks(&self) -> bool {
        self.clocks().get() == 0
    }

    /// The id of the image of the tree's clocks: that of its time namespace, or 0 if that is the dumper's.
    pub(crate) fn clocks(&self) -> NsId {
        let time = self.time.map(|inode| (NsKind::Time.name(), inode));
        let id = time.and_then(|time| self.namespaces.get(&time).copied());
        NsId::new(
            id.filter(|id| Some(*id) != self.own.time_ns_id)
                .unwrap_or(0),
        )
    }

    /// The namespaces of the tree: kind, inode number, id.
    pub(crate) fn namespaces(&self) -> Vec<(&'static str, u64, u32)> {
        let all = self.namespaces.iter();
        all.map(|((kind, inode), id)| (*kind, *inode, *id))
            .collect()
    }

    /// The id of this dump.
    pub(crate) fn run(&self) -> &str {
        &self.run
    }

    /// The id of the IPC namespace of the tree.
    pub(crate) fn ipc(&self) -> u32 {
        crate::ipc::namespace(&self.own)
    }

    /// Adds a task. A namespace that is not the dumper's own is refused.
    pub(crate) fn add(&mut self, node: &Node, table: FdTableId, fs: pb::FsEntry) -> Result<()> {
        let own = self.next;
        self.next += 1;
        let pid = node.pid;
        let mut problems = Vec::new();
        for (list, what, name) in [
            (&mut self.spaces, Kcmp::Vm, "its memory"),
            (&mut self.actions, Kcmp::Sighand, "its signal actions"),
        ] {
            if let Some(other) = find(list, (pid, pid), |known| kcmp(known, pid, what))? {
                problems.push(Error::unsupported(
                    format!("it shares {name} with process {other}"),
                    "let it exec another program, or end, before the dump",
                ));
            }
        }
        let fs_id = find(&mut self.directories, (pid, own), |known| {
            kcmp(known, pid, Kcmp::Fs)
        })?;
        let mut ids = pb::TaskKobjIdsEntry {
            vm_id: own,
            files_id: table.get(),
            fs_id: fs_id.unwrap_or(own),
            sighand_id: own,
            ..Default::default()
        };
        for kind in NsKind::ALL {
            let Some(inode) = namespace(&node.proc, kind.name())? else {
                continue;
            };
            let known = self.namespaces.get(&(kind.name(), inode));
            match known.filter(|_| kind != NsKind::Time || Some(inode) == self.time) {
                Some(id) => set(&mut ids, kind, *id),
                None if kind == NsKind::Time => problems.push(Error::unsupported(
                    "it is in another time namespace than the root of the tree",
                    "dump it apart from the others",
                )),
                None => problems.push(Error::unsupported(
                    format!("it is in a {} namespace of its own", kind.name()),
                    "run criu inside the same namespaces (nsenter); dumping namespaces is not implemented yet",
                )),
            }
        }
        if namespace(&node.proc, "time_for_children")? != namespace(&node.proc, "time")? {
            problems.push(Error::unsupported(
                "its children will be in another time namespace",
                "let it make its children before the dump, or enter that namespace itself",
            ));
        }
        self.tasks.insert(node.pid, (ids, fs));
        Error::all(problems)
    }

    /// Refuses what processes share in a way that no births lead to.
    pub(crate) fn check(&self, tree: &Tree) -> Result<()> {
        let ids = self.tasks.iter();
        let ids = ids.map(|(pid, (ids, _))| (pid.as_raw(), (ids.files_id, ids.fs_id)));
        Shares::check(tree, &ids.collect())
    }

    /// Writes `pstree`, `ids-P`, `fs-P` and `inventory`.
    pub(crate) fn write(
        &self,
        tree: &Tree,
        described: &Described,
        tcp: &Tcp,
        store: &dyn Store,
    ) -> Result<()> {
        let mut pstree = Vec::with_capacity(tree.nodes.len());
        for node in &tree.nodes {
            pstree.push(pb::PstreeEntry {
                pid: raw(node.vpid),
                ppid: raw(node.vppid),
                pgid: raw(node.vpgid),
                sid: raw(node.vsid),
                threads: described.threads(raw(node.vpid)),
            });
            if let Some((ids, fs)) = self.tasks.get(&node.pid) {
                let id = VPid::new(raw(node.vpid));
                store.write_entry(desc::IDS, id, ids)?;
                store.write_entry(desc::FS, id, fs)?;
            }
        }
        store.write_entries(desc::PSTREE, (), &pstree)?;
        let inventory = pb::InventoryEntry {
            img_version: IMG_VERSION,
            fdinfo_per_id: Some(true),
            ns_per_id: Some(true),
            root_ids: Some(self.own),
            lsmtype: Some(0),
            dump_uptime: uptime(),
            tcp_close: Some(tcp.close),
            network_lock_method: Some(crate::net::method(tcp)),
            dump_criu_run_id: Some(self.run.clone()),
            ..Default::default()
        };
        store.write_entry(desc::INVENTORY, (), &inventory)?;
        Ok(())
    }
}

fn raw(id: i32) -> u32 {
    id.unsigned_abs()
}

fn namespace(proc: &ProcDir, name: &str) -> Result<Option<u64>> {
    match proc.ns(name) {
        Ok(link) => Ok(Some(link.inode)),
        // This kernel has no such namespaces.
        Err(criu_proc::Error::Kernel {
            errno: Errno::ENOENT,
            ..
        }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Time since boot in microseconds: tells later whether a pid has been used again.
fn uptime() -> Option<u64> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).ok()?;
    u64::try_from(std::time::Duration::from(time).as_micros()).ok()
}

/// A random UUID.
fn run_id() -> Result<String> {
    let mut bytes = [0; 16];
    let mut random =
        std::fs::File::open("/dev/urandom").map_err(Error::io("open(/dev/urandom)"))?;
    random
        .read_exact(&mut bytes)
        .map_err(Error::io("read(/dev/urandom)"))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok([
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-"))
}
