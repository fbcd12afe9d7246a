//! BPF programs, links and types that a task has open.
//!
//! A program that was loaded cannot be read in a form that can be loaded again: the kernel has rewritten it. So it is kept
//! only if it has a name in a BPF file system, under which it is found again; the tag tells whether it is the same.

use criu_image::{desc, pb};
use criu_kind::{DumpCx, Error, OpenFile, Opened, RestoreCx, Result};
use criu_proc::ProcDir;
use criu_tracee::Local;
use nix::unistd::Pid;
use std::os::fd::AsRawFd;

use crate::call;
use crate::maps::Maps;
use crate::pin::{self, Pins};

/// `struct bpf_prog_info`, as far as it is read.
const PROG_INFO: usize = 80;

/// What a descriptor is called, what people call it, and which line of fdinfo has its id and its type.
const OTHERS: &[(&str, &str, &str, &str)] = &[
    ("bpf-prog", "program", "prog_id", "prog_type"),
    ("bpf_link", "link", "link_id", "link_type"),
    ("btf", "type information", "btf_id", ""),
    ("bpf_iter", "iterator", "link_id", "link_type"),
    ("bpf-token", "token", "", ""),
];

fn other(
    file: &OpenFile,
) -> Option<&'static (&'static str, &'static str, &'static str, &'static str)> {
    OTHERS.iter().find(|(link, ..)| file.is_anon_inode(link))
}

/// Whether it is a BPF object, and no map.
pub(crate) fn is_other(file: &OpenFile) -> bool {
    other(file).is_some()
}

/// Describes it by its name, or refuses it by what it is.
pub(crate) fn dump(cx: &mut dyn DumpCx, file: &OpenFile) -> Result<pb::BpfmapFileEntry> {
    let Some((sort, what, id_line, type_line)) = other(file) else {
        return Err(Error::corrupt("files.img", "no BPF object"));
    };
    let line = |name: &str| {
        let value = file.info.value(name).unwrap_or_default();
        String::from_utf8_lossy(value).trim().to_owned()
    };
    let id: u32 = line(id_line).parse().unwrap_or(0);
    let tag = line("prog_tag");
    let name = match *sort {
        "bpf-prog" => call::text(
            &call::info(&mut Local, file.fd.as_raw_fd(), PROG_INFO)?,
            64,
            16,
        ),
        _ => Vec::new(),
    };
    let pins = match *sort {
        "bpf-prog" | "bpf_link" => Pins::find()?.of(sort, id),
        _ => Vec::new(),
    };
    if pins.is_empty() {
        let name = String::from_utf8_lossy(&name);
        let tag = if tag.is_empty() {
            String::new()
        } else {
            format!(", tag {tag}")
        };
        return Err(Error::unsupported(
            format!(
                "the BPF {what} \"{name}\" (id {id}, type {}{tag}) cannot be read back",
                line(type_line)
            ),
            "pin it in a BPF file system, or close it before the dump",
        ));
    }
    let ext = pb::BpfExtEntry {
        file_id: Some(file.number()),
        tag: Some(tag.into_bytes()),
        pins,
        ..pb::BpfExtEntry::default()
    };
    cx.append(desc::BPF_EXT, (), &ext, &[])?;
    Ok(pb::BpfmapFileEntry {
        id: file.number(),
        flags: file.flags(),
        fown: file.owner,
        map_id: id,
        map_name: name,
        ..pb::BpfmapFileEntry::default()
    })
}

/// Finds it by its name.
pub(crate) fn open(cx: &mut dyn RestoreCx, entry: &pb::BpfmapFileEntry) -> Result<Opened> {
    let maps = cx.cached(Maps::load)?;
    let ext = maps.other(entry.id)?;
    let path = ext.pins.first().map(Vec::as_slice).unwrap_or_default();
    let shown = String::from_utf8_lossy(path);
    let fd = pin::open(cx.here(), path, 0).map_err(|errno| {
        Error::unsupported(
            format!("no BPF object is pinned at {shown} ({errno})"),
            "load and pin the program before the restore",
        )
    })?;
    let info = ProcDir::open(Pid::this())?.fdinfo(fd)?;
    if info.value("prog_tag").unwrap_or_default().trim_ascii() != ext.tag() {
        call::close(cx.here(), fd)?;
        return Err(Error::unsupported(
            format!("another BPF program is pinned at {shown}"),
            "load and pin the one of the dump",
        ));
    }
    Ok(Opened::Here(fd))
}
