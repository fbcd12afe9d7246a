//! What all kinds of System V objects share: how one comes by its id, its creator and its owner.

use std::mem::offset_of;

use criu_image::pb;
use criu_kind::{Error, Result};
use criu_tracee::arch::Arch;
use criu_tracee::{Blob, Native, Program, Ret, Site, Sysno};
use nix::errno::Errno;

use crate::sysvipc::Perm;

/// Permissions proper.
pub(crate) const MODE_BITS: u32 = 0o777;

/// What some machines add to a command for the structures of today: their C libraries do it.
pub(crate) const IPC_64: i32 = Native::CALLS.ipc_64;

/// More than any machine's structure; who it belongs to comes first in all of them.
const STRUCTURE: usize = 256;

/// The entry of an image.
pub(crate) fn entry(perm: &Perm) -> pb::IpcDescEntry {
    pb::IpcDescEntry {
        key: perm.key.cast_unsigned(),
        uid: perm.uid,
        gid: perm.gid,
        cuid: perm.cuid,
        cgid: perm.cgid,
        mode: perm.mode,
        id: perm.id.cast_unsigned(),
    }
}

/// For `IPC_SET`: the owner and the permissions, and nothing else.
pub(crate) fn structure(desc: &pb::IpcDescEntry) -> Vec<u8> {
    let mut bytes = vec![0; STRUCTURE];
    let mut put = |at: usize, value: u32| {
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    };
    put(offset_of!(libc::ipc_perm, uid), desc.uid);
    put(offset_of!(libc::ipc_perm, gid), desc.gid);
    put(offset_of!(libc::ipc_perm, mode), desc.mode & MODE_BITS);
    bytes
}

/// What makes objects: whose they will be if nothing is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Creator {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Whether it may take others for a moment: a task may, the driver never does.
    pub may_change: bool,
}

/// Makes one object with the id of an image. `what` names its sysctl: `shm`.
pub(crate) fn make(
    site: &mut dyn Site,
    creator: Creator,
    what: &'static str,
    desc: &pb::IpcDescEntry,
    get: impl FnOnce(&mut Program) -> Ret,
) -> Result<()> {
    const KEEP: i32 = -1;
    let mut program = Program::new();
    let path = program.cstr(format!("/proc/sys/kernel/{what}_next_id"));
    let fd = program.openat(libc::AT_FDCWD, path, libc::O_WRONLY | libc::O_CLOEXEC, 0);
    let id = desc.id.to_string();
    let text = program.bytes(id.as_bytes());
    program.write(fd, text, id.len());
    program.close(fd);
    let changes = creator.may_change && (desc.cuid, desc.cgid) != (creator.uid, creator.gid);
    let ids = |program: &mut Program, sysno, id: u32| {
        program.call(sysno, [KEEP.into(), id.into(), KEEP.into()]);
    };
    if changes {
        ids(&mut program, Sysno::setresgid, desc.cgid);
        ids(&mut program, Sysno::setresuid, desc.cuid);
    }
    let made = get(&mut program);
    program.tolerate();
    if changes {
        ids(&mut program, Sysno::setresuid, creator.uid);
        ids(&mut program, Sysno::setresgid, creator.gid);
    }
    let outcome = site.run(&program).map_err(without_next_id)?;
    match outcome.get(made) {
        Ok(got) if got == i64::from(desc.id) => Ok(()),
        Ok(got) => {
            let mut program = Program::new();
            match what {
                "sem" => program.semctl(got, 0, libc::IPC_RMID, 0),
                "msg" => program.msgctl(got, libc::IPC_RMID, 0),
                _ => program.shmctl(got, libc::IPC_RMID, 0),
            };
            site.run(&program)?;
            Err(taken(desc.id))
        }
        Err(Errno::EEXIST) => Err(Error::unsupported(
            format!("its key {:#x} is taken", desc.key),
            "remove the other object with ipcrm, or restore in a new IPC namespace (unshare --ipc)",
        )),
        Err(errno) => Err(Error::kernel(what)(errno)),
    }
}

/// The kernel, or a lack of privilege, does not let ids be chosen.
fn without_next_id(error: criu_tracee::Error) -> Error {
    match error.errno() {
        Some(Errno::ENOENT | Errno::EACCES | Errno::EPERM) => Error::unsupported(
            "ids of System V objects cannot be chosen here",
            "run with CAP_CHECKPOINT_RESTORE, on a kernel with CONFIG_CHECKPOINT_RESTORE",
        ),
        _ => error.into(),
    }
}

/// The refusal of an id that is in use.
pub(crate) fn taken(id: u32) -> Error {
    Error::unsupported(
        format!("its id {id} is taken by another object"),
        "remove that with ipcrm, or restore in a new IPC namespace (unshare --ipc)",
    )
}

/// Bytes for an array of 16-bit numbers.
pub(crate) fn words(program: &mut Program, values: &[u16]) -> Blob {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect();
    program.bytes(bytes)
}

/// The number of an object.
pub(crate) fn number(desc: &pb::IpcDescEntry) -> Result<i32> {
    i32::try_from(desc.id)
        .map_err(|_| Error::corrupt("ipcns", format!("the id {} is no number", desc.id)))
}
