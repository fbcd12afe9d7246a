//! Sets of semaphores: semget(2).
//!
//! The state is a number for each, who operated it last, and what each process takes back when it ends (`undo`).
//! Waiters are not state: a blocked call is issued again. Not preserved: the time of the last operation.

use criu_image::pb;
use criu_kind::{Error, Result};
use criu_tracee::{Program, Site};

use crate::perm::{self, Creator, IPC_64, MODE_BITS, words};
use crate::sysvipc::Sem;
use crate::undo;

/// Calls in one batch.
const BATCH: u32 = 4096;

/// A set as it was found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) row: Sem,
    pub(crate) values: Vec<u16>,
    /// Who operated each last, as the reader of `/proc` numbers them.
    pub(crate) pids: Vec<i32>,
    pub(crate) undo: Vec<pb::IpcUndoEntry>,
}

/// A set of the images.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub(crate) entry: pb::IpcSemEntry,
    pub(crate) values: Vec<u16>,
    pub(crate) ext: Option<pb::IpcSemExtEntry>,
    pub(crate) there: bool,
}

/// Reads the values of a set.
pub(crate) fn values(site: &mut dyn Site, row: &Sem) -> Result<Vec<u16>> {
    let mut program = Program::new();
    let room = program.room(2 * row.nsems as usize);
    program.semctl(row.perm.id, 0, libc::GETALL, room);
    Ok(numbers(site.run(&program)?.bytes(room)))
}

/// Reads who operated each semaphore last.
pub(crate) fn pids(site: &mut dyn Site, row: &Sem) -> Result<Vec<i32>> {
    let mut pids = Vec::with_capacity(row.nsems as usize);
    for first in (0..row.nsems).step_by(BATCH as usize) {
        let mut program = Program::new();
        let last = row.nsems.min(first + BATCH);
        let rets: Vec<_> = (first..last)
            .map(|num| program.semctl(row.perm.id, num, libc::GETPID, 0))
            .collect();
        let outcome = site.run(&program)?;
        pids.extend(
            rets.iter()
                .map(|ret| i32::try_from(outcome.value(*ret)).unwrap_or(0)),
        );
    }
    Ok(pids)
}

/// The content of an image, or what a call wrote.
pub(crate) fn numbers(bytes: &[u8]) -> Vec<u16> {
    let pairs = bytes.chunks_exact(2);
    pairs
        .map(|pair| u16::from_ne_bytes([pair[0], pair[1]]))
        .collect()
}

impl Set {
    pub(crate) fn make(&self, site: &mut dyn Site, creator: Creator) -> Result<()> {
        let desc = &self.entry.desc;
        if !self.there {
            let create = (libc::IPC_CREAT | libc::IPC_EXCL).cast_unsigned();
            let flags = desc.mode & MODE_BITS | create;
            perm::make(site, creator, "sem", desc, |program| {
                program.semget(desc.key, self.entry.nsems, flags)
            })?;
        }
        let mut program = Program::new();
        let id = perm::number(desc)?;
        let values = words(&mut program, &self.values);
        program.semctl(id, 0, libc::SETALL, values);
        let structure = program.bytes(perm::structure(desc));
        program.semctl(id, 0, libc::IPC_SET | IPC_64, structure);
        site.run(&program)?;
        Ok(())
    }

    /// What a process is to do: take upon itself what it would take back.
    pub(crate) fn owe(&self, vpid: u32, program: &mut Program) {
        let all = self.ext.iter().flat_map(|ext| &ext.undo);
        for undo in all.filter(|undo| undo.pid == vpid) {
            if let Some(value) = self.values.get(undo.num as usize) {
                undo::owe(program, self.entry.desc.id, undo, *value);
            }
        }
    }

    /// What a process is to do when all owe what they owe: operate what it operated last.
    pub(crate) fn touch(&self, vpid: u32, program: &mut Program) {
        let pids = self.ext.iter().flat_map(|ext| &ext.pids).zip(0..);
        for ((pid, num), value) in pids.zip(&self.values) {
            if *pid == vpid {
                undo::touch(program, self.entry.desc.id, num, *value);
            }
        }
    }

    /// Whether a set that has the id is this one, as the dump has left it. Who ends gives back what it owes,
    /// so values may differ.
    pub(crate) fn is(&self, found: &Found, of_tree: &dyn Fn(i32) -> bool) -> Result<()> {
        let (desc, perm) = (&self.entry.desc, &found.row.perm);
        let same = self.ext.as_ref().is_some_and(|ext| ext.ctime == perm.ctime)
            && desc.key == perm.key.cast_unsigned()
            && (desc.cuid, desc.cgid) == (perm.cuid, perm.cgid)
            && self.entry.nsems == found.row.nsems;
        if !same {
            return Err(perm::taken(desc.id));
        }
        let changed = self.values.iter().zip(&found.values).zip(&found.pids);
        for (((old, new), pid), num) in changed.zip(0..) {
            if old != new && !of_tree(*pid) {
                return Err(Error::unsupported(
                    format!("task {pid} has operated semaphore {num} since the dump"),
                    "end that, then remove the set with ipcrm",
                ));
            }
        }
        Ok(())
    }
}
