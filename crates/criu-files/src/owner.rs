//! Who gets the signal when a descriptor becomes ready: `F_SETOWN_EX`, `F_SETSIG`.

use std::os::fd::OwnedFd;

use criu_image::pb;
use criu_kind::{Error, Result};
use criu_tracee::{Program, ready_signal, signal_owner, signal_owner_users};
use nix::unistd::Pid;

// `include/uapi/asm-generic/fcntl.h`, the same on all architectures.
const F_SETSIG: i32 = 10;
const F_SETOWN_EX: i32 = 15;

/// Asks a copy of the descriptor. `vpid` translates to the ids of the tree.
pub(crate) fn read(fd: &OwnedFd, vpid: impl Fn(Pid) -> Pid) -> Result<pb::FownEntry> {
    let signum = ready_signal(fd).map_err(Error::kernel("fcntl(F_GETSIG)"))?;
    let (pid_type, pid) = signal_owner(fd).map_err(Error::kernel("fcntl(F_GETOWN_EX)"))?;
    if pid == 0 {
        return Ok(pb::FownEntry {
            signum,
            ..pb::FownEntry::default()
        });
    }
    // CONFIG_CHECKPOINT_RESTORE
    let (uid, euid) = signal_owner_users(fd).unwrap_or_default();
    Ok(pb::FownEntry {
        uid,
        euid,
        signum,
        pid_type,
        pid: vpid(Pid::from_raw(pid.cast_signed()))
            .as_raw()
            .cast_unsigned(),
    })
}

/// Sets the signal: that needs no process, so it is done in the tracer.
pub(crate) fn set_signal(owner: &pb::FownEntry, fd: i32, program: &mut Program) {
    if owner.signum != 0 {
        program.fcntl(fd, F_SETSIG, owner.signum);
    }
}

/// Sets the owner, in a task: the kernel remembers the user ids of the caller and refuses signals
/// by them. The task is still root, and is again afterwards.
pub(crate) fn set_owner(owner: &pb::FownEntry, fd: i32, program: &mut Program) {
    if owner.pid == 0 {
        return;
    }
    let as_other = owner.uid != 0 || owner.euid != 0;
    if as_other {
        program.setresuid(owner.uid, owner.euid, 0);
    }
    let words = [owner.pid_type.to_ne_bytes(), owner.pid.to_ne_bytes()].concat();
    let words = program.bytes(words);
    program.fcntl(fd, F_SETOWN_EX, words);
    program.tolerate(); // ESRCH: he has gone since. Nobody would be told either way.
    if as_other {
        program.setresuid(0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn another_users_owner_is_set_in_his_name() {
        let owner = pb::FownEntry {
            uid: 1000,
            euid: 1000,
            signum: 29,
            pid_type: 1,
            pid: 77,
        };
        let mut program = Program::new();
        set_signal(&owner, 5, &mut program);
        set_owner(&owner, 5, &mut program);
        expect![[r#"
            $0 = fcntl(5, 10, 29)
            $1 = setresuid(1000, 1000, 0)
            $2 = fcntl(5, 15, <010000004d000000>) ?
            $3 = setresuid(0, 0, 0)
        "#]]
        .assert_eq(&program.to_string());
    }
}
