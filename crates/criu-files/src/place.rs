//! From the numbers of the tracer to the numbers of a task, in one program.

use std::collections::BTreeMap;

use criu_image::id::{FdTableId, FileId};
use criu_image::pb;
use criu_kind::{Error, Opened, Result, Shift};
use criu_tracee::{Program, Ret};

use crate::files::Files;
use crate::{locks, owner};

const FD_CLOEXEC: u32 = 1;
const O_CLOEXEC: u32 = libc::O_CLOEXEC.cast_unsigned();
const O_ASYNC: u32 = libc::O_ASYNC.cast_unsigned();

impl Files<'_> {
    /// Says how far the clocks of the tree are ahead of ours. Needed before [`Files::arm`].
    pub fn set_shift(&mut self, shift: Shift) {
        self.shift = shift;
    }

    /// Adds the calls that give a task its descriptors and close all others. They run in the task, when it needs
    /// nothing of what it inherited any more; tables in ascending order, once each.
    pub fn place(&mut self, table: FdTableId, program: &mut Program) -> Result<()> {
        self.relate(table, program)?;
        let entries = self.entries(table).to_vec();
        let mut sources = Vec::with_capacity(entries.len());
        for entry in &entries {
            sources.push(self.source(table, entry, program)?);
        }
        for (entry, source) in entries.iter().zip(sources) {
            let flags = if entry.flags & FD_CLOEXEC == 0 {
                0
            } else {
                O_CLOEXEC
            };
            match source {
                // It is there already, but here it had to be closed for scripts.
                Source::Number(fd) if fd == entry.fd.cast_signed() => {
                    program.fcntl(fd, libc::F_SETFD, entry.flags & FD_CLOEXEC)
                }
                Source::Number(fd) => program.dup3(fd, entry.fd, flags),
                Source::Result(fd) => program.dup3(fd, entry.fd, flags),
            };
        }
        let mut free = 0;
        for entry in &entries {
            if entry.fd > free {
                program.close_range(free, entry.fd - 1, 0);
            }
            free = entry.fd + 1;
        }
        program.close_range(free, u32::MAX, 0);
        Ok(())
    }

    /// Ties files to each other, those that have their home in this table.
    fn relate(&mut self, table: FdTableId, program: &mut Program) -> Result<()> {
        for id in self.related_in(table) {
            let saved = &self.all[&id];
            let (kind, entry) = (saved.kind, saved.entry.clone());
            kind.relate(self, &entry, program)?;
        }
        Ok(())
    }

    /// The files that [`Files::relate`] has something to do with in this table.
    pub(crate) fn related_in(&self, table: FdTableId) -> Vec<FileId> {
        let related = self.residents(table).iter().filter(|id| {
            let saved = &self.all[*id];
            saved.kind.relates() && !saved.part
        });
        related.copied().collect()
    }

    /// The files of each table, and, in the first one, those that no table has.
    pub(crate) fn find_residents(&self) -> BTreeMap<FdTableId, Vec<FileId>> {
        let first = self.tables.keys().next().copied();
        let mut residents: BTreeMap<FdTableId, Vec<FileId>> = BTreeMap::new();
        for id in self.all.keys() {
            // What is only in flight has no home: any will do.
            let home = self.homes.get(id).map(|(home, _)| *home).or(first);
            if let Some(home) = home {
                residents.entry(home).or_default().push(*id);
            }
        }
        residents
    }

    /// The files that have their home in this table, and, in the first one, those that have none.
    fn residents(&self, table: FdTableId) -> &[FileId] {
        self.residents.get(&table).map_or(&[], Vec::as_slice)
    }

    /// The files that have their home in this table, and their numbers there.
    fn at_home(&self, table: FdTableId) -> impl Iterator<Item = (FileId, i32)> {
        let residents = self.residents(table).iter();
        residents.filter_map(|id| Some((*id, self.homes.get(id)?.1)))
    }

    fn source(
        &self,
        table: FdTableId,
        entry: &pb::FdinfoEntry,
        program: &mut Program,
    ) -> Result<Source> {
        let id = FileId::new(entry.id);
        match self.opened.get(&id) {
            Some(Opened::Here(fd) | Opened::Given(fd)) => return Ok(Source::Number(*fd)),
            Some(Opened::There) => {}
            None => {
                return Err(Error::corrupt(
                    "files.img",
                    format!("file {id} is not open"),
                ));
            }
        }
        let saved = &self.all[&id];
        let fresh = match self.homes.get(&id) {
            Some((home, number)) if (*home, *number) != (table, entry.fd.cast_signed()) => {
                let pid = self.tasks.get(home).copied();
                let unknown =
                    || Error::corrupt("pstree.img", format!("nobody has descriptor table {home}"));
                if *home == table {
                    // Another number of the same table: found when it is placed.
                    return Ok(Source::Number(*number));
                }
                let pidfd = program.pidfd_open(pid.ok_or_else(unknown)?.get(), 0);
                let fd = program.pidfd_getfd(pidfd, *number, 0);
                program.close(pidfd);
                fd
            }
            _ => saved.kind.open_there(&saved.entry, program)?,
        };
        let high = program.fcntl(fresh, libc::F_DUPFD_CLOEXEC, self.floor);
        program.close(fresh);
        Ok(Source::Result(high))
    }

    /// Of a table without descriptors CRIU writes no image.
    fn entries(&self, table: FdTableId) -> &[pb::FdinfoEntry] {
        self.tables.get(&table).map_or(&[], Vec::as_slice)
    }

    /// Adds the calls that need every descriptor of every task in its place: owners of signals, locks. They run in
    /// the process that has the table, while it is still root.
    pub fn settle(&mut self, table: FdTableId, program: &mut Program) -> Result<()> {
        for (id, number) in self.at_home(table) {
            let saved = &self.all[&id];
            if let Some(owner) = saved.kind.owner(&saved.entry) {
                owner::set_owner(&owner, number, program);
            }
            if let Some(flags) = saved.kind.flags(&saved.entry)
                && !matches!(self.opened.get(&id), Some(Opened::Given(_)))
                && flags & O_ASYNC != 0
            {
                program.fcntl(number, libc::F_SETFL, flags);
            }
        }
        let pid = self.tasks.get(&table).map(|pid| pid.get());
        for lock in self
            .locks
            .iter()
            .filter(|lock| u32::try_from(lock.pid).ok() == pid)
        {
            let entries = self.entries(table);
            let at = entries.binary_search_by_key(&lock.fd.cast_unsigned(), |entry| entry.fd);
            let id = at.ok().map(|at| FileId::new(entries[at].id));
            let saved = id.and_then(|id| self.all.get(&id)).ok_or_else(|| {
                let why = format!("a lock of descriptor {}, which is not there", lock.fd);
                Error::corrupt("filelocks.img", why)
            })?;
            let flags = saved.kind.flags(&saved.entry).unwrap_or(0);
            locks::retake(lock, flags, program)?;
            // To break a lease unheard takes the owner away.
            if let Some(owner) = saved.kind.owner(&saved.entry) {
                owner::set_owner(&owner, lock.fd, program);
            }
        }
        Ok(())
    }

    /// Adds the calls of the last moment: clocks start.
    pub fn arm(&mut self, table: FdTableId, program: &mut Program) -> Result<()> {
        let files: Vec<(FileId, i32)> = self.at_home(table).collect();
        for (id, number) in files {
            let saved = &self.all[&id];
            let (kind, entry) = (saved.kind, saved.entry.clone());
            kind.arm(self, &entry, number, program)?;
        }
        Ok(())
    }

    /// Adds the calls that give a task its root, working directory and umask; before [`Files::place`].
    pub fn fs_program(&self, fs: &pb::FsEntry, program: &mut Program) -> Result<()> {
        let root = FileId::new(fs.root_id);
        let path = self.paths.get(&root);
        let path = path.ok_or_else(|| {
            Error::corrupt(
                "fs.img",
                format!("its root is file {root}, which is not there"),
            )
        })?;
        if path.name != b"/" || self.options.root.is_some() {
            let fd = self.directory(root, program)?;
            program.fchdir(fd);
            let here = program.cstr(".");
            program.chroot(here);
        }
        let fd = self.directory(FileId::new(fs.cwd_id), program)?;
        program.fchdir(fd);
        if let Some(umask) = fs.umask {
            program.umask(umask);
        }
        Ok(())
    }

    fn directory(&self, id: FileId, program: &mut Program) -> Result<criu_tracee::Arg> {
        match self.opened.get(&id) {
            Some(Opened::Here(fd) | Opened::Given(fd)) => Ok((*fd).into()),
            Some(Opened::There) => {
                let saved = &self.all[&id];
                Ok(saved.kind.open_there(&saved.entry, program)?.into())
            }
            None => Err(Error::corrupt("fs.img", format!("file {id} is not there"))),
        }
    }
}

/// Where a task takes a file from.
enum Source {
    Number(i32),
    Result(Ret),
}
