//! Which objects of a namespace belong to a tree, and what is written of them.
//!
//! A namespace of the tree's own is written as a whole. In one that it shares, its objects are those that it uses: segments
//! that it has attached or has made, sets and queues that one of its processes was the last to use. Others
//! stay where they are.

use std::collections::{BTreeMap, BTreeSet};

use criu_image::id::ShmId;
use criu_image::{ImageId, Store, StoreExt, desc, pb};
use criu_kind::{Error, Result, Subject, Within};
use criu_tracee::Site;

use crate::sysvipc::{Perm, Shm, Tables};
use crate::undo::Asked;
use crate::{msg, perm, sem, shm, undo, var};

/// A process or thread of the tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Task {
    /// As the tree numbers it.
    pub vpid: u32,
    /// When it was born, in seconds since 1970.
    pub born: i64,
}

/// Who uses a namespace that others use too.
#[derive(Clone, Debug, Default)]
pub struct Users {
    /// Processes, by the pids that `/proc/sysvipc` shows.
    pub tasks: BTreeMap<i32, Task>,
    /// How many mappings of each segment they have.
    pub attached: BTreeMap<ShmId, u64>,
}

/// Whose objects are wanted.
#[derive(Clone, Copy, Debug)]
pub enum Scope {
    /// All: the namespace is the tree's own.
    Whole,
    /// Those that the tree uses.
    Used,
}

/// The objects that are dumped.
#[derive(Debug)]
pub struct Survey {
    users: Users,
    scope: Scope,
    segments: Vec<Shm>,
    huge: BTreeMap<ShmId, u64>,
    sets: Vec<sem::Found>,
    /// Of others, so far.
    other_sets: Vec<sem::Found>,
    queues: Vec<msg::Found>,
    var: Option<pb::IpcVarEntry>,
}

/// The subject of errors about an object.
pub(crate) fn subject(what: &str, id: u32, key: u32) -> Subject {
    Subject::Object(format!("System V {what} {id} (key {key:#x})"))
}

fn subject_of(what: &str, perm: &Perm) -> Subject {
    subject(what, perm.id.cast_unsigned(), perm.key.cast_unsigned())
}

impl Users {
    /// Whether who did something at a time was of the tree: a pid may have been another's before.
    fn has(&self, pid: i32, at: i64) -> bool {
        // Births are known to the second, and rounded down.
        self.tasks.get(&pid).is_some_and(|task| task.born <= at + 1)
    }

    fn vpid(&self, pid: i32) -> u32 {
        self.tasks.get(&pid).map_or(0, |task| task.vpid)
    }

    /// When the first of them was born.
    fn first(&self) -> i64 {
        self.tasks
            .values()
            .map(|task| task.born)
            .min()
            .unwrap_or(i64::MAX)
    }
}

/// Reads what the namespace of the site has. All refusals are in one error.
pub fn survey(site: &mut dyn Site, scope: Scope, users: Users) -> Result<Survey> {
    let tables = Tables::read(site)?;
    let whole = matches!(scope, Scope::Whole);
    let mut refused = Vec::new();
    let mut survey = Survey {
        users,
        scope,
        segments: Vec::new(),
        huge: BTreeMap::new(),
        sets: Vec::new(),
        other_sets: Vec::new(),
        queues: Vec::new(),
        var: None,
    };
    let users = &survey.users;
    for segment in tables.shm {
        let id = ShmId::new(u64::from(segment.perm.id.cast_unsigned()));
        let attached = users.attached.get(&id).copied().unwrap_or(0);
        let made = users.has(segment.cpid, segment.perm.ctime);
        if !whole && attached == 0 && !(made && segment.nattch == 0) {
            continue;
        }
        let checked = if segment.nattch > attached {
            Err(Error::unsupported(
                format!(
                    "processes outside of the tree have attached it: {} of {} times",
                    segment.nattch - attached,
                    segment.nattch
                ),
                "dump them too, or let them detach it",
            ))
        } else {
            Ok(())
        };
        refused.extend(
            checked
                .within(|| subject_of("shared memory", &segment.perm))
                .err(),
        );
        survey.segments.push(segment);
    }
    let first = users.first();
    for row in tables.sem {
        let last = row.otime.max(row.perm.ctime);
        if !whole && last + 1 < first {
            continue;
        }
        let found = sem::values(site, &row).and_then(|values| {
            let pids = sem::pids(site, &row)?;
            Ok(sem::Found {
                row,
                values,
                pids,
                undo: Vec::new(),
            })
        });
        match found.within(|| subject_of("semaphores", &row.perm)) {
            Ok(found) if whole || found.pids.iter().any(|pid| users.has(*pid, last)) => {
                survey.sets.push(found);
            }
            Ok(found) => survey.other_sets.push(found),
            Err(error) => refused.push(error),
        }
    }
    for row in tables.msg {
        let used = users.has(row.lspid, row.stime) || users.has(row.lrpid, row.rtime);
        if !whole && !used {
            continue;
        }
        match msg::read(site, row).within(|| subject_of("message queue", &row.perm)) {
            Ok(found) => survey.queues.push(found),
            Err(error) => refused.push(error),
        }
    }
    if whole {
        survey.var = Some(var::read(site)?);
    }
    Error::all(refused)?;
    Ok(survey)
}

impl Survey {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
            && self.sets.is_empty()
            && self.queues.is_empty()
            && self.var.is_none()
    }

    /// The segments whose content is to be written: id, size, and who made it.
    pub fn segments(&self) -> impl Iterator<Item = (ShmId, u64, i32)> {
        let all = self.segments.iter();
        all.map(|shm| {
            (
                ShmId::new(u64::from(shm.perm.id.cast_unsigned())),
                shm.size,
                shm.cpid,
            )
        })
    }

    /// Says that a segment is of huge pages, and how large those are.
    pub fn set_huge(&mut self, id: ShmId, page: u64) {
        self.huge.insert(id, page);
    }

    /// Whether processes have to be asked what they owe to semaphores.
    pub fn asks(&self) -> bool {
        !self.sets.is_empty() || !self.other_sets.is_empty()
    }

    /// Asks a process what it would take back from semaphores if it ended. Threads of a process usually share that, and
    /// then one of them is asked.
    pub fn ask(&mut self, site: &mut dyn Site, vpid: u32) -> Result<()> {
        let sets = self.sets.iter().chain(&self.other_sets);
        let asked: Vec<Asked<'_>> = sets
            .map(|found| Asked {
                id: found.row.perm.id.cast_unsigned(),
                values: &found.values,
            })
            .collect();
        let mut owing = BTreeSet::new();
        let known = self.sets.len();
        for (index, num, adj) in undo::sums(site, &asked)? {
            let undo = pb::IpcUndoEntry {
                pid: vpid,
                num,
                adj,
            };
            match index.checked_sub(known) {
                None => self.sets[index].undo.push(undo),
                Some(other) => {
                    self.other_sets[other].undo.push(undo);
                    owing.insert(other);
                }
            }
        }
        // Somebody else was the last to use it, but the tree is not through with it.
        for index in owing.into_iter().rev() {
            let found = self.other_sets.remove(index);
            self.sets.push(found);
        }
        Ok(())
    }

    /// Checks that nobody operated the sets while their state was read.
    pub fn check(&self, site: &mut dyn Site) -> Result<()> {
        let moved = self.sets.iter().map(|found| {
            let now = sem::values(site, &found.row);
            now.and_then(|now| match now == found.values {
                true => Ok(()),
                false => Err(Error::unsupported(
                    "somebody outside of the tree operates them",
                    "stop that, or dump it too",
                )),
            })
            .within(|| subject_of("semaphores", &found.row.perm))
        });
        Error::all(moved.filter_map(Result::err).collect())
    }

    /// Writes all but the content of segments.
    pub fn write(&self, store: &dyn Store, ns: u32) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let id = || ImageId::Number(ns.into());
        let mut ext = store.writer(desc::IPC_EXT, ns)?;
        let mut image = store.writer(desc::IPC_SHM, id())?;
        for found in &self.segments {
            let cpid = self.creator(found);
            let huge = ShmId::new(u64::from(found.perm.id.cast_unsigned()));
            let (entry, own) = shm::describe(found, self.huge.get(&huge).copied(), cpid);
            image.write(&entry)?;
            ext.write(&pb::IpcExtEntry {
                shm: Some(own),
                ..Default::default()
            })?;
        }
        image.finish()?;
        let mut image = store.writer(desc::IPC_MSG, id())?;
        for found in &self.queues {
            let row = &found.row;
            image.write(&pb::IpcMsgEntry {
                desc: perm::entry(&row.perm),
                qbytes: found.qbytes,
                qnum: u32::try_from(found.messages.len()).unwrap_or(u32::MAX),
            })?;
            for message in &found.messages {
                let entry = pb::IpcMsg {
                    mtype: message.kind,
                    msize: u32::try_from(message.text.len()).unwrap_or(u32::MAX),
                };
                image.write_with_extra(&entry, &message.text)?;
            }
            ext.write(&pb::IpcExtEntry {
                msg: Some(pb::IpcMsgExtEntry {
                    id: row.perm.id.cast_unsigned(),
                    ctime: row.perm.ctime,
                    stime: row.stime,
                    rtime: row.rtime,
                    lspid: self.users.vpid(row.lspid),
                    lrpid: self.users.vpid(row.lrpid),
                }),
                ..Default::default()
            })?;
        }
        image.finish()?;
        let mut image = store.writer(desc::IPC_SEM, id())?;
        for found in &self.sets {
            let row = &found.row;
            let entry = pb::IpcSemEntry {
                desc: perm::entry(&row.perm),
                nsems: row.nsems,
            };
            let bytes: Vec<u8> = found.values.iter().flat_map(|v| v.to_ne_bytes()).collect();
            image.write_with_extra(&entry, &bytes)?;
            let last = row.otime.max(row.perm.ctime);
            let of_tree = |pid: &i32| {
                if self.users.has(*pid, last) {
                    self.users.vpid(*pid)
                } else {
                    0
                }
            };
            ext.write(&pb::IpcExtEntry {
                sem: Some(pb::IpcSemExtEntry {
                    id: entry.desc.id,
                    ctime: row.perm.ctime,
                    pids: found.pids.iter().map(of_tree).collect(),
                    undo: found.undo.clone(),
                }),
                ..Default::default()
            })?;
        }
        image.finish()?;
        ext.finish()?;
        if let Some(var) = &self.var {
            store.write_entry(desc::IPC_VAR, id(), var)?;
        }
        Ok(())
    }

    fn creator(&self, shm: &Shm) -> u32 {
        match self.scope {
            Scope::Whole => self.users.vpid(shm.cpid),
            // Whoever it was: it tells this segment from a later one.
            Scope::Used => shm.cpid.cast_unsigned(),
        }
    }
}
