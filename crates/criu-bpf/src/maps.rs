//! The maps of a restore: each is made once, when it is first asked for.

use std::cell::RefCell;
use std::collections::HashMap;

use criu_image::{Bytes, Store, StoreExt, desc, pb};
use criu_kind::{Error, RestoreCx, Result};
use criu_tracee::{Local, Program, Site};
use nix::errno::Errno;

use crate::call::{self, Attributes, Command, word};
use crate::content::{self, Content};
use crate::pin;
use crate::shape::{self, Kind, RDONLY, Shape, WRONLY};

/// All maps of the images, by their old ids. Dropping it closes what is open here.
#[derive(Debug, Default)]
pub(crate) struct Maps {
    saved: HashMap<u32, Shape>,
    contents: HashMap<u32, (pb::BpfmapDataEntry, Bytes)>,
    others: HashMap<u32, pb::BpfExtEntry>,
    made: RefCell<HashMap<u32, Made>>,
}

/// A map that is there again.
#[derive(Clone, Copy, Debug)]
struct Made {
    /// For reading and writing.
    fd: i32,
    id: u32,
    /// Whether a task has `fd` itself.
    taken: bool,
}

impl Maps {
    pub(crate) fn load(store: &dyn Store) -> Result<Self> {
        let mut maps = Self::default();
        for entry in store
            .entries::<pb::FileEntry>(desc::FILES, ())?
            .unwrap_or_default()
        {
            if let Some(entry) = entry.message.bpf {
                maps.take(*entry)?;
            }
        }
        for entry in store
            .entries::<pb::BpfExtEntry>(desc::BPF_EXT, ())?
            .unwrap_or_default()
        {
            let mut ext = entry.message;
            if let Some(file) = ext.file_id {
                maps.others.insert(file, ext);
                continue;
            }
            if let Some(hidden) = ext.map.take() {
                maps.take(hidden)?;
            }
            let id = ext.map_id();
            let saved = maps.saved.get_mut(&id);
            saved.ok_or_else(|| corrupt(format!("no map {id}")))?.ext = ext;
        }
        let contents = store.entries::<pb::BpfmapDataEntry>(desc::BPFMAP_DATA, ())?;
        for entry in contents.unwrap_or_default() {
            maps.contents
                .insert(entry.map_id, (entry.message, entry.extra));
        }
        Ok(maps)
    }

    /// Of several entries of one map only the ids of the files may differ.
    fn take(&mut self, entry: pb::BpfmapFileEntry) -> Result<()> {
        if entry.map_type == 0 {
            return Ok(());
        }
        let new = Shape {
            entry,
            ..Shape::default()
        };
        let id = new.entry.map_id;
        match self.saved.get(&id) {
            Some(known) if !known.is_like(&new) => {
                Err(corrupt(format!("two maps have the id {id}")))
            }
            Some(_) => Ok(()),
            None => {
                self.saved.insert(id, new);
                Ok(())
            }
        }
    }

    /// What is known of a file that is no map.
    pub(crate) fn other(&self, file: u32) -> Result<&pb::BpfExtEntry> {
        let known = self.others.get(&file);
        known.ok_or_else(|| corrupt(format!("file {file} has no name")))
    }

    /// A new opening of a map.
    pub(crate) fn open(&self, cx: &mut dyn RestoreCx, id: u32, flags: u32) -> Result<i32> {
        let made = self.map(cx, id)?;
        let site = cx.here();
        if flags == 0 && !made.taken {
            // No privilege is needed for the first.
            let mut program = Program::new();
            let fd = program.fcntl(made.fd, libc::F_DUPFD_CLOEXEC, 0);
            let fd = site.run(&program)?.fd(fd);
            self.made.borrow_mut().insert(
                id,
                Made {
                    taken: true,
                    ..made
                },
            );
            return Ok(fd);
        }
        by_id(site, made.id, flags)
    }

    fn map(&self, cx: &mut dyn RestoreCx, id: u32) -> Result<Made> {
        if let Some(made) = self.made.borrow().get(&id) {
            return Ok(*made);
        }
        let shape = self
            .saved
            .get(&id)
            .ok_or_else(|| corrupt(format!("no map {id}")))?;
        let fd = match self.find(cx.here(), shape)? {
            Some(found) => found,
            None => self.make(cx, shape)?,
        };
        let info = call::info(cx.here(), fd, 8)?;
        let made = Made {
            fd,
            id: word(&info, 4),
            taken: false,
        };
        self.made.borrow_mut().insert(id, made);
        Ok(made)
    }

    /// The map under one of its names, if it is there.
    fn find(&self, site: &mut dyn Site, wanted: &Shape) -> Result<Option<i32>> {
        for path in &wanted.ext.pins {
            match pin::open(site, path, 0) {
                Ok(fd) => {
                    let found = shape::read(site, fd, pb::BpfmapFileEntry::default())?;
                    if !found.is_like(wanted) {
                        let path = String::from_utf8_lossy(path);
                        return Err(Error::unsupported(
                            format!("the BPF map pinned at {path} is another one"),
                            "remove that name, or restore the map that had it",
                        ));
                    }
                    return Ok(Some(fd));
                }
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(Error::kernel("bpf(BPF_OBJ_GET)")(errno)),
            }
        }
        Ok(None)
    }

    fn make(&self, cx: &mut dyn RestoreCx, shape: &Shape) -> Result<i32> {
        let kind = shape.kind()?;
        let mut content = self.content(shape)?;
        let mut like = None;
        if kind == Kind::Maps {
            for inner in content.ids() {
                like = Some(self.map(cx, inner)?.fd);
            }
            if like.is_none() {
                let why = format!("map {} holds none, of an unknown kind", shape.entry.map_id);
                return Err(corrupt(why));
            }
            let made = self.made.borrow();
            content = content.with_values(|id| {
                let made = made
                    .get(&id)
                    .ok_or_else(|| corrupt(format!("no map {id}")))?;
                Ok(made.fd)
            })?;
        }
        let cpus = content::cpus()?;
        if kind == Kind::PerCpu {
            content = content.for_cpus(shape.ext.cpus(), cpus)?;
        }
        let site = cx.here();
        let mut fd = shape.make(site, like)?;
        if shape.entry.map_flags & (RDONLY | WRONLY) != 0 {
            // The first descriptor may not be used for both; any other may.
            let info = call::info(site, fd, 8)?;
            let both = by_id(site, word(&info, 4), 0)?;
            call::close(site, fd)?;
            fd = both;
        }
        content::write(site, fd, shape, &content, cpus)?;
        if shape.entry.frozen {
            let attributes = Attributes::new(4).fd(0, fd);
            let frozen = attributes.make(site, Program::new(), Command::MapFreeze);
            frozen.map_err(Error::kernel("bpf(BPF_MAP_FREEZE)"))?;
        }
        for path in &shape.ext.pins {
            pin::pin(cx, fd, path)?;
        }
        Ok(fd)
    }

    fn content(&self, shape: &Shape) -> Result<Content> {
        let Some((entry, bytes)) = self.contents.get(&shape.entry.map_id) else {
            return Ok(Content::default());
        };
        let (keys, values) = bytes.split_at(bytes.len().min(entry.keys_bytes as usize));
        Ok(Content {
            keys: keys.to_vec(),
            values: values.to_vec(),
            count: entry.count,
        })
    }
}

fn by_id(site: &mut dyn Site, id: u32, flags: u32) -> Result<i32> {
    let fd = call::by_id(site, Command::MapById, id, flags);
    fd.map_err(Error::kernel("bpf(BPF_MAP_GET_FD_BY_ID)"))
}

fn corrupt(why: String) -> Error {
    Error::corrupt("criu-rs-bpf.img", why)
}

impl Drop for Maps {
    fn drop(&mut self) {
        for made in self.made.get_mut().values() {
            if let Err(error) = call::close(&mut Local, made.fd) {
                tracing::debug!(%error, "a BPF map stays open");
            }
        }
    }
}
