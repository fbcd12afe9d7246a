//! Births, sessions, groups and ends, made in the tasks themselves.

use criu_kind::{Error, Result};
use criu_tracee::{Arg, Blob, Nursery, Program, Site, Sysno, Tracee};
use nix::errno::Errno;
use nix::unistd::Pid;

const CLONE_PTRACE: u64 = 0x2000;

/// `CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM`.
const THREAD: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;

/// `struct clone_args`, eleven words of 64 bits on every machine (`include/uapi/linux/sched.h`).
fn clone_args(program: &mut Program, flags: u64, exit_signal: i32, pid: i32) -> Blob {
    const SET_TID: usize = 64;
    let mut words = [0u64; 11];
    words[0] = flags;
    words[4] = u64::from(exit_signal.unsigned_abs());
    words[9] = u64::from(pid != 0);
    let args = program.bytes(
        words
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect::<Vec<u8>>(),
    );
    if pid != 0 {
        let pids = program.bytes(pid.to_ne_bytes());
        program.link(args, SET_TID, Arg::from(pids));
    }
    args
}

/// Clones a child of `parent` with this pid (0: any), stopped and held; `shared` are flags of clone(2) for what it
/// has in common with its parent.
pub fn clone_child(
    parent: &mut Tracee,
    pid: i32,
    shared: u64,
    nursery: &Nursery,
) -> Result<Tracee> {
    let mut children = clone_children(parent, &[(pid, shared)], nursery)?;
    Ok(children.remove(0))
}

/// Clones several, each with a pid and with what it shares. If one cannot be cloned those that were are ended.
pub fn clone_children(
    parent: &mut Tracee,
    children: &[(i32, u64)],
    nursery: &Nursery,
) -> Result<Vec<Tracee>> {
    let mut program = Program::new();
    let born = children.iter().map(|(pid, shared)| {
        let args = clone_args(&mut program, CLONE_PTRACE | shared, libc::SIGCHLD, *pid);
        let born = program.clone3(args, 88);
        program.tolerate();
        born
    });
    let born: Vec<_> = born.collect();
    let outcome = parent.run(&program)?;
    let mut adopted = Vec::with_capacity(children.len());
    let mut failed = None;
    for (ret, (pid, _)) in born.into_iter().zip(children) {
        match outcome.get(ret) {
            Ok(_) => {
                let child = Pid::from_raw(outcome.fd(ret));
                adopted.push(Tracee::adopt(child, child, nursery)?);
            }
            Err(errno) => {
                failed.get_or_insert((*pid, errno));
            }
        }
    }
    match failed {
        None => Ok(adopted),
        Some((pid, Errno::EEXIST)) => Err(pid_is_taken(pid)),
        Some((_, errno)) => Err(Error::kernel("clone3")(errno)),
    }
}

/// Clones the other threads of a process.
pub fn clone_threads(process: &mut Tracee, tids: &[i32]) -> Result<()> {
    let mut program = Program::new();
    let born: Vec<_> = tids
        .iter()
        .map(|tid| {
            let args = clone_args(&mut program, THREAD | CLONE_PTRACE, 0, *tid);
            program.clone3(args, 88)
        })
        .collect();
    let outcome = process.run(&program).map_err(|error| match error {
        criu_tracee::Error::Call(ref call) if call.errno == Errno::EEXIST => {
            taken(tids.get(call.index).copied().unwrap_or(0), error)
        }
        other => other.into(),
    })?;
    for ret in born {
        let tid = Pid::from_raw(outcome.fd(ret));
        process.adopt_thread(tid, tid)?;
    }
    Ok(())
}

/// Leaves what a process shares with others, `CLONE_FILES` and `CLONE_FS`, while it has no other threads.
pub fn unshare(process: &mut Tracee, flags: u64) -> Result<()> {
    let mut program = Program::new();
    program.unshare(flags);
    process.run(&program)?;
    Ok(())
}

/// `EEXIST` of a clone, with the name of who has the pid.
pub fn taken(pid: i32, error: criu_tracee::Error) -> Error {
    match error.errno() {
        Some(Errno::EEXIST) => pid_is_taken(pid),
        _ => error.into(),
    }
}

fn pid_is_taken(pid: i32) -> Error {
    Error::unsupported(
        format!("pid {pid} is taken{}", occupier(pid)),
        "stop that process, or restore in a new pid namespace (unshare --pid --fork --mount-proc)",
    )
}

/// Who has a pid, in words.
pub fn occupier(pid: i32) -> String {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match comm.trim() {
        "" => " as a process group or session that is still in use".to_owned(),
        comm => format!(" by {comm:?}"),
    }
}

/// Names a task, for those who see it only dead.
pub fn name(process: &mut Tracee, comm: &[u8]) -> Result<()> {
    const PR_SET_NAME: i32 = 15;
    let mut program = Program::new();
    let comm = program.cstr(comm);
    program.prctl(PR_SET_NAME, comm, 0, 0, 0);
    process.run(&program)?;
    Ok(())
}

/// Makes a task the reaper of its orphans: before the first helper ends, and in one task after the other.
pub fn adopt_orphans(process: &mut Tracee) -> Result<()> {
    const PR_SET_CHILD_SUBREAPER: i32 = 36;
    let mut program = Program::new();
    program.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    process.run(&program)?;
    Ok(())
}

/// Makes a session.
pub fn setsid(process: &mut Tracee) -> Result<()> {
    let mut program = Program::new();
    program.setsid();
    process.run(&program)?;
    Ok(())
}

/// A request of ioctl(2) as programs take it.
#[allow(
    clippy::unnecessary_cast,
    reason = "requests have the width of a long, which differs"
)]
const fn request(number: libc::Ioctl) -> u64 {
    number as u64
}

/// Makes a terminal the controlling one of the session that the process leads.
pub fn take_terminal(leader: &mut Tracee, fd: i32) -> Result<()> {
    let mut program = Program::new();
    program.ioctl(fd, request(libc::TIOCSCTTY), 0);
    leader.run(&program)?;
    Ok(())
}

/// Puts a process group into the foreground of the controlling terminal.
pub fn set_foreground(member: &mut Tracee, fd: i32, pgrp: u32) -> Result<()> {
    let mut program = Program::new();
    let pgrp = program.bytes(pgrp.to_ne_bytes());
    program.ioctl(fd, request(libc::TIOCSPGRP), pgrp);
    member.run(&program)?;
    Ok(())
}

/// Joins or makes a process group.
pub fn setpgid(process: &mut Tracee, pgid: i32) -> Result<()> {
    let mut program = Program::new();
    program.setpgid(0, pgid);
    process.run(&program)?;
    Ok(())
}

/// Takes the status of a child that has ended.
pub fn reap(parent: &mut Tracee, child: i32) -> Result<()> {
    let mut program = Program::new();
    program.wait4(child, 0, 0x4000_0000u32, 0);
    parent.run(&program)?;
    Ok(())
}

/// Takes the report that a child was stopped, and the signal that came with it unless the parent had one
/// of that kind queued before.
pub fn take_stop_report(parent: &mut Tracee, child: i32, queued_before: bool) -> Result<()> {
    const P_PID: i32 = 1;
    const PATIENCE: usize = 1000;
    for _ in 0..PATIENCE {
        let mut program = Program::new();
        let info = program.room(128);
        let options = libc::WSTOPPED | libc::WNOHANG;
        program.call(
            Sysno::waitid,
            [
                P_PID.into(),
                child.into(),
                info.into(),
                options.into(),
                0.into(),
            ],
        );
        let outcome = parent.run(&program)?;
        // Nothing is written but zeroes where nobody has stopped yet.
        if outcome.bytes(info).iter().all(|byte| *byte == 0) {
            std::thread::sleep(std::time::Duration::from_millis(1));
            continue;
        }
        if !queued_before {
            let size = <criu_tracee::Native as criu_tracee::arch::Arch>::SIGSET;
            let mut program = Program::new();
            let mut set = vec![0; size];
            set[(libc::SIGCHLD as usize - 1) / 8] |= 1 << ((libc::SIGCHLD - 1) % 8);
            let set = program.bytes(set);
            let now = program.bytes(vec![0; 16]);
            program.call(
                Sysno::rt_sigtimedwait,
                [set.into(), 0.into(), now.into(), size.into()],
            );
            // It may ignore them.
            program.tolerate();
            parent.run(&program)?;
        }
        return Ok(());
    }
    tracing::debug!(child, "it does not stop, so nobody is told");
    Ok(())
}

/// What lets a process forget the `SIGCHLD` of helpers and zombies: setting its default action drops what is queued
/// (`do_sigaction` in `kernel/signal.c`).
pub fn forget_children() -> Program {
    let mut program = Program::new();
    let default = program.bytes(vec![0; 64]);
    program.rt_sigaction(
        libc::SIGCHLD,
        default,
        0,
        <criu_tracee::Native as criu_tracee::arch::Arch>::SIGSET,
    );
    program
}
