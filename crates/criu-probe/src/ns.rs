//! Namespaces, mounts and what goes with them.

use std::fs;

use criu_tracee::Sysno;
use nix::errno::Errno;

use crate::feature::{Answer, Lack, require};
use crate::mm::mount;
use crate::scratch::{Scratch, try_once};

fn exists(path: &str) -> Answer {
    require(
        fs::exists(path).unwrap_or(false),
        &format!("there is no {path}"),
    )
}

/// A namespace of users can be made; distributions forbid it to some.
pub(crate) fn user() -> Answer {
    try_once("unshare(CLONE_NEWUSER)", &[], |program| {
        program.unshare(libc::CLONE_NEWUSER)
    })
}

pub(crate) fn cgroup() -> Answer {
    exists("/proc/self/ns/cgroup")
}

pub(crate) fn time() -> Answer {
    exists("/proc/self/timens_offsets")
}

/// The next id of each sort of IPC object can be set.
pub(crate) fn ipc() -> Answer {
    ["msg_next_id", "sem_next_id", "shm_next_id"]
        .iter()
        .try_for_each(|name| exists(&format!("/proc/sys/kernel/{name}")))
}

/// Not the kernel's to answer: whether we can leave a network namespace to the caller.
pub(crate) fn external_net() -> Answer {
    Err(Lack::missing("not implemented yet"))
}

pub(crate) fn apparmor() -> Answer {
    let path = "/sys/kernel/security/apparmor/features/domain/stack";
    let stack = fs::read_to_string(path).unwrap_or_default();
    require(
        stack.trim() == "yes",
        "AppArmor is off or cannot stack profiles",
    )
}

/// A kernel that knows the flag looks at the descriptors, which are none.
pub(crate) fn move_mount_set_group() -> Answer {
    const FROM_EMPTY: i32 = 0x4;
    const TO_EMPTY: i32 = 0x40;
    const SET_GROUP: i32 = 0x100;
    try_once(
        "move_mount(MOVE_MOUNT_SET_GROUP)",
        &[Errno::EBADF],
        |program| {
            let empty = program.cstr("");
            let flags = FROM_EMPTY | TO_EMPTY | SET_GROUP;
            program.call(
                Sysno::move_mount,
                [
                    (-1).into(),
                    empty.into(),
                    (-1).into(),
                    empty.into(),
                    flags.into(),
                ],
            )
        },
    )
}

/// An autofs mount names the inode of its pipe.
pub(crate) fn autofs() -> Answer {
    let mut task = Scratch::new()?;
    private_mounts(&mut task)?;
    let pid = task.pid();
    let mut program = criu_tracee::Program::new();
    let fds = program.room(8);
    program.pipe2(fds, libc::O_DIRECT);
    let outcome = task.run(&program)?;
    let writer = outcome.bytes(fds)[4..]
        .try_into()
        .map_or(-1, i32::from_ne_bytes);
    let mut program = criu_tracee::Program::new();
    let data = format!("fd={writer},pgrp={pid},minproto=5,maxproto=5,direct");
    program.call(Sysno::setpgid, [0.into(), 0.into()]);
    mount(&mut program, "criu", "autofs", "/tmp", &data);
    task.run(&program)?;
    let mounts = task.read("mountinfo")?;
    require(
        mounts.contains("pipe_ino="),
        "an autofs mount does not name its pipe",
    )
}

/// Gives a task mounts of its own.
pub(crate) fn private_mounts(task: &mut Scratch) -> Answer {
    task.fd(|program| {
        program.unshare(libc::CLONE_NEWNS);
        let root = program.cstr("/");
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        program.call(
            Sysno::mount,
            [0.into(), root.into(), 0.into(), flags.into(), 0.into()],
        )
    })
    .map(drop)
}
