//! What a map is, without what is in it.

use criu_image::pb;
use criu_kind::{Error, Result};
use criu_tracee::arch::Arch;
use criu_tracee::{Native, Program, Site};
use nix::errno::Errno;

use crate::call::{self, Attributes, Command};

/// `struct bpf_map_info`, as far as it is read.
const INFO: usize = 88;
const NAME: usize = 16;
/// `struct bpf_btf_info`.
const BTF_INFO: usize = 32;
/// Flags that are about the descriptor that a call gives, not about the map.
pub(crate) const RDONLY: u32 = 1 << 3;
pub(crate) const WRONLY: u32 = 1 << 4;

/// How elements are found and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Keys and values.
    Pairs,
    /// Keys, and a value for each CPU.
    PerCpu,
    /// Keys and other maps.
    Maps,
    /// Values, first in first out.
    Queue,
    /// Values, last in first out.
    Stack,
    /// Records that only programs write.
    Ring,
}

/// `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
const ARRAY_OF_MAPS: u32 = 12;

/// Types of maps, `enum bpf_map_type`: number, name, and how to treat it.
const TYPES: &[(u32, &str, Option<Kind>)] = &[
    (1, "hash", Some(Kind::Pairs)),
    (2, "array", Some(Kind::Pairs)),
    (3, "prog_array", None),
    (4, "perf_event_array", None),
    (5, "percpu_hash", Some(Kind::PerCpu)),
    (6, "percpu_array", Some(Kind::PerCpu)),
    (7, "stack_trace", None),
    (8, "cgroup_array", None),
    (9, "lru_hash", Some(Kind::Pairs)),
    (10, "lru_percpu_hash", Some(Kind::PerCpu)),
    (11, "lpm_trie", Some(Kind::Pairs)),
    (ARRAY_OF_MAPS, "array_of_maps", Some(Kind::Maps)),
    (13, "hash_of_maps", Some(Kind::Maps)),
    (14, "devmap", None),
    (15, "sockmap", None),
    (16, "cpumap", None),
    (17, "xskmap", None),
    (18, "sockhash", None),
    (19, "cgroup_storage", None),
    (20, "reuseport_sockarray", None),
    (21, "percpu_cgroup_storage", None),
    (22, "queue", Some(Kind::Queue)),
    (23, "stack", Some(Kind::Stack)),
    (24, "sk_storage", None),
    (25, "devmap_hash", None),
    (26, "struct_ops", None),
    (27, "ringbuf", Some(Kind::Ring)),
    (28, "inode_storage", None),
    (29, "task_storage", None),
    (30, "bloom_filter", None),
    (31, "user_ringbuf", None),
    (32, "cgrp_storage", None),
    (33, "arena", None),
];

/// The name of a type.
pub(crate) fn type_name(number: u32) -> &'static str {
    let found = TYPES.iter().find(|(known, ..)| *known == number);
    found.map_or("of an unknown type", |(_, name, _)| name)
}

/// How a map of this type is treated, or why it cannot be kept.
pub(crate) fn kind(number: u32, name: &[u8]) -> Result<Kind> {
    let found = TYPES.iter().find(|(known, ..)| *known == number);
    found.and_then(|(.., kind)| *kind).ok_or_else(|| {
        Error::unsupported(
            format!(
                "a BPF map \"{}\" of type {number} ({}), whose elements cannot be read or made again",
                String::from_utf8_lossy(name),
                type_name(number)
            ),
            "close it before the dump, or pin it in a BPF file system",
        )
    })
}

/// Reads what an open map is. `entry` has what is not the map's but the file's.
pub(crate) fn read(site: &mut dyn Site, fd: i32, entry: pb::BpfmapFileEntry) -> Result<Shape> {
    let info = call::info(site, fd, INFO)?;
    let word = |at| call::word(&info, at);
    let name = call::text(&info, 24, NAME);
    let refuse = |fact: &str| {
        let name = String::from_utf8_lossy(&name);
        Err(Error::unsupported(
            format!("the BPF map \"{name}\" {fact}"),
            "close it before the dump, or pin it in a BPF file system",
        ))
    };
    if word(0) == ARRAY_OF_MAPS && Native::WORD < 8 {
        // They lie in steps of a word, and are looked for in steps of 8 bytes (`bpf_fd_array_map_update_elem`).
        return refuse("is an array of maps, of which a 32-bit kernel loses the elements");
    }
    if word(40) != 0 {
        return refuse("is kept by a network device");
    }
    if word(44) != 0 {
        return refuse("has values of a type of the kernel");
    }
    let (btf_id, key_type, value_type) = (word(64), word(68), word(72));
    let btf = if btf_id == 0 {
        None
    } else {
        Some(btf(site, btf_id)?)
    };
    if let Some(btf) = &btf
        && value_type != 0
    {
        // Who uses such a type has its name in there.
        for special in [
            &b"bpf_timer\0"[..],
            b"bpf_wq\0",
            b"bpf_list_head\0",
            b"bpf_rb_root\0",
            b"kptr\0",
        ] {
            if btf.windows(special.len()).any(|part| part == special) {
                return refuse("may hold timers or objects of the kernel in its values");
            }
        }
    }
    Ok(Shape {
        entry: pb::BpfmapFileEntry {
            map_type: word(0),
            map_id: word(4),
            key_size: word(8),
            value_size: word(12),
            max_entries: word(16),
            map_flags: word(20),
            map_name: name,
            map_extra: Some(call::long(&info, 80)).filter(|extra| *extra != 0),
            ..entry
        },
        ext: pb::BpfExtEntry {
            map_id: Some(word(4)),
            btf,
            btf_key_type_id: Some(key_type).filter(|id| *id != 0),
            btf_value_type_id: Some(value_type).filter(|id| *id != 0),
            ..pb::BpfExtEntry::default()
        },
    })
}

/// A map without its elements.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape {
    pub(crate) entry: pb::BpfmapFileEntry,
    pub(crate) ext: pb::BpfExtEntry,
}

/// The types behind an id, all of them.
fn btf(site: &mut dyn Site, id: u32) -> Result<Vec<u8>> {
    let fd = call::by_id(site, Command::BtfById, id, 0)
        .map_err(Error::kernel("bpf(BPF_BTF_GET_FD_BY_ID)"))?;
    let read = call::info(site, fd, BTF_INFO).and_then(|info| {
        let size = call::word(&info, 8) as usize;
        let mut program = Program::new();
        let types = program.room(size);
        let mut bytes = vec![0; BTF_INFO];
        bytes[8..12].copy_from_slice(&call::word(&info, 8).to_ne_bytes());
        let info = program.in_out(bytes);
        program.link(info, 0, types);
        let attributes = Attributes::new(16).fd(0, fd).word(4, 32).pointer(8, info);
        attributes.call(&mut program, Command::Info);
        Ok(site.run(&program)?.bytes(types).to_vec())
    });
    call::close(site, fd)?;
    read
}

impl Shape {
    pub(crate) fn kind(&self) -> Result<Kind> {
        kind(self.entry.map_type, &self.entry.map_name)
    }

    /// Makes an empty map. `inner` is one like those that it will hold.
    pub(crate) fn make(&self, site: &mut dyn Site, inner: Option<i32>) -> Result<i32> {
        let entry = &self.entry;
        let types = match &self.ext.btf {
            Some(btf) => Some(load_btf(site, btf)?),
            None => None,
        };
        let name: &[u8] = &entry.map_name;
        let attributes = Attributes::new(72)
            .word(0, entry.map_type)
            .word(4, entry.key_size)
            .word(8, entry.value_size)
            .word(12, entry.max_entries)
            // BPF_F_NUMA_NODE is told, and which node is not: it becomes the first.
            .word(16, entry.map_flags)
            .fd(20, inner.unwrap_or(0))
            .text(28, NAME, name)
            .fd(48, types.unwrap_or(0))
            .word(52, self.ext.btf_key_type_id())
            .word(56, self.ext.btf_value_type_id())
            .long(64, entry.map_extra());
        let made = attributes.make(site, Program::new(), Command::MapCreate);
        if let Some(types) = types {
            call::close(site, types)?;
        }
        match made {
            Ok(fd) => Ok(fd),
            Err(Errno::EPERM) => Err(Error::unsupported(
                "this user may not make a BPF map",
                "run with CAP_BPF",
            )),
            Err(errno) => Err(Error::kernel("bpf(BPF_MAP_CREATE)")(errno)),
        }
    }

    /// Whether a map that was found by its name is one like this.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let own = |shape: &Self| {
            let entry = &shape.entry;
            let sizes = [entry.key_size, entry.value_size, entry.max_entries];
            (
                entry.map_type,
                sizes,
                entry.map_flags,
                entry.map_name.clone(),
            )
        };
        own(self) == own(other)
    }
}

fn load_btf(site: &mut dyn Site, btf: &[u8]) -> Result<i32> {
    let mut program = Program::new();
    let size = u32::try_from(btf.len()).unwrap_or(u32::MAX);
    let types = program.bytes(btf);
    let attributes = Attributes::new(28).pointer(0, types).word(16, size);
    let loaded = attributes.make(site, program, Command::BtfLoad);
    loaded.map_err(Error::kernel("bpf(BPF_BTF_LOAD)"))
}
