//! Files that are made when all processes are there, and how they get to them.
//!
//! The kernel remembers who made a socket and who connected it. So such files are made in the processes that
//! did, and fetched; whoever needs one is sent it as all others are.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{IntoRawFd, OwnedFd};

use criu_image::id::{FileId, ShmId, VPid};
use criu_image::{Store, pb};
use criu_kind::{Cache, Error, RestoreCx, Result, Shift, Within};
use criu_tracee::{Name, Names, Program, Site, fetch_fd, pidfd_open};
use nix::unistd::Pid;

use crate::files::Files;

/// The processes of the tree.
pub trait Sites {
    /// One of them, and the pid it has here.
    fn process(&mut self, pid: VPid) -> Option<(&mut dyn Site, Pid)>;

    /// The first.
    fn root(&self) -> VPid;
}

/// The processes that a fact is about.
pub(crate) fn makers(ext: &pb::FilesExtEntry) -> impl Iterator<Item = u32> {
    let of_socket = ext.unix.iter().flat_map(|unix| [unix.peer, unix.connected]);
    let of_packet = ext.packet.iter().map(|packet| packet.creds);
    let all: Vec<_> = of_socket.chain(of_packet).flatten().collect();
    all.into_iter()
        .map(|creds| creds.pid)
        .filter(|pid| *pid != 0)
}

impl Files<'_> {
    /// Makes the files that are to be made by the processes themselves. Between [`Files::open_all`] and the
    /// first [`Files::place`].
    pub fn open_late(&mut self, sites: &mut dyn Sites) -> Result<()> {
        let mut pidfds = HashMap::new();
        for group in std::mem::take(&mut self.late) {
            let kind = self.all[&group[0]].kind;
            let entries: Vec<_> = group.iter().map(|id| self.all[id].entry.clone()).collect();
            let subject = self.subject(group[0]);
            let mut cx = Late {
                files: self,
                sites,
                pidfds: &mut pidfds,
            };
            let opened = kind.open(
                &mut cx,
                &entries.iter().map(|entry| &**entry).collect::<Vec<_>>(),
            );
            let opened = opened.within(|| subject)?;
            for (id, opened) in group.into_iter().zip(opened) {
                let opened = self.keep(id, opened)?;
                self.opened.insert(id, opened);
            }
        }
        Ok(())
    }
}

/// What a late kind is given: all that others are, and the processes.
struct Late<'a, 's> {
    files: &'a mut Files<'s>,
    sites: &'a mut dyn Sites,
    pidfds: &'a mut HashMap<Pid, OwnedFd>,
}

impl RestoreCx for Late<'_, '_> {
    fn here(&mut self) -> &mut dyn Site {
        self.files.here()
    }

    fn open_path(&mut self, id: FileId, flags: Option<u32>) -> Result<i32> {
        self.files.open_path(id, flags)
    }

    fn file(&self, id: FileId) -> Result<Option<i32>> {
        self.files.file(id)
    }

    fn beside(&self, id: FileId, fd: i32) -> Option<FileId> {
        self.files.beside(id, fd)
    }

    fn inherited(&self, key: &[u8]) -> Option<i32> {
        self.files.inherited(key)
    }

    fn is_of_task(&self, path: &[u8]) -> bool {
        self.files.is_of_task(path)
    }

    fn memory(&mut self, id: ShmId, object: i32, size: u64) -> Result<()> {
        self.files.memory(id, object, size)
    }

    fn is_external(&self, key: &str) -> bool {
        self.files.is_external(key)
    }

    fn home(&self, id: FileId) -> Option<VPid> {
        self.files.home(id)
    }

    fn at(&mut self, pid: VPid) -> Option<&mut dyn Site> {
        Some(self.sites.process(pid)?.0)
    }

    fn fetch(&mut self, pid: VPid, fd: i32) -> Result<i32> {
        let (_, real) = self.sites.process(pid).ok_or_else(|| gone(pid))?;
        let pidfd = match self.pidfds.entry(real) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(pidfd_open(real)?),
        };
        let fetched = fetch_fd(pidfd, fd)?.ok_or_else(|| gone(pid))?;
        Ok(fetched.into_raw_fd())
    }

    fn root(&self) -> VPid {
        self.sites.root()
    }

    fn shift(&self) -> Shift {
        self.files.shift()
    }

    fn make_name(&mut self, name: &Name, program: &Program) -> Result<()> {
        self.files.make_name(name, program)
    }

    fn names(&mut self) -> &mut Names {
        &mut self.files.names
    }

    fn store(&self) -> &dyn Store {
        self.files.store()
    }

    fn cache(&mut self) -> &mut Cache {
        self.files.cache()
    }
}

fn gone(pid: VPid) -> Error {
    Error::Gone(Pid::from_raw(pid.get().cast_signed()))
}
