//! Entries that have bytes after them: what is written is read, and what does not fit is refused.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test: it may fail, and its numbers are small"
)]
use criu_image::{Desc, Entry, Error, Memory, Store as _, StoreExt as _, Why, desc, parse_any, pb};
use prost::{Message, Name};

fn written<M: Message + Name + Default>(
    kind: &'static Desc,
    id: u32,
    entries: &[(M, &[u8])],
) -> Vec<Entry<M>> {
    let id = || match kind.id {
        desc::IdForm::Single => criu_image::ImageId::Single,
        _ => id.into(),
    };
    let store = Memory::new();
    let mut writer = store.writer(kind, id()).unwrap();
    for (message, extra) in entries {
        writer.write_with_extra(message, extra).unwrap();
    }
    writer.finish().unwrap();
    store.finish().unwrap();
    let name = kind.file_name(id());
    let bytes = store.read(&name).unwrap().unwrap();
    assert_eq!(parse_any(&name, &bytes).unwrap().encoded, bytes);
    store.entries(kind, id()).unwrap().unwrap()
}

#[test]
fn pipes() {
    let head = |bytes| pb::PipeDataEntry {
        pipe_id: 1,
        bytes,
        size: Some(65536),
    };
    let read = written(
        desc::PIPES_DATA,
        0,
        &[(head(3), b"abc"), (head(0), b""), (head(1), b"d")],
    );
    assert_eq!(
        read.iter().map(|e| &e.extra[..]).collect::<Vec<_>>(),
        [&b"abc"[..], b"", b"d"]
    );
}

#[test]
fn tcp_queues() {
    let head = pb::TcpStreamEntry {
        inq_len: 2,
        outq_len: 3,
        ..Default::default()
    };
    let read = written(desc::TCP_STREAM, 0xbeef, &[(head, b"inout")]);
    assert_eq!(&read[0].extra[..], b"inout");
}

#[test]
fn semaphores_are_padded() {
    let head = pb::IpcSemEntry {
        desc: Default::default(),
        nsems: 3,
    };
    let read = written(desc::IPC_SEM, 9, &[(head, b"aabbcc"), (head, b"ddeeff")]);
    assert_eq!(&read[0].extra[..], b"aabbcc\0\0");
    assert_eq!(read.len(), 2);
}

#[test]
fn segments_are_padded_or_elsewhere() {
    let head = |size, in_pagemaps| pb::IpcShmEntry {
        size,
        in_pagemaps: Some(in_pagemaps),
        ..Default::default()
    };
    let read = written(
        desc::IPC_SHM,
        9,
        &[(head(5, false), b"hello"), (head(4096, true), b"")],
    );
    assert_eq!(&read[0].extra[..], b"hello\0\0\0");
    assert!(read[1].extra.is_empty());
}

#[test]
fn bpf_maps() {
    let head = pb::BpfmapDataEntry {
        keys_bytes: 4,
        values_bytes: 8,
        count: 1,
        ..Default::default()
    };
    let read = written(
        desc::BPFMAP_DATA,
        0,
        &[(head, b"keyyvaluevaluve".get(..12).unwrap())],
    );
    assert_eq!(read[0].extra.len(), 12);
}

#[test]
fn message_queues_have_two_levels() {
    let store = Memory::new();
    let mut writer = store.writer(desc::IPC_MSG, 9u32).unwrap();
    for texts in [&["one", "seventeen"][..], &[], &["last"]] {
        writer
            .write(&pb::IpcMsgEntry {
                qnum: texts.len() as u32,
                ..Default::default()
            })
            .unwrap();
        for text in texts {
            let head = pb::IpcMsg {
                mtype: 1,
                msize: text.len() as u32,
            };
            writer.write_with_extra(&head, text.as_bytes()).unwrap();
        }
    }
    writer.finish().unwrap();
    store.finish().unwrap();
    let mut reader = store.reader(desc::IPC_MSG, 9u32).unwrap().unwrap();
    assert_eq!(reader.read::<pb::IpcMsgEntry>().unwrap().unwrap().qnum, 2);
    assert_eq!(
        &reader.read::<pb::IpcMsg>().unwrap().unwrap().extra[..],
        b"one\0\0\0\0\0"
    );
    assert_eq!(
        reader.read::<pb::IpcMsg>().unwrap().unwrap().extra.len(),
        16
    );
    assert_eq!(reader.read::<pb::IpcMsgEntry>().unwrap().unwrap().qnum, 0);
    assert_eq!(reader.read::<pb::IpcMsgEntry>().unwrap().unwrap().qnum, 1);
    let wrong = reader.read::<pb::IpcMsgEntry>();
    assert!(matches!(
        wrong,
        Err(Error::Corrupt {
            why: Why::OtherMessage { .. },
            ..
        })
    ));
}

#[test]
fn ghosts_whole_and_in_chunks() {
    let whole = pb::GhostFileEntry {
        mode: 0o100_644,
        ..Default::default()
    };
    let read = written(
        desc::GHOST_FILE,
        0x1f,
        &[(whole.clone(), b"content to the end")],
    );
    assert_eq!(&read[0].extra[..], b"content to the end");

    let store = Memory::new();
    let mut writer = store.writer(desc::GHOST_FILE, 0x1fu32).unwrap();
    writer
        .write(&pb::GhostFileEntry {
            chunks: Some(true),
            ..whole
        })
        .unwrap();
    for (off, text) in [(0, "here"), (1 << 40, "and far away")] {
        let head = pb::GhostChunkEntry {
            len: text.len() as u64,
            off,
        };
        writer
            .write_from(&head, text.len() as u64, &mut text.as_bytes())
            .unwrap();
    }
    writer.finish().unwrap();
    store.finish().unwrap();
    assert_eq!(store.names().unwrap(), ["ghost-file-1f.img"]);
    let mut reader = store.reader(desc::GHOST_FILE, 0x1fu32).unwrap().unwrap();
    assert_eq!(
        reader.read::<pb::GhostFileEntry>().unwrap().unwrap().chunks,
        Some(true)
    );
    assert_eq!(
        &reader.read::<pb::GhostChunkEntry>().unwrap().unwrap().extra[..],
        b"here"
    );
    assert_eq!(
        reader.read::<pb::GhostChunkEntry>().unwrap().unwrap().off,
        1 << 40
    );
    assert!(reader.read::<pb::GhostChunkEntry>().unwrap().is_none());
}

#[test]
fn the_writer_refuses_what_no_reader_would_take() {
    let store = Memory::new();
    let mut writer = store.writer(desc::PIPES_DATA, ()).unwrap();
    let other = writer.write(&pb::FsEntry::default());
    assert!(matches!(
        other,
        Err(Error::Refused {
            why: Why::OtherMessage { .. },
            ..
        })
    ));
    let head = pb::PipeDataEntry {
        bytes: 5,
        ..Default::default()
    };
    for extra in [&b"four"[..], b"sixsix"] {
        let result = writer.write_with_extra(&head, extra);
        assert!(matches!(
            result,
            Err(Error::Refused {
                why: Why::Payload { .. },
                ..
            })
        ));
    }
    let raw = store.writer(desc::PAGES, 1u32).unwrap().write(&head);
    assert!(matches!(raw, Err(Error::Refused { why: Why::Raw, .. })));
    // Nothing of that is in the image.
    writer.write_with_extra(&head, b"fives").unwrap();
    writer.finish().unwrap();
    store.finish().unwrap();
    assert_eq!(
        store
            .entries::<pb::PipeDataEntry>(desc::PIPES_DATA, ())
            .unwrap()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn required_zeroes_and_set_options_are_written() {
    let raw = pb::RegFileEntry {
        mnt_id: Some(-1),
        ..Default::default()
    }
    .encode_to_vec();
    // id, flags, pos, fown with its five fields, the empty name, and the default that was set.
    let expected = [
        8, 0, 16, 0, 24, 0, 42, 10, 8, 0, 16, 0, 24, 0, 32, 0, 40, 0, 50, 0, 56, 1,
    ];
    assert_eq!(raw, expected);
    assert_eq!(pb::RegFileEntry::default().mnt_id(), -1);
}

#[test]
fn unknown_fields_and_other_orders_are_not_exact() {
    let with = |raw: &[u8]| {
        let mut bytes = 0x5456_4319_u32.to_le_bytes().to_vec();
        bytes.extend(desc::UTSNS.magic.to_le_bytes());
        bytes.extend((raw.len() as u32).to_le_bytes());
        bytes.extend(raw);
        let store = Memory::new();
        store.insert("utsns-1.img", &bytes).unwrap();
        let entry = store.entry::<pb::UtsnsEntry>(desc::UTSNS, 1u32).unwrap();
        (entry.nodename.clone(), entry.is_exact())
    };
    assert_eq!(with(b"\x0a\x01a\x12\x01b"), ("a".into(), true));
    assert_eq!(with(b"\x12\x01b\x0a\x01a"), ("a".into(), false));
    assert_eq!(with(b"\x0a\x01a\x12\x01b\x18\x07"), ("a".into(), false));
    // Not an error to prost, though the second is required.
    assert_eq!(with(b"\x0a\x01a"), ("a".into(), false));
}

#[test]
fn lengths_are_not_trusted() {
    let mut bytes = 0x5456_4319_u32.to_le_bytes().to_vec();
    bytes.extend(desc::IPC_SHM.magic.to_le_bytes());
    let head = pb::IpcShmEntry {
        size: u64::MAX,
        ..Default::default()
    }
    .encode_to_vec();
    bytes.extend((head.len() as u32).to_le_bytes());
    bytes.extend(head);
    let error = parse_any("ipcns-shm-1.img", &bytes).unwrap_err();
    assert!(matches!(
        error,
        Error::Corrupt {
            why: Why::Truncated { need: u64::MAX, .. },
            ..
        }
    ));

    let huge = [
        &0x5456_4319_u32.to_le_bytes()[..],
        &desc::FILES.magic.to_le_bytes(),
        &[255; 4],
    ];
    let error = parse_any("files.img", &huge.concat()).unwrap_err();
    let Error::Corrupt { image, offset, why } = error else {
        panic!("{error}")
    };
    assert_eq!((image.as_str(), offset), ("files.img", 12));
    assert_eq!(
        why,
        Why::Truncated {
            what: "an entry",
            need: 0xffff_ffff,
            have: 0
        }
    );
}
