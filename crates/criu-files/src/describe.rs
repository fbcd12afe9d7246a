//! What kinds may ask of the walker at dump: paths, parts, other files, images.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use criu_image::id::{FileId, ShmId};
use criu_image::{Desc, ImageId, ImageWriter, StoreExt, desc, pb};
use criu_kind::{Cache, DumpCx, Error, Inode, OpenFile, Result, Slot};
use criu_proc::{Dev, ProcDir};
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::collector::{Collector, Memory, O_CLOEXEC, Table};
use crate::look::Copied;
use crate::{ghost, link, path};

impl DumpCx for Collector<'_> {
    fn with_image(
        &mut self,
        desc: &'static Desc,
        id: ImageId,
        write: &mut dyn FnMut(&mut ImageWriter) -> criu_image::Result<()>,
    ) -> Result<()> {
        use std::collections::btree_map::Entry;
        let image = match self.images.entry(desc.file_name(id.clone())) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(self.store.writer(desc, id)?),
        };
        Ok(write(image)?)
    }

    fn put_image(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        Ok(self.store.put(name, bytes)?)
    }

    fn first(&mut self, kind: &'static str, key: u64) -> bool {
        self.seen.insert((kind, key))
    }

    fn path(&mut self, file: &OpenFile, id: FileId) -> Result<pb::RegFileEntry> {
        let mount = file.info.mount.map_or(-1, |mount| mount.0);
        let name = format!("file[{mount:x}:{:x}]", file.inode.ino);
        if self.options.external.contains(&name) {
            let mut entry = self.entry_of(file, id, name.into_bytes());
            entry.ext = Some(true);
            return Ok(entry);
        }
        if let Some(name) = self.device(file) {
            let mut entry = self.entry_of(file, id, format!("dev[{name}]").into_bytes());
            entry.ext = Some(true);
            return Ok(entry);
        }
        let named = match path::name(file) {
            Ok(named) if named.found == path::Found::Here => named,
            other => match self.device_elsewhere(file, other.is_err())? {
                Some(named) => named,
                None => other?,
            },
        };
        let mut entry = self.entry_of(file, id, named.path.clone());
        match named.found {
            path::Found::Here => {
                entry.build_id = crate::build_id::of(file, self.options.validation)?
            }
            path::Found::Unlinked => {
                let ghost = ghost::keep(self, file)?;
                self.remap(id, ghost, pb::RemapType::Ghost)?;
            }
            path::Found::OtherNames => {
                let linked = link::give_name(self, file, &named)?;
                self.remap(id, linked, pb::RemapType::Linked)?;
            }
            path::Found::DeadProcess(pid) => self.remap(id, pid, pb::RemapType::Procfs)?,
        }
        Ok(entry)
    }

    fn in_flight(&mut self, fd: OwnedFd) -> Result<FileId> {
        let slot = Slot {
            pid: Pid::this(),
            fd: fd.as_raw_fd(),
        };
        let me = ProcDir::open(slot.pid)?;
        let mut info = me.fdinfo(slot.fd)?;
        info.flags &= !O_CLOEXEC;
        let copy = || {
            let copy = fd.try_clone().map_err(Error::io("fcntl"))?;
            Ok(Some(Copied::from(copy)))
        };
        let found = self.identify(&me, slot, &info, copy)?;
        let (id, new) = found.ok_or(Error::Gone(slot.pid))?;
        if new {
            // Later files are compared with this one by its number here.
            self.kept.push(fd);
        }
        Ok(id)
    }

    fn part(
        &mut self,
        make: &mut dyn FnMut(&mut dyn DumpCx, FileId) -> Result<pb::FileEntry>,
    ) -> Result<FileId> {
        self.last += 1;
        let id = FileId::new(self.last);
        let entry = make(self, id)?;
        self.add(entry);
        Ok(id)
    }

    fn find(
        &mut self,
        near: Pid,
        fd: i32,
        ino: Option<u64>,
        fits: &mut dyn FnMut(Slot) -> Result<bool>,
    ) -> Result<Option<(FileId, Slot)>> {
        let numbered = |table: &Table| {
            table
                .files
                .get(&fd)
                .map(|id| (*id, Slot { pid: table.pid, fd }))
        };
        let own = self.tables.values().filter(|table| table.pid == near);
        let others = self.tables.values().filter(|table| table.pid != near);
        let alike = ino
            .and_then(|ino| self.inodes.get(&ino))
            .into_iter()
            .flatten()
            .copied();
        for (id, slot) in own.chain(others).filter_map(numbered).chain(alike) {
            if fits(slot)? {
                return Ok(Some((id, slot)));
            }
        }
        Ok(None)
    }

    fn scan_paths(&self) -> Option<Vec<std::path::PathBuf>> {
        self.options.irmap.clone()
    }

    fn vpid(&self, pid: Pid) -> Pid {
        let mut known = self.vpids.borrow_mut();
        *known.entry(pid).or_insert_with(|| {
            // Who has gone has no other number: a tree is in the dumper's own pid namespace, or refused.
            let inner = ProcDir::open(pid).and_then(|proc| proc.status()).ok();
            let inner = inner.and_then(|status| status.ns_pid?.last().copied());
            inner.unwrap_or(pid)
        })
    }

    fn tree(&self) -> &[Pid] {
        &self.options.tree
    }

    fn in_tree(&self, pid: Pid) -> bool {
        self.options.tree.contains(&pid)
    }

    fn namespace(&self, kind: &str, inode: u64) -> Option<u32> {
        let mut all = self.options.namespaces.iter();
        let own = all.find(|(known, number, _)| *known == kind && *number == inode);
        own.map(|(_, _, id)| *id)
    }

    fn is_external(&self, key: &str) -> bool {
        self.options.external.iter().any(|known| known == key)
    }

    fn cache(&mut self) -> &mut Cache {
        &mut self.cache
    }

    fn memory(&mut self, id: ShmId, object: OwnedFd, size: u64) {
        self.memory.push(Memory {
            id,
            object: object.into(),
            size,
        });
    }
}

impl Collector<'_> {
    /// What the user calls a device that stays outside.
    pub(crate) fn device(&self, file: &OpenFile) -> Option<&str> {
        let is_device = matches!(file.inode.format(), libc::S_IFCHR | libc::S_IFBLK);
        let number = Dev::from_st_dev(file.inode.rdev);
        let mut known = self.options.devices.iter();
        let found = known.find(|(device, _)| is_device && *device == number);
        found.map(|(_, name)| name.as_str())
    }

    /// Another node of the same device, if any will do (`--evasive-devices`), or if its own is out of
    /// reach: a descriptor from another mount namespace. A device is its number, whatever its node.
    fn device_elsewhere(&self, file: &OpenFile, lost: bool) -> Result<Option<path::Named>> {
        let wanted = lost || self.options.evasive_devices;
        if !wanted || file.inode.format() != libc::S_IFCHR {
            return Ok(None);
        }
        let mut nodes = Vec::new();
        for node in std::fs::read_dir("/dev").map_err(Error::io("getdents64"))? {
            nodes.push(node.map_err(Error::io("getdents64"))?.path());
        }
        nodes.sort();
        let same = nodes.into_iter().find(|node| {
            let stat = criu_tracee::stat::lstat(node).map(|stat| Inode::from(&stat));
            stat.is_ok_and(|stat| stat.format() == libc::S_IFCHR && stat.rdev == file.inode.rdev)
        });
        Ok(same.map(|node| path::Named {
            path: node.into_os_string().into_vec(),
            base: String::new(),
            found: path::Found::Here,
        }))
    }

    fn remap(&mut self, file: FileId, to: u32, kind: pb::RemapType) -> Result<()> {
        let remap = pb::RemapFilePathEntry {
            orig_id: file.get(),
            remap_id: to,
            remap_type: Some(kind.into()),
        };
        let cx: &mut dyn DumpCx = self;
        cx.append(desc::REMAP_FPATH, (), &remap, &[])
    }

    /// The mount a path is on, if mounts are dumped.
    pub(crate) fn mount_of(&self, file: &OpenFile) -> Option<i32> {
        let mount = file.info.mount.filter(|_| self.options.mounts)?;
        Some(mount.0)
    }

    /// The entry of a path, without what depends on where the path leads.
    fn entry_of(&self, file: &OpenFile, id: FileId, name: Vec<u8>) -> pb::RegFileEntry {
        let flags = file.flags();
        let only_appends = flags & libc::O_APPEND.cast_unsigned() != 0
            && flags & libc::O_ACCMODE.cast_unsigned() == libc::O_WRONLY.cast_unsigned();
        let has_size = file.inode.format() == libc::S_IFREG && !only_appends;
        pb::RegFileEntry {
            id: id.get(),
            flags,
            pos: file.info.pos.cast_unsigned(),
            fown: file.owner,
            name,
            mnt_id: self.mount_of(file),
            // A file that is only appended to may have grown: a log.
            size: has_size.then_some(file.inode.size),
            mode: Some(file.inode.mode),
            ..pb::RegFileEntry::default()
        }
    }

    /// A new file id for an entry that is not an open file.
    pub(crate) fn link_entry(&mut self, path: Vec<u8>, mount: Option<i32>) -> u32 {
        self.last += 1;
        let entry = pb::RegFileEntry {
            id: self.last,
            name: path,
            mnt_id: mount,
            ..pb::RegFileEntry::default()
        };
        self.add(criu_kind::FileEntry::into_file(entry));
        self.last
    }
}

/// A second opening of a file through its copy, for what the copy itself cannot do.
pub(crate) fn reopen(fd: impl AsFd, flags: nix::fcntl::OFlag) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    nix::fcntl::open(
        path.as_str(),
        flags | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
}
