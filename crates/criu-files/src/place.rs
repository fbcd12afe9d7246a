//! From the numbers of the tracer to the numbers of a task, in one program.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd;

use criu_image::id::{FdTableId, FileId, VPid};
use criu_image::pb;
use criu_kind::{Error, Opened, Result, Shift, Tie};
use criu_tracee::{Program, pidfd_open};
use nix::unistd::Pid;

use crate::files::Files;
use crate::last::runs;
use crate::numbers::tied_numbers;
use crate::passage::{Arrivals, Lane, Passage, Place};
use crate::{locks, owner};

const FD_CLOEXEC: u32 = 1;
const O_CLOEXEC: u32 = libc::O_CLOEXEC.cast_unsigned();
const O_ASYNC: u32 = libc::O_ASYNC.cast_unsigned();

impl Files<'_> {
    /// Says how far the clocks of the tree are ahead of ours. Needed before [`Files::arm`].
    pub fn set_shift(&mut self, shift: Shift) {
        self.shift = shift;
    }

    /// Sends a task its descriptors, and adds the calls that take them and close all others. They run in the task, when it
    /// needs nothing of what it inherited any more; tables in ascending order, once each, of which up to
    /// [`Files::lanes`] may run at the same time unless one [needs another](Files::needs_others).
    pub fn place(&mut self, table: FdTableId, program: &mut Program) -> Result<Arrivals> {
        let passage = self.passage.take();
        let mut passage = passage.ok_or_else(|| Error::corrupt("files.img", "no file is open"))?;
        let lane = passage.lane();
        let (lane, filler) = (passage.at(lane), passage.filler());
        let mut arrivals = self.relate(table, (lane, filler), program)?;
        lane.close_others(program);
        let entries = self.entries(table).to_vec();
        let mut places = Vec::with_capacity(entries.len());
        for entry in &entries {
            let id = FileId::new(entry.id);
            let place = Place {
                number: entry.fd.cast_signed(),
                closes: entry.flags & FD_CLOEXEC != 0,
                file: self.opened_here(id)?,
            };
            places.push((id, place));
        }
        arrivals.extend(self.bring((lane, filler), &places, program)?);
        for entry in &entries {
            if self.opened_here(FileId::new(entry.id))?.is_none() {
                self.open_there(table, entry, program)?;
            }
        }
        let mut free = 0;
        for entry in &entries {
            if entry.fd > free {
                program.close_range(free, entry.fd - 1, 0);
            }
            free = entry.fd + 1;
        }
        program.close_range(free, u32::MAX, 0);
        self.passage = Some(passage);
        Ok(arrivals)
    }

    /// How many tasks may be given their descriptors at the same time; after [`Files::open_all`].
    pub fn lanes(&self) -> usize {
        self.passage.as_ref().map_or(1, Passage::lanes)
    }

    /// Whether a table has a file that its task takes from another: when that has its own.
    pub fn needs_others(&self, table: FdTableId) -> bool {
        self.entries(table).iter().any(|entry| {
            let id = FileId::new(entry.id);
            let home = self.homes.get(&id).map(|(home, _)| *home);
            self.opened.get(&id) == Some(&Opened::There) && home != Some(table)
        })
    }

    /// Ties files to each other, those that have their home in this table. While that is done the task has all that
    /// are concerned, under numbers that nobody needs.
    fn relate(
        &mut self,
        table: FdTableId,
        (lane, filler): (&Lane, i32),
        program: &mut Program,
    ) -> Result<Arrivals> {
        let mut ties: Vec<Tie> = Vec::new();
        let mut tying = Vec::new();
        for id in self.related_in(table) {
            let saved = &self.all[&id];
            let (kind, entry) = (saved.kind, saved.entry.clone());
            let own = kind.ties(self, &entry)?;
            if !own.is_empty() {
                ties.extend(own);
                tying.push((kind, entry));
            }
        }
        let mut files: BTreeMap<FileId, i32> = BTreeMap::new();
        for (id, _) in &ties {
            files.extend(self.opened_here(*id)?.map(|file| (*id, file)));
        }
        if files.is_empty() {
            return Ok(Arrivals::default());
        }
        ties.retain(|(id, _)| files.contains_key(id));
        let numbers = tied_numbers(&ties, &mut self.spare_numbers(lane.theirs()))?;
        lane.close_others(program);
        let place = |(id, number): (&FileId, &i32)| {
            let place = Place {
                number: *number,
                closes: true,
                file: Some(files[id]),
            };
            (*id, place)
        };
        let mut places: Vec<(FileId, Place)> = numbers.iter().map(place).collect();
        places.sort_unstable_by_key(|(_, place)| place.number);
        let arrivals = self.bring((lane, filler), &places, program)?;
        self.tied = Some(numbers);
        let related = tying
            .into_iter()
            .try_for_each(|(kind, entry)| kind.relate(self, &entry, program));
        self.tied = None;
        related.map(|()| arrivals)
    }

    /// Sends files to their places. Those that cannot be sent are fetched from here, to which a descriptor of this
    /// process goes along.
    fn bring(
        &self,
        (lane, filler): (&Lane, i32),
        places: &[(FileId, Place)],
        program: &mut Program,
    ) -> Result<Arrivals> {
        let is_sent = |id: &FileId| self.all.get(id).is_none_or(|saved| saved.kind.sent());
        let mut sent: Vec<Place> = Vec::with_capacity(places.len());
        let mut fetched = Vec::new();
        for (id, place) in places {
            let file = place.file.filter(|_| is_sent(id));
            sent.push(Place { file, ..*place });
            if let (Some(from), None) = (place.file, file) {
                fetched.push((from, place));
            }
        }
        if fetched.is_empty() {
            return lane.send(&sent, filler, program);
        }
        let number = free_number(&sent, lane.theirs());
        let itself = pidfd_open(Pid::this())?;
        let at = sent.partition_point(|place| place.number < number);
        let itself_there = Place {
            number,
            closes: true,
            file: Some(itself.as_raw_fd()),
        };
        sent.insert(at, itself_there);
        let arrivals = lane.send(&sent, filler, program)?;
        for (from, place) in fetched {
            let fd = program.pidfd_getfd(number, from, 0);
            let flags = if place.closes { O_CLOEXEC } else { 0 };
            program.dup3(fd, place.number, flags);
            program.close(fd);
        }
        program.close(number);
        Ok(arrivals)
    }

    /// Numbers that neither tasks need nor the passage has.
    fn spare_numbers(&self, taken: i32) -> impl Iterator<Item = i32> {
        let used = self.numbers();
        let all = self.floor..self.limit;
        all.filter(move |number| *number != taken && !used.contains(number))
    }

    /// The number of a file here; `None` if it is to be opened in a task.
    pub(crate) fn opened_here(&self, id: FileId) -> Result<Option<i32>> {
        match self.opened.get(&id) {
            Some(Opened::Here(fd) | Opened::Given(fd)) => Ok(Some(*fd)),
            Some(Opened::There) => Ok(None),
            None => Err(Error::corrupt(
                "files.img",
                format!("file {id} is not open"),
            )),
        }
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

    /// Opens in a task what can be opened only there, or takes it from who has it already, to its number.
    fn open_there(
        &self,
        table: FdTableId,
        entry: &pb::FdinfoEntry,
        program: &mut Program,
    ) -> Result<()> {
        let id = FileId::new(entry.id);
        let saved = &self.all[&id];
        let flags = if entry.flags & FD_CLOEXEC == 0 {
            0
        } else {
            O_CLOEXEC
        };
        let fresh = match self.homes.get(&id) {
            Some((home, number)) if (*home, *number) != (table, entry.fd.cast_signed()) => {
                let pid = self.tasks.get(home).copied();
                let unknown =
                    || Error::corrupt("pstree.img", format!("nobody has descriptor table {home}"));
                if *home == table {
                    // Another number of the same table, a lower one: it is there by now.
                    program.dup3(*number, entry.fd, flags);
                    return Ok(());
                }
                let pidfd = program.pidfd_open(pid.ok_or_else(unknown)?.get(), 0);
                let fd = program.pidfd_getfd(pidfd, *number, 0);
                program.close(pidfd);
                fd
            }
            _ => saved.kind.open_there(&saved.entry, program)?,
        };
        program.dup3(fresh, entry.fd, flags);
        program.close(fresh);
        Ok(())
    }

    /// Of a table without descriptors CRIU writes no image.
    fn entries(&self, table: FdTableId) -> &[pb::FdinfoEntry] {
        self.tables.get(&table).map_or(&[], Vec::as_slice)
    }

    /// Adds the calls that close in the first task what nobody is to inherit: all but what is mapped, and directories.
    /// They run in it before it clones another.
    pub fn leave(&self, program: &mut Program) {
        let kept = |id: &FileId| self.inherited.contains(id);
        let opened = self.opened.iter().filter(|(id, _)| !kept(id));
        let numbers = opened.filter_map(|(_, opened)| match opened {
            Opened::Here(fd) | Opened::Given(fd) => Some(*fd),
            Opened::There => None,
        });
        for (first, last) in runs(numbers.collect()) {
            program.close_range(first, last, 0);
        }
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
            if kind.armed_by(&entry).is_none() {
                kind.arm(self, &entry, number, program)?;
            }
        }
        Ok(())
    }

    /// The processes in which files are armed that no other process may arm.
    pub fn armers(&self) -> BTreeSet<VPid> {
        let all = self.all.values();
        all.filter_map(|saved| saved.kind.armed_by(&saved.entry))
            .collect()
    }

    /// Adds the calls with which such a process arms its files, of which it has this table.
    pub fn arm_own(&mut self, pid: VPid, table: FdTableId, program: &mut Program) -> Result<()> {
        let own = self.all.iter().filter(|(_, saved)| {
            let by = saved.kind.armed_by(&saved.entry);
            by == Some(pid)
        });
        let own: Vec<FileId> = own.map(|(id, _)| *id).collect();
        for id in own {
            let entries = self.entries(table).iter();
            let number = entries
                .filter(|entry| entry.id == id.get())
                .map(|entry| entry.fd.cast_signed())
                .next();
            let number = number.ok_or_else(|| {
                let why = format!("process {pid} is to arm file {id}, which it does not have");
                Error::corrupt("files.img", why)
            })?;
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

/// The lowest number that is neither among the places, which are in the order of their numbers, nor taken.
fn free_number(places: &[Place], taken: i32) -> i32 {
    let mut number = 0;
    let mut places = places.iter().map(|place| place.number).peekable();
    loop {
        if places.next_if_eq(&number).is_none() && number != taken {
            return number;
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_number() {
        let places = |numbers: &[i32]| -> Vec<Place> {
            let place = |number: &i32| Place {
                number: *number,
                closes: false,
                file: None,
            };
            numbers.iter().map(place).collect()
        };
        assert_eq!(free_number(&[], 1), 0);
        assert_eq!(free_number(&[], 0), 1);
        assert_eq!(free_number(&places(&[0, 1, 2, 4]), 9), 3);
        assert_eq!(free_number(&places(&[0, 1, 2, 4]), 3), 5);
    }
}
