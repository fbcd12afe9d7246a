//! The objects of the images, made again.
//!
//! [`Objects::load`] reads, [`Objects::check`] looks whether ids are free, [`Objects::make`] makes everything but the content
//! of segments, [`Objects::settle`] lets processes owe what they owed. Objects outlive processes: what was made
//! is removed again when [`Objects`] is dropped, unless [`Objects::keep`] was called.
//!
//! A dump that ends its tasks leaves their objects behind. Who still finds them under the same id, made at the same time
//! by the same process, and used by nobody else since, takes them over.

use criu_image::{Bytes, ImageReader, Store, StoreExt, desc, pb};
use criu_kind::{Error, Result, Within};
use criu_tracee::{Local, Program, Site};
use nix::errno::Errno;

use crate::msg::{Message, Queue};
use crate::perm::Creator;
use crate::sem::{self, Set};
use crate::shm::Segment;
use crate::survey::subject;
use crate::sysvipc::Tables;
use crate::var;

/// What the images of a namespace have.
#[derive(Debug, Default)]
pub struct Objects {
    segments: Vec<Segment>,
    sets: Vec<Set>,
    queues: Vec<Queue>,
    var: Option<pb::IpcVarEntry>,
    /// What is to be removed if the restore fails: which kind, and the id.
    made: Vec<Made>,
}

impl Objects {
    /// Reads the images of a namespace, if there are any.
    pub fn load(store: &dyn Store, ns: u32) -> Result<Self> {
        let mut objects = Self::default();
        for entry in store
            .entries::<pb::IpcShmEntry>(desc::IPC_SHM, ns)?
            .unwrap_or_default()
        {
            objects.segments.push(Segment {
                raw: (!entry.in_pagemaps()).then_some(entry.extra),
                entry: entry.message,
                ext: None,
                there: false,
            });
        }
        for entry in store
            .entries::<pb::IpcSemEntry>(desc::IPC_SEM, ns)?
            .unwrap_or_default()
        {
            let mut values = sem::numbers(&entry.extra);
            values.truncate(entry.nsems as usize);
            objects.sets.push(Set {
                entry: entry.message,
                values,
                ext: None,
                there: false,
            });
        }
        if let Some(reader) = store.reader(desc::IPC_MSG, ns)? {
            objects.queues = queues(reader)?;
        }
        objects.var = match store.entries::<pb::IpcVarEntry>(desc::IPC_VAR, ns)? {
            Some(entries) => entries.into_iter().next().map(|entry| entry.message),
            None => None,
        };
        objects.extend(store, ns)?;
        Ok(objects)
    }

    fn extend(&mut self, store: &dyn Store, ns: u32) -> Result<()> {
        let image = desc::IPC_EXT.file_name(ns);
        let absent =
            |what: &str, id: u32| Error::corrupt(image.as_str(), format!("no {what} {id}"));
        for entry in store
            .entries::<pb::IpcExtEntry>(desc::IPC_EXT, ns)?
            .unwrap_or_default()
        {
            match entry.message {
                pb::IpcExtEntry { shm: Some(ext), .. } => {
                    let mut all = self.segments.iter_mut();
                    let found = all.find(|one| one.entry.desc.id == ext.id);
                    found.ok_or_else(|| absent("segment", ext.id))?.ext = Some(ext);
                }
                pb::IpcExtEntry { sem: Some(ext), .. } => {
                    let mut all = self.sets.iter_mut();
                    let found = all.find(|one| one.entry.desc.id == ext.id);
                    let found = found.ok_or_else(|| absent("set", ext.id))?;
                    if ext
                        .undo
                        .iter()
                        .any(|undo| undo.num >= found.entry.nsems || undo.adj == 0)
                    {
                        let why = format!("set {} has no such semaphore", ext.id);
                        return Err(Error::corrupt(image.as_str(), why));
                    }
                    found.ext = Some(ext);
                }
                pb::IpcExtEntry { msg: Some(ext), .. } => {
                    let mut all = self.queues.iter_mut();
                    let found = all.find(|one| one.entry.desc.id == ext.id);
                    found.ok_or_else(|| absent("queue", ext.id))?.ext = Some(ext);
                }
                _ => return Err(Error::corrupt(image.as_str(), "an entry of unknown kind")),
            }
        }
        Ok(())
    }

    /// The segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Looks whether everything can be made in the namespace of the site, or is there still. Makes nothing; all
    /// refusals are in one error. `of_tree`: whether a pid was one of the tree's.
    pub fn check(&mut self, site: &mut dyn Site, of_tree: &dyn Fn(i32) -> bool) -> Result<()> {
        if self.segments.is_empty() && self.sets.is_empty() && self.queues.is_empty() {
            return Ok(());
        }
        let tables = Tables::read(site)?;
        let mut refused = Vec::new();
        for segment in &mut self.segments {
            let (id, key) = (segment.entry.desc.id, segment.entry.desc.key);
            let found = tables
                .shm
                .iter()
                .find(|row| row.perm.id.cast_unsigned() == id);
            let checked = match found {
                Some(found) => segment.is(found, of_tree),
                None => free_key(key, tables.shm.iter().map(|row| row.perm.key)),
            };
            segment.there = found.is_some();
            refused.extend(checked.within(|| subject("shared memory", id, key)).err());
        }
        for set in &mut self.sets {
            let (id, key) = (set.entry.desc.id, set.entry.desc.key);
            let found = tables
                .sem
                .iter()
                .find(|row| row.perm.id.cast_unsigned() == id);
            let checked = match found {
                Some(row) => sem::values(site, row).and_then(|values| {
                    let pids = sem::pids(site, row)?;
                    let found = sem::Found {
                        row: *row,
                        values,
                        pids,
                        undo: Vec::new(),
                    };
                    set.is(&found, of_tree)
                }),
                None => free_key(key, tables.sem.iter().map(|row| row.perm.key)),
            };
            set.there = found.is_some();
            refused.extend(checked.within(|| subject("semaphores", id, key)).err());
        }
        for queue in &mut self.queues {
            let (id, key) = (queue.entry.desc.id, queue.entry.desc.key);
            let found = tables
                .msg
                .iter()
                .find(|row| row.perm.id.cast_unsigned() == id);
            let checked = match found {
                Some(found) => queue.is(found, of_tree),
                None => free_key(key, tables.msg.iter().map(|row| row.perm.key)),
            };
            queue.there = found.is_some();
            refused.extend(checked.within(|| subject("message queue", id, key)).err());
        }
        Error::all(refused)
    }

    /// Sets the limits of the namespace of the site, which must be the tree's own.
    pub fn limit(&self, site: &mut dyn Site) -> Result<()> {
        self.var
            .as_ref()
            .map_or(Ok(()), |var| var::write(site, var))
    }

    /// What [`Objects::make`] is going to make.
    pub fn absent(&self) -> Vec<Made> {
        let segments = self.segments.iter().filter(|one| !one.there);
        let sets = self.sets.iter().filter(|one| !one.there);
        let queues = self.queues.iter().filter(|one| !one.there);
        let segments = segments.map(|one| Made("shm", one.entry.desc.id));
        let sets = sets.map(|one| Made("sem", one.entry.desc.id));
        let queues = queues.map(|one| Made("msg", one.entry.desc.id));
        segments.chain(sets).chain(queues).collect()
    }

    /// Makes everything that is not there; the content of segments is still to be brought in.
    pub fn make(&mut self, site: &mut dyn Site, creator: Creator) -> Result<()> {
        for segment in self.segments.iter().filter(|segment| !segment.there) {
            let desc = &segment.entry.desc;
            let made = segment.make(site, creator);
            made.within(|| subject("shared memory", desc.id, desc.key))?;
            self.made.push(Made("shm", desc.id));
        }
        for set in &self.sets {
            let desc = &set.entry.desc;
            let made = set.make(site, creator);
            made.within(|| subject("semaphores", desc.id, desc.key))?;
            self.made
                .extend((!set.there).then_some(Made("sem", desc.id)));
        }
        for queue in &self.queues {
            let desc = &queue.entry.desc;
            let made = queue.make(site, creator);
            made.within(|| subject("message queue", desc.id, desc.key))?;
            self.made
                .extend((!queue.there).then_some(Made("msg", desc.id)));
        }
        Ok(())
    }

    /// Adds what a process is to do when all are there: owe what it owes to semaphores.
    pub fn settle(&self, vpid: u32, program: &mut Program) {
        for set in &self.sets {
            set.owe(vpid, program);
        }
    }

    /// Adds what it is to do after all have done that: operate what it operated last.
    pub fn touch(&self, vpid: u32, program: &mut Program) {
        for set in &self.sets {
            set.touch(vpid, program);
        }
    }

    /// Adds what one of them does when all segments are attached.
    pub fn remove(&self, program: &mut Program) {
        for segment in &self.segments {
            segment.settle(program);
        }
    }

    /// The restore has succeeded: objects stay.
    pub fn keep(&mut self) {
        self.made.clear();
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        for made in self.made.drain(..).rev() {
            made.remove();
        }
    }
}

/// An object that a restore makes: which kind, and the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made(&'static str, u32);

impl Made {
    /// Removes it, as the restore has failed, if it is there.
    pub fn remove(self) {
        let Self(what, id) = self;
        let mut program = Program::new();
        match what {
            "shm" => program.shmctl(id, libc::IPC_RMID, 0),
            "sem" => program.semctl(id, 0, libc::IPC_RMID, 0),
            _ => program.msgctl(id, libc::IPC_RMID, 0),
        };
        match Local.run(&program) {
            Err(error) if !matches!(error.errno(), Some(Errno::EINVAL | Errno::EIDRM)) => {
                tracing::error!(what, id, %error, "an object of a failed restore stays");
            }
            _ => {}
        }
    }
}

fn free_key(key: u32, taken: impl IntoIterator<Item = i32>) -> Result<()> {
    if key != 0 && taken.into_iter().any(|taken| taken.cast_unsigned() == key) {
        return Err(Error::unsupported(
            "its key is taken by another object",
            "remove that with ipcrm, or restore in a new IPC namespace (unshare --ipc)",
        ));
    }
    Ok(())
}

fn queues(mut reader: ImageReader) -> Result<Vec<Queue>> {
    let mut queues = Vec::new();
    while let Some(entry) = reader.read::<pb::IpcMsgEntry>()? {
        let mut messages = Vec::new();
        for _ in 0..entry.qnum {
            let message = reader.read::<pb::IpcMsg>()?;
            let message = message
                .ok_or_else(|| Error::corrupt(reader.name(), "fewer messages than it says"))?;
            let size = message.msize as usize;
            let text = message.extra.get(..size).unwrap_or_default();
            messages.push(Message {
                kind: message.mtype,
                text: Bytes::copy_from_slice(text),
            });
        }
        queues.push(Queue {
            entry: entry.message,
            messages,
            ext: None,
            there: false,
        });
    }
    Ok(queues)
}
