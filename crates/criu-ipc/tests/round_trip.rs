//! A whole namespace out of the kernel and into another one. Needs root; says so where it is not.

use criu_image::{Memory, Store};
use criu_ipc::{Creator, Objects, Scope, Users, survey, var};
use criu_tracee::{Local, Program, Site, Sysno};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// A namespace for this thread.
fn new_namespace() -> bool {
    let new = unshare(CloneFlags::CLONE_NEWIPC);
    if let Err(errno) = new {
        eprintln!("skipped: no IPC namespace ({errno})");
    }
    new.is_ok()
}

fn text(name: &str) -> String {
    std::fs::read_to_string(format!("/proc/sysvipc/{name}")).expect("readable")
}

/// The columns that do not tell of times and pids.
fn lasting(table: &str) -> Vec<Vec<String>> {
    const CHANGES: [&str; 8] = [
        "cpid", "lpid", "lspid", "lrpid", "atime", "dtime", "ctime", "otime",
    ];
    let mut lines = table.lines();
    let names: Vec<&str> = lines.next().expect("a head").split_whitespace().collect();
    let line = |line: &str| {
        let words = line.split_whitespace().zip(&names);
        let kept = words.filter(|(_, name)| {
            !CHANGES.contains(name) && !["stime", "rtime", "rss", "swap"].contains(name)
        });
        kept.map(|(word, _)| word.to_owned()).collect()
    };
    lines.map(line).collect()
}

fn fill() {
    const FLAGS: i32 = libc::IPC_CREAT | 0o640;
    let mut program = Program::new();
    let set = program.semget(0x51, 3, FLAGS);
    let values = program.bytes([1, 0, 0, 0, 255, 127]);
    program.semctl(set, 0, libc::SETALL, values);
    program.semget(0, 1, 0o600);
    let queue = program.msgget(0x52, FLAGS);
    for text in [&b"one"[..], b"", b"three"] {
        let kind = (text.len() + 1).to_ne_bytes();
        let message = program.bytes([&kind[..], text].concat());
        program.msgsnd(queue, message, text.len(), libc::IPC_NOWAIT);
    }
    // Ids are not the lowest there are.
    let gone = program.call(Sysno::shmget, [0.into(), 4096.into(), 0o600.into()]);
    program.shmctl(gone, libc::IPC_RMID, 0);
    program.shmget(0x53, 5000, libc::IPC_CREAT | 0o604);
    Local.run(&program).expect("made");
    std::fs::write("/proc/sys/kernel/msgmax", "4321").expect("a limit");
    std::fs::write("/proc/sys/kernel/sem", "300 31000 250 120").expect("limits");
}

#[test]
fn a_namespace_of_its_own() {
    if !new_namespace() {
        return;
    }
    fill();
    let before: Vec<String> = ["shm", "sem", "msg"].map(text).into();
    let limits = var::read(&mut Local).expect("readable");
    let store = Memory::new();
    let found = survey(&mut Local, Scope::Whole, Users::default()).expect("known");
    found.write(&store, 9).expect("written");
    store.finish().expect("finished");
    assert_eq!(
        ["shm", "sem", "msg"].map(text).to_vec(),
        before,
        "a dump changes nothing"
    );

    assert!(new_namespace());
    let creator = Creator {
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        may_change: false,
    };
    let mut objects = Objects::load(&store, 9).expect("readable");
    objects.check(&mut Local, &|_| false).expect("free");
    objects.limit(&mut Local).expect("set");
    objects.make(&mut Local, creator).expect("made");
    for (name, before) in ["shm", "sem", "msg"].iter().zip(&before) {
        assert_eq!(lasting(&text(name)), lasting(before), "{name}");
    }
    assert_eq!(var::read(&mut Local).expect("readable"), limits);
    let again = Memory::new();
    let found = survey(&mut Local, Scope::Whole, Users::default()).expect("known");
    found.write(&again, 9).expect("written");
    again.finish().expect("finished");
    for image in ["ipcns-sem-9.img", "ipcns-msg-9.img", "ipcns-shm-9.img"] {
        assert_eq!(
            again.read(image).expect("there"),
            store.read(image).expect("there")
        );
    }

    // A restore that fails leaves nothing.
    drop(objects);
    for name in ["shm", "sem", "msg"] {
        assert_eq!(lasting(&text(name)).len(), 0, "{name}");
    }
}

#[test]
fn an_id_that_is_taken() {
    if !new_namespace() {
        return;
    }
    fill();
    let store = Memory::new();
    let found = survey(&mut Local, Scope::Whole, Users::default()).expect("known");
    found.write(&store, 9).expect("written");
    store.finish().expect("finished");
    assert!(new_namespace());
    let mut program = Program::new();
    program.semget(0x99, 2, libc::IPC_CREAT | 0o600);
    program.msgget(0x98, libc::IPC_CREAT | 0o600);
    Local.run(&program).expect("made");
    let mut objects = Objects::load(&store, 9).expect("readable");
    let refused = objects
        .check(&mut Local, &|_| false)
        .expect_err("taken")
        .to_string();
    assert!(
        refused.contains("System V semaphores 0 (key 0x51): its id 0 is taken"),
        "{refused}"
    );
    assert!(refused.contains("System V message queue 0"), "{refused}");
}
