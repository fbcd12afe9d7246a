//! Files that are made when all processes are there, and how they get to them.
//!
//! The kernel remembers who made a socket and who connected it. So such files are made in the processes that
//! did, and fetched; whoever needs one gets it through a socket that every process has inherited.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::os::fd::IntoRawFd;

use criu_image::id::{FdTableId, FileId, ShmId, VPid};
use criu_image::{Store, pb};
use criu_kind::{Cache, Error, Opened, RestoreCx, Result, Shift, Within};
use criu_tracee::{Local, Program, Site, fetch_fd, pidfd_open};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};
use nix::unistd::Pid;

use crate::files::Files;
use crate::open::Numbers;

/// Descriptors in one message; the kernel takes 253.
const AT_ONCE: usize = 100;
const WORD: usize = size_of::<usize>();

/// The processes of the tree.
pub trait Sites {
    /// One of them, and the pid it has here.
    fn process(&mut self, pid: VPid) -> Option<(&mut dyn Site, Pid)>;

    /// The first.
    fn root(&self) -> VPid;
}

/// The descriptors through which late files reach the processes: ours, and theirs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passage {
    ours: i32,
    theirs: i32,
}

impl Passage {
    pub(crate) fn open(numbers: &mut Numbers) -> Result<Self> {
        let pair = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        );
        let (ours, theirs) = pair.map_err(Error::kernel("socketpair"))?;
        Ok(Self {
            ours: numbers.lift(ours.into_raw_fd())?,
            theirs: numbers.lift(theirs.into_raw_fd())?,
        })
    }

    pub(crate) fn close(self, program: &mut Program) {
        program.close(self.ours);
        program.close(self.theirs);
    }

    /// Gives a process copies of descriptors under the numbers they have here, all above `base`.
    fn send(self, numbers: &[i32], base: i32, site: &mut dyn Site) -> Result<()> {
        for some in numbers.chunks(AT_ONCE) {
            sendmsg::<()>(
                self.ours,
                &[IoSlice::new(b"f")],
                &[ControlMessage::ScmRights(some)],
                MsgFlags::empty(),
                None,
            )
            .map_err(Error::kernel("sendmsg"))?;
            let mut program = Program::new();
            // `struct cmsghdr`: a length and two ints.
            let header = WORD + 8;
            let control = program.room(header + some.len() * 4 + WORD);
            let byte = program.room(1);
            let vector = program.bytes([[0; WORD], 1usize.to_ne_bytes()].concat());
            program.link(vector, 0, byte);
            let message = program.in_out(message(header + some.len() * 4));
            program.link(message, 2 * WORD, vector);
            program.link(message, 4 * WORD, control);
            program.recvmsg(self.theirs, message, libc::MSG_CMSG_CLOEXEC);
            let outcome = site.run(&program)?;
            let got = rights(outcome.bytes(control), some.len());
            if got.len() != some.len() {
                return Err(Error::Kernel {
                    call: "recvmsg",
                    errno: nix::errno::Errno::EMFILE,
                });
            }
            // What arrives may have a number that another one is to have.
            let mut program = Program::new();
            let mut high = Vec::with_capacity(got.len());
            for fd in &got {
                high.push(program.fcntl(*fd, libc::F_DUPFD_CLOEXEC, base));
            }
            for fd in &got {
                program.close(*fd);
            }
            for (fd, number) in high.into_iter().zip(some) {
                program.dup3(fd, *number, libc::O_CLOEXEC);
                program.close(fd);
            }
            site.run(&program)?;
        }
        Ok(())
    }
}

/// `struct msghdr` without a name, with one buffer and this much room for control data.
fn message(control: usize) -> Vec<u8> {
    let words = [0, 0, 0, 1, 0, control, 0];
    words
        .into_iter()
        .flat_map(|word: usize| word.to_ne_bytes())
        .collect()
}

/// The descriptors of the first control message, at most `count`.
fn rights(control: &[u8], count: usize) -> Vec<i32> {
    let mut length = [0; WORD];
    length.copy_from_slice(&control[..WORD]);
    let data = WORD + 8;
    let end = usize::from_ne_bytes(length).min(control.len());
    let words = control.get(data..end).unwrap_or_default().chunks_exact(4);
    let numbers = words.map(|word| {
        let mut number = [0; 4];
        number.copy_from_slice(word);
        i32::from_ne_bytes(number)
    });
    numbers.take(count).collect()
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
    /// Whether [`Files::open_late`] has something to do.
    pub fn has_late(&self) -> bool {
        self.all
            .values()
            .any(|saved| !saved.part && saved.kind.late())
    }

    /// Makes the files that are to be made by the processes themselves. Between [`Files::open_all`] and the
    /// first [`Files::deliver`].
    pub fn open_late(&mut self, sites: &mut dyn Sites) -> Result<()> {
        let Some(mut numbers) = self.numbers.take() else {
            return Ok(());
        };
        let groups = self.groups()?;
        for group in groups {
            if !self.all[&group[0]].kind.late() {
                continue;
            }
            let kind = self.all[&group[0]].kind;
            let entries: Vec<_> = group.iter().map(|id| self.all[id].entry.clone()).collect();
            let subject = self.subject(group[0]);
            let mut cx = Late {
                files: self,
                sites,
                numbers: &mut numbers,
            };
            let opened = kind.open(
                &mut cx,
                &entries.iter().map(|entry| &**entry).collect::<Vec<_>>(),
            );
            let opened = opened.within(|| subject)?;
            for (id, opened) in group.into_iter().zip(opened) {
                let opened = self.keep(id, opened, &mut numbers)?;
                self.opened.insert(id, opened);
            }
        }
        self.numbers = Some(numbers);
        Ok(())
    }

    /// Gives a process the late files that its table has, and, if files are tied to each other there, all of
    /// them. Before [`Files::place`], once for each table.
    pub fn deliver(&mut self, table: FdTableId, site: &mut dyn Site) -> Result<()> {
        let (Some(passage), Some(numbers)) = (self.passage, &self.numbers) else {
            return Ok(());
        };
        let late = |id: &FileId| self.all.get(id).is_some_and(|saved| saved.kind.late());
        let ties = self
            .related_in(table)
            .iter()
            .any(|id| !self.all[id].kind.late());
        let own = self.tables.get(&table).into_iter().flatten();
        let own = own.map(|entry| FileId::new(entry.id));
        let wanted: BTreeSet<FileId> = match ties {
            true => self.opened.keys().copied().filter(late).collect(),
            false => own.filter(late).collect(),
        };
        let fds: Vec<i32> = wanted
            .iter()
            .filter_map(|id| match self.opened.get(id) {
                Some(Opened::Here(fd) | Opened::Given(fd)) => Some(*fd),
                _ => None,
            })
            .collect();
        passage.send(&fds, numbers.above(), site)
    }
}

/// What a late kind is given: all that others are, and the processes.
struct Late<'a, 's> {
    files: &'a mut Files<'s>,
    sites: &'a mut dyn Sites,
    numbers: &'a mut Numbers,
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
        let fetched = fetch_fd(pidfd_open(real)?, fd)?.ok_or_else(|| gone(pid))?;
        self.numbers.lift(fetched.into_raw_fd())
    }

    fn root(&self) -> VPid {
        self.sites.root()
    }

    fn shift(&self) -> Shift {
        self.files.shift()
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

/// Closes the passage here; processes close all that they are not to have.
pub(crate) fn close(files: &mut Files<'_>) -> Result<()> {
    if let Some(passage) = files.passage.take() {
        let mut program = Program::new();
        passage.close(&mut program);
        Local.run(&program)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_of_a_message() {
        let length = WORD + 8 + 8;
        let mut control = length.to_ne_bytes().to_vec();
        control.extend(
            [libc::SOL_SOCKET, libc::SCM_RIGHTS, 7, 9]
                .map(i32::to_ne_bytes)
                .concat(),
        );
        assert_eq!(rights(&control, 2), [7, 9]);
        assert_eq!(rights(&control, 1), [7]);
        // A kernel that gave fewer says so.
        control[..WORD].copy_from_slice(&(length - 4).to_ne_bytes());
        assert_eq!(rights(&control, 2), [7]);
        assert_eq!(message(24).len(), 7 * WORD);
    }
}
