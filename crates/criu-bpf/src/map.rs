//! BPF maps: bpf(2).
//!
//! A map is in the images once, however many descriptors of it there are, with all its elements. Maps in a map are known
//! by their ids; those that no task has open are fetched by id and kept beside. A map that is pinned is taken
//! as it is if it is found by its name, as a file would be. Not preserved: ids; which element of an LRU map was
//! used last; the node of memory, which becomes the first.

use std::io::Read;
use std::os::fd::AsRawFd;

use criu_image::{desc, pb};
use criu_kind::{
    DumpCx, Error, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result, Subject, Within,
};
use criu_proc::{Fdinfo, ProcDir};
use criu_tracee::Local;
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::call::{self, Command};
use crate::content::{self, Content};
use crate::link;
use crate::maps::Maps;
use crate::pin::Pins;
use crate::shape::{self, Kind, RDONLY, Shape, WRONLY};

const O_ACCMODE: u32 = libc::O_ACCMODE.cast_unsigned();
const O_RDWR: u32 = libc::O_RDWR.cast_unsigned();

/// A BPF map; also a program or a link that has a name.
#[derive(Debug)]
pub struct BpfMap;

impl FileKind for BpfMap {
    type Entry = pb::BpfmapFileEntry;
    const NAME: &'static str = "bpfmap";
    const SINCE: Kernel = Kernel::new(5, 6, 0);

    fn claims(&self, file: &OpenFile) -> bool {
        file.is_anon_inode("bpf-map") || link::is_other(file)
    }

    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        if link::is_other(file) {
            return link::dump(cx, file);
        }
        let entry = pb::BpfmapFileEntry {
            id: file.number(),
            flags: file.flags(),
            pos: file.info.pos.cast_unsigned(),
            fown: file.owner,
            ..of_fdinfo(&file.info)?
        };
        if file.flags() & O_ACCMODE == O_RDWR {
            return take(cx, file.fd.as_raw_fd(), entry, false);
        }
        with_map(entry.map_id, |fd| take(cx, fd, entry, false))
    }

    /// Whether it is pinned is said elsewhere.
    fn is_named(&self, entry: &Self::Entry) -> bool {
        entry.map_type != 0
    }

    fn twins(&self, entry: &Self::Entry) -> Option<u64> {
        (entry.map_type != 0).then_some(entry.map_id.into())
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        if entry.map_type == 0 {
            return link::open(cx, entry);
        }
        let mut all = self.open_twins(cx, &[entry])?;
        Ok(all.remove(0))
    }

    fn open_twins(&self, cx: &mut dyn RestoreCx, entries: &[&Self::Entry]) -> Result<Vec<Opened>> {
        if let [entry] = entries
            && entry.map_type == 0
        {
            return Ok(vec![link::open(cx, entry)?]);
        }
        let maps = cx.cached(Maps::load)?;
        let opened = entries.iter().map(|entry| {
            let flags = match (entry.flags & O_ACCMODE).cast_signed() {
                libc::O_RDONLY => RDONLY,
                libc::O_WRONLY => WRONLY,
                _ => 0,
            };
            maps.open(cx, entry.map_id, flags).map(Opened::Here)
        });
        opened.collect()
    }
}

/// What fdinfo says of a map.
fn of_fdinfo(info: &Fdinfo) -> Result<pb::BpfmapFileEntry> {
    Ok(pb::BpfmapFileEntry {
        map_id: info.dec("map_id")?,
        memlock: info.dec("memlock")?,
        // Linux 5.2.
        frozen: info.dec::<u32>("frozen").unwrap_or(0) != 0,
        mnt_id: info.mount.map(|id| id.0),
        ..pb::BpfmapFileEntry::default()
    })
}

/// Takes in a map that is open here for reading and writing; with its elements if it is new. `hidden`: no task has
/// it open, as far as is known.
fn take(
    cx: &mut dyn DumpCx,
    fd: i32,
    entry: pb::BpfmapFileEntry,
    hidden: bool,
) -> Result<pb::BpfmapFileEntry> {
    let Shape { entry, mut ext } = shape::read(&mut Local, fd, entry)?;
    let shape = Shape {
        entry: entry.clone(),
        ext: ext.clone(),
    };
    ext.pins = Pins::find()?.of("bpf-map", entry.map_id);
    ext.map = hidden.then(|| entry.clone());
    let kind = match shape.kind() {
        // What has a name is found by it again.
        Err(_) if !ext.pins.is_empty() => None,
        kind => Some(kind?),
    };
    if !cx.first(BpfMap::NAME, entry.map_id.into()) {
        return Ok(entry);
    }
    if let Some(kind) = kind {
        let cpus = content::cpus()?;
        let content = content::read(fd, &shape, cpus)?;
        ext.cpus = (kind == Kind::PerCpu).then_some(cpus);
        if kind == Kind::Maps {
            inner(cx, &entry, &content, !ext.pins.is_empty())?;
        }
        append(cx, entry.map_id, &content)?;
    }
    cx.append(desc::BPF_EXT, (), &ext, &[])?;
    Ok(entry)
}

fn append(cx: &mut dyn DumpCx, map_id: u32, content: &Content) -> Result<()> {
    let length = |bytes: &[u8]| {
        u32::try_from(bytes.len()).map_err(|_| {
            Error::unsupported(
                "a BPF map with more than 4 GiB of keys or values",
                "pin it in a BPF file system",
            )
        })
    };
    let entry = pb::BpfmapDataEntry {
        map_id,
        keys_bytes: length(&content.keys)?,
        values_bytes: length(&content.values)?,
        count: content.count,
    };
    cx.with_image(desc::BPFMAP_DATA, ().into(), &mut |image| {
        let mut both = content.keys.as_slice().chain(content.values.as_slice());
        let length = content.keys.len() + content.values.len();
        image.write_from(&entry, length as u64, &mut both)
    })
}

/// Takes in the maps that are elements of a map.
fn inner(
    cx: &mut dyn DumpCx,
    outer: &pb::BpfmapFileEntry,
    content: &Content,
    pinned: bool,
) -> Result<()> {
    if content.count == 0 && !pinned {
        let name = String::from_utf8_lossy(&outer.map_name).into_owned();
        return Err(Error::unsupported(
            format!(
                "the BPF map \"{name}\" is to hold other maps and holds none: what they would be like is told nowhere"
            ),
            "put one in, or pin it in a BPF file system",
        ));
    }
    for id in content.ids() {
        with_map(id, |fd| {
            let info = ProcDir::open(Pid::this())?.fdinfo(fd)?;
            let entry = pb::BpfmapFileEntry {
                flags: O_RDWR,
                ..of_fdinfo(&info)?
            };
            take(cx, fd, entry, true).map(drop)
        })
        .within(|| Subject::Object(format!("BPF map {id}, an element of it")))?;
    }
    Ok(())
}

/// Lends a descriptor of a map.
fn with_map<T>(id: u32, with: impl FnOnce(i32) -> Result<T>) -> Result<T> {
    let fd = match call::by_id(&mut Local, Command::MapById, id, 0) {
        Ok(fd) => fd,
        Err(Errno::EPERM) => {
            return Err(Error::unsupported(
                "BPF maps may not be opened by their ids by this user",
                "run with CAP_SYS_ADMIN",
            ));
        }
        Err(errno) => return Err(Error::kernel("bpf(BPF_MAP_GET_FD_BY_ID)")(errno)),
    };
    let done = with(fd);
    call::close(&mut Local, fd)?;
    done
}
