//! The seeds of the fuzz targets: an image of every kind, in a few sizes, and texts that no fixture has.
//!
//! Messages are made up from the schema, with a fixed pattern for values, so that writing them again gives the same
//! files. A kind whose entries have bytes after them is written by the crate itself.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use criu_image::desc::{
    self, ALL, COMMON_MAGIC, Desc, IdForm, ImageId, Layout, Prefix, SERVICE_MAGIC,
};
use criu_image::pages::{PageFlags, PagemapWriter};
use criu_image::schema::{self, Label, Type};
use criu_image::{ImageWriter, Memory, Store as _, parse_any, pb};

/// The most there may be in the repository.
const LIMIT: u64 = 200 << 10;

/// Writes all of it.
pub(crate) fn write(corpus: &Path) -> Result<()> {
    for target in ["image", "pagemap", "proc"] {
        let dir = corpus.join(target);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir)?;
    }
    images(&corpus.join("image"))?;
    with_payload(&corpus.join("image"))?;
    pagemaps(&corpus.join("pagemap"))?;
    for (name, text) in TEXTS {
        std::fs::write(corpus.join("proc").join(name), text)?;
    }
    let (mut files, mut bytes) = (0, 0);
    for target in std::fs::read_dir(corpus)? {
        for file in std::fs::read_dir(target?.path())? {
            files += 1;
            bytes += file?.metadata()?.len();
        }
    }
    println!("{files} files, {} KiB", bytes >> 10);
    ensure!(bytes < LIMIT, "that is more than {} KiB", LIMIT >> 10);
    Ok(())
}

fn images(dir: &Path) -> Result<()> {
    let plain = |desc: &&&Desc| matches!(desc.layout, Layout::Entries | Layout::Headed);
    for desc in ALL.iter().filter(plain) {
        let id = match desc.id {
            IdForm::Single => ImageId::Single,
            IdForm::Word => ImageId::from("dump"),
            _ => ImageId::Number(1),
        };
        let name = desc.file_name(id);
        for (size, times) in [("small", 0), ("large", 2)] {
            let mut bytes = Vec::new();
            match desc.prefix {
                Prefix::Common => bytes.extend(COMMON_MAGIC.to_le_bytes()),
                Prefix::Service => bytes.extend(SERVICE_MAGIC.to_le_bytes()),
                Prefix::Own | Prefix::None => {}
            }
            bytes.extend(desc.magic.to_le_bytes());
            for index in 0..=times {
                let message = desc.messages[index.min(desc.messages.len() - 1)].name;
                let raw = Draw {
                    times,
                    state: 1 + index as u64,
                }
                .message(message, 0)?;
                bytes.extend(u32::try_from(raw.len())?.to_le_bytes());
                bytes.extend(raw);
            }
            let parsed = parse_any(&name, &bytes).with_context(|| name.clone())?;
            ensure!(
                parsed.inexact.is_empty(),
                "{name} is not written as it was read"
            );
            std::fs::write(dir.join(format!("{name}.{size}")), bytes)?;
        }
    }
    Ok(())
}

/// Where values come from.
struct Draw {
    /// How often a repeated field occurs; optional ones do if it is not 0.
    times: usize,
    state: u64,
}

impl Draw {
    fn number(&mut self) -> u64 {
        self.state = self
            .state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(1);
        // Small numbers are as frequent as large ones.
        self.state >> (self.state & 63)
    }

    fn message(&mut self, name: &str, depth: u8) -> Result<Vec<u8>> {
        let message = schema::message(name).with_context(|| name.to_owned())?;
        let mut out = Vec::new();
        for field in message.fields {
            let times = match field.label {
                Label::Required => 1,
                Label::Optional => self.times.min(1),
                Label::Repeated if depth > 2 => 0,
                Label::Repeated => self.times,
            };
            for _ in 0..times {
                self.value(&mut out, field.number, field.ty, depth)?;
            }
        }
        Ok(out)
    }

    fn value(&mut self, out: &mut Vec<u8>, number: u32, ty: Type, depth: u8) -> Result<()> {
        let key = |wire: u32| u64::from(number << 3 | wire);
        let word = match ty {
            Type::Message(name) => {
                let inner = self.message(name, depth + 1)?;
                return delimited(out, key(2), &inner);
            }
            Type::String | Type::Bytes => {
                return delimited(out, key(2), &b"/bytes"[..(self.number() % 7) as usize]);
            }
            Type::Fixed64 => {
                varint(out, key(1));
                out.extend(self.number().to_le_bytes());
                return Ok(());
            }
            Type::Uint64 | Type::Sint64 | Type::Int64 => self.number(),
            Type::Uint32 | Type::Sint32 | Type::Int32 => self.number() & 0x7fff_ffff,
            Type::Bool => 1,
            Type::Enum(name) => {
                let values = schema::enumeration(name).context(name)?.values;
                let at = usize::try_from(self.number())? % values.len();
                i64::from(values[at].0).cast_unsigned()
            }
        };
        varint(out, key(0));
        varint(out, word);
        Ok(())
    }
}

fn delimited(out: &mut Vec<u8>, key: u64, bytes: &[u8]) -> Result<()> {
    varint(out, key);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
    Ok(())
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 127 {
        out.push(value.to_le_bytes()[0] | 128);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// An image written by the crate itself.
fn written(
    dir: &Path,
    desc: &'static Desc,
    name: &str,
    write: impl FnOnce(&mut ImageWriter<Vec<u8>>) -> criu_image::Result<()>,
) -> Result<()> {
    let mut writer = ImageWriter::new(desc, name, Vec::new())?;
    write(&mut writer)?;
    std::fs::write(dir.join(name), writer.finish()?)?;
    Ok(())
}

/// Entries with bytes after them.
fn with_payload(dir: &Path) -> Result<()> {
    let ipc = || pb::IpcDescEntry {
        key: 7,
        mode: 0o600,
        id: 3,
        ..Default::default()
    };
    for (desc, name) in [
        (desc::PIPES_DATA, "pipes-data.img"),
        (desc::FIFO_DATA, "fifo-data.img"),
    ] {
        written(dir, desc, name, |image| {
            for (pipe_id, data) in [(1, &b"hello"[..]), (2, b""), (3, &[0; 100])] {
                let bytes = u32::try_from(data.len()).unwrap_or_default();
                image.write_with_extra(
                    &pb::PipeDataEntry {
                        pipe_id,
                        bytes,
                        size: Some(4096),
                    },
                    data,
                )?;
            }
            Ok(())
        })?;
    }
    written(dir, desc::SK_QUEUES, "sk-queues.img", |image| {
        image.write_with_extra(
            &pb::SkPacketEntry {
                id_for: 1,
                length: 6,
                ..Default::default()
            },
            b"packet",
        )?;
        image.write_with_extra(
            &pb::SkPacketEntry {
                id_for: 2,
                length: 0,
                ..Default::default()
            },
            b"",
        )
    })?;
    written(dir, desc::TCP_STREAM, "tcp-stream-1.img", |image| {
        let entry = pb::TcpStreamEntry {
            inq_len: 3,
            outq_len: 4,
            inq_seq: 1 << 31,
            ..Default::default()
        };
        image.write_with_extra(&entry, b"inwardly"[..7].as_ref())
    })?;
    written(dir, desc::BPFMAP_DATA, "bpfmap-data.img", |image| {
        let entry = pb::BpfmapDataEntry {
            map_id: 1,
            keys_bytes: 8,
            values_bytes: 16,
            count: 2,
        };
        image.write_with_extra(&entry, &[7; 24])
    })?;
    written(dir, desc::IPC_SEM, "ipcns-sem-1.img", |image| {
        image.write_with_extra(
            &pb::IpcSemEntry {
                desc: ipc(),
                nsems: 3,
            },
            &[1; 6],
        )
    })?;
    written(dir, desc::IPC_MSG, "ipcns-msg-1.img", |image| {
        image.write(&pb::IpcMsgEntry {
            desc: ipc(),
            qbytes: 16384,
            qnum: 2,
        })?;
        image.write_with_extra(&pb::IpcMsg { mtype: 1, msize: 5 }, b"first")?;
        image.write_with_extra(&pb::IpcMsg { mtype: 2, msize: 8 }, b"the next")?;
        image.write(&pb::IpcMsgEntry {
            desc: ipc(),
            qbytes: 16384,
            qnum: 0,
        })
    })?;
    written(dir, desc::IPC_SHM, "ipcns-shm-1.img", |image| {
        let entry = |size, in_pagemaps| pb::IpcShmEntry {
            desc: ipc(),
            size,
            in_pagemaps,
            ..Default::default()
        };
        image.write(&entry(1 << 20, Some(true)))?;
        image.write_with_extra(&entry(10, None), b"0123456789")
    })?;
    let ghost = |chunks| pb::GhostFileEntry {
        mode: 0o100_644,
        chunks,
        size: Some(4096),
        ..Default::default()
    };
    written(dir, desc::GHOST_FILE, "ghost-file-1.img", |image| {
        image.write(&ghost(None))?;
        image.write_raw(b"all that is left")
    })?;
    written(dir, desc::GHOST_FILE, "ghost-file-2.img", |image| {
        image.write(&ghost(Some(true)))?;
        image.write_with_extra(&pb::GhostChunkEntry { len: 4, off: 0 }, b"here")?;
        image.write_with_extra(&pb::GhostChunkEntry { len: 5, off: 4000 }, b"there")
    })
}

fn pagemaps(dir: &Path) -> Result<()> {
    const PAGE: u64 = 4096;
    let all = [
        PageFlags::PRESENT,
        PageFlags::PARENT,
        PageFlags::PRESENT | PageFlags::LAZY,
    ];
    for (name, ranges) in [("empty", 0), ("one", 1), ("some", 9)] {
        let store = Memory::new();
        let mut writer = PagemapWriter::new(desc::PAGEMAP, 1u32, 1.into(), PAGE)?;
        for (range, flags) in (0..ranges).zip(all.iter().cycle()) {
            writer.push(range * 8 * PAGE, 1 + range % 8, *flags)?;
        }
        writer.finish(&store)?;
        store.finish()?;
        let bytes = store.read("pagemap-1.img")?.context("just written")?;
        std::fs::write(dir.join(name), bytes)?;
    }
    // The last page there can be, and the sizes of older versions.
    let entries = [
        pb::PagemapEntry {
            vaddr: 0,
            compat_nr_pages: 3,
            in_parent: Some(true),
            ..Default::default()
        },
        pb::PagemapEntry {
            vaddr: 3 * PAGE,
            compat_nr_pages: 1,
            ..Default::default()
        },
        pb::PagemapEntry {
            vaddr: 0u64.wrapping_sub(2 * PAGE),
            nr_pages: Some(1),
            flags: Some(4),
            ..Default::default()
        },
    ];
    written(dir, desc::PAGEMAP, "old", |image| {
        image.write(&pb::PagemapHead { pages_id: 1 })?;
        entries.iter().try_for_each(|entry| image.write(entry))
    })
}

/// Texts of /proc that the fixtures of criu-proc do not have.
const TEXTS: &[(&str, &[u8])] = &[
    ("auxv", &[33, 0, 0, 0, 0, 0, 0, 0, 0, 0xf0, 0xff, 0xf7, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("autogroup", b"/autogroup-42 nice -5\n"),
    ("children", b"12 345 6789 "),
    ("cmdline", b"program\0--option\0\0last\0"),
    ("fdinfo.fanotify", b"pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1057\nfanotify flags:10 event-flags:0\nfanotify ino:4f969 sdev:800013 mflags:0 mask:3b ignored_mask:40000000 fhandle-bytes:8 fhandle-type:1 f_handle:69f90400c275b5b4\n"),
    ("fdinfo.inotify", b"pos:\t0\nflags:\t02000000\nmnt_id:\t15\nino:\t1057\ninotify wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d\n"),
    ("fdinfo.pidfd", b"pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1057\nPid:\t42\nNSpid:\t42\t1\n"),
    ("fdinfo.timerfd", b"pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1057\nclockid: 1\nticks: 2\nsettime flags: 01\nit_value: (0, 49406829)\nit_interval: (1, 0)\n"),
    ("ns", b"net:[4026531840]"),
    ("pagemap", &[0, 0, 0, 0, 0, 0, 0, 0xa1, 1, 2, 3, 4, 5, 6, 7, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x04]),
    ("signals", b"0000000180004a02"),
    ("syscall", b"0 0x3 0x7ffc00001000 0x100 0x0 0x0 0x0 0x7ffc00000ff8 0x7f0000001234\n"),
    ("syscall.running", b"running\n"),
    ("timens_offsets", b"monotonic           1         0\nboottime           -2 999999999\n"),
    ("uid_map", b"         0       1000          1\n         1     100000      65536\n"),
    ("wchan", b"do_epoll_wait"),
];
