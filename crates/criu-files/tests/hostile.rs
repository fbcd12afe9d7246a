//! Images that contradict themselves are refused before anything is made.

use criu_files::{Files, KINDS, RestoreOptions, Validation};
use criu_image::{Desc, ImageId, Memory, Store, StoreExt, desc, pb};
use criu_kind::FileEntry;
use prost::{Message, Name};

fn put<M: Message + Name>(store: &Memory, desc: &'static Desc, id: impl Into<ImageId>, all: &[M]) {
    let mut image = store.writer(desc, id).expect("memory");
    for entry in all {
        image.write(entry).expect("memory");
    }
    image.finish().expect("memory");
}

fn path(id: u32) -> pb::FileEntry {
    pb::RegFileEntry {
        id,
        name: "/dev/null".into(),
        ..pb::RegFileEntry::default()
    }
    .into_file()
}

fn slot(fd: u32, id: u32) -> pb::FdinfoEntry {
    pb::FdinfoEntry {
        id,
        fd,
        r#type: pb::FdTypes::Reg.into(),
        ..pb::FdinfoEntry::default()
    }
}

fn options() -> RestoreOptions {
    RestoreOptions {
        devices: Vec::new(),
        policies: Box::new(|_| criu_files::FilePolicy::Strict),
        validation: Validation::Size,
        skip_permissions: false,
        inherited: Vec::new(),
        external: Vec::new(),
        root: None,
        memory: |_, _, _, _| Ok(()),
    }
}

/// What loading says; the images hold what `fill` puts there.
fn refusal(fill: impl FnOnce(&Memory)) -> String {
    let store = Memory::new();
    fill(&store);
    store.finish().expect("memory");
    let error = Files::load(&store, options(), KINDS.iter().copied())
        .map(drop)
        .expect_err("refused");
    error.to_string()
}

#[test]
fn references_lead_somewhere() {
    let error = refusal(|store| put(store, desc::FDINFO, 1u32, &[slot(0, 7)]));
    assert_eq!(error, "fdinfo-1.img: fd 0 is file 7, which is not there");
    let error = refusal(|store| {
        let fifo = pb::FifoEntry {
            id: 1,
            pipe_id: 1,
            regf_id: Some(9),
        }
        .into_file();
        put(store, desc::FILES, (), &[fifo]);
    });
    assert_eq!(error, "files.img: the path 9 of a file is not there");
    let error = refusal(|store| {
        put(store, desc::FILES, (), &[path(1)]);
        let remap = pb::RemapFilePathEntry {
            orig_id: 1,
            remap_id: 4,
            remap_type: Some(pb::RemapType::Linked.into()),
        };
        put(store, desc::REMAP_FPATH, (), &[remap]);
    });
    assert_eq!(
        error,
        "remap-fpath.img: file 1 is to be found at 4, which is not there"
    );
}

#[test]
fn nothing_is_there_twice() {
    let error = refusal(|store| put(store, desc::FILES, (), &[path(1), path(1)]));
    assert!(
        error.contains("the path of file 1 is there twice"),
        "{error}"
    );
    let error = refusal(|store| {
        put(store, desc::FILES, (), &[path(1)]);
        put(store, desc::FDINFO, 1u32, &[slot(5, 1), slot(5, 1)]);
    });
    assert_eq!(error, "fdinfo-1.img: fd 5 is there twice");
}

#[test]
fn unknown_kinds_are_refused_all_at_once() {
    let error = refusal(|store| {
        let one = pb::UnixSkEntry {
            id: 1,
            ..pb::UnixSkEntry::default()
        }
        .into_file();
        let other = pb::NetlinkSkEntry {
            id: 2,
            ..pb::NetlinkSkEntry::default()
        }
        .into_file();
        put(store, desc::FILES, (), &[one, path(3), other]);
    });
    assert!(
        error.starts_with("2 problems: [file 1 is of kind UNIXSK"),
        "{error}"
    );
}

#[test]
fn numbers_and_kinds_fit() {
    let error = refusal(|store| {
        put(store, desc::FILES, (), &[path(1)]);
        put(store, desc::FDINFO, 1u32, &[slot(u32::MAX, 1)]);
    });
    assert_eq!(error, "fdinfo-1.img: fd 4294967295 is no number");
    let error = refusal(|store| {
        put(store, desc::FILES, (), &[path(1)]);
        let wrong = pb::FdinfoEntry {
            r#type: pb::FdTypes::Pipe.into(),
            ..slot(1, 1)
        };
        put(store, desc::FDINFO, 1u32, &[wrong]);
    });
    assert_eq!(
        error,
        "fdinfo-1.img: fd 1 and file 1 are of different kinds"
    );
}

#[test]
fn a_missing_ghost_is_found_before_a_task_is_made() {
    let store = Memory::new();
    put(&store, desc::FILES, (), &[path(1)]);
    let remap = pb::RemapFilePathEntry {
        orig_id: 1,
        remap_id: 0x1f,
        remap_type: Some(pb::RemapType::Ghost.into()),
    };
    put(&store, desc::REMAP_FPATH, (), &[remap]);
    store.finish().expect("memory");
    let mut files =
        Files::load(&store, options(), KINDS.iter().copied()).expect("references are checked");
    assert_eq!(
        files.open_all().expect_err("missing").to_string(),
        "ghost-file-1f.img: it is missing"
    );
}

#[test]
fn images_before_3_4_have_a_file_for_each_kind() {
    let store = Memory::new();
    put(
        &store,
        desc::REG_FILES,
        (),
        &[*path(1).reg.expect("a path")],
    );
    put(
        &store,
        desc::EVENTFD,
        (),
        &[pb::EventfdFileEntry {
            id: 2,
            counter: 5,
            ..pb::EventfdFileEntry::default()
        }],
    );
    put(
        &store,
        desc::EVENTPOLL,
        (),
        &[pb::EventpollFileEntry {
            id: 3,
            ..pb::EventpollFileEntry::default()
        }],
    );
    put(
        &store,
        desc::EVENTPOLL_TFD,
        (),
        &[pb::EventpollTfdEntry {
            id: 3,
            tfd: 4,
            ..pb::EventpollTfdEntry::default()
        }],
    );
    let slot = |fd, id, kind: pb::FdTypes| pb::FdinfoEntry {
        r#type: kind.into(),
        ..slot(fd, id)
    };
    let slots = [
        slot(3, 1, pb::FdTypes::Reg),
        slot(4, 2, pb::FdTypes::Eventfd),
        slot(5, 3, pb::FdTypes::Eventpoll),
    ];
    put(&store, desc::FDINFO, 1u32, &slots);
    store.finish().expect("memory");
    let mut files = Files::load(&store, options(), KINDS.iter().copied()).expect("well formed");
    files.check().expect("/dev/null is there");
    files.open_all().expect("opened");
    let mut program = criu_tracee::Program::new();
    let _sent = files
        .place(criu_image::id::FdTableId::new(1), &mut program)
        .expect("a program");
    // The messages themselves depend on the machine, and so do the numbers above those of the task.
    let shown = |line: &str| {
        let call = line.split_once(" = ").map_or(line, |(_, call)| call);
        let (name, rest) = call.split_once('(').unwrap_or((call, ""));
        match name {
            "dup3" | "epoll_ctl" => format!("{name} {}", rest.split(", ").nth(2).unwrap_or("")),
            _ => name.to_owned(),
        }
    };
    let lines: Vec<String> = program.to_string().lines().map(shown).collect();
    let wanted = [
        // Nothing but the passage, then the target under its number, and the set out of the way.
        "close_range",
        "close_range",
        "recvmsg",
        "epoll_ctl 4",
        // Then all under theirs.
        "close_range",
        "close_range",
        "recvmsg",
        "close_range",
        "close_range",
    ];
    assert_eq!(lines, wanted, "{program}");
}
