//! The tracer itself as a site.
//!
//! This file may be unsafe because it hands arguments to the kernel: only calls of a fixed table run
//! here, and where such a call takes an address it must be that of a blob, which this file owns.
#![allow(
    unsafe_code,
    reason = "the one place where a program's calls are made in the tracer"
)]

use criu_arch::Arch;
use syscalls::Sysno;

use crate::encode::failure;
use crate::error::{CallError, Error, Result};
use crate::native::Native;
use crate::program::{Arg, Blob, Call, Program, widest};
use crate::site::{Outcome, Site};

/// Runs programs in the calling thread.
///
/// It refuses every call that acts on the tracer's own memory, life or identity, and any address
/// that is not a blob's: so running a program stays a safe function.
#[derive(Clone, Copy, Debug, Default)]
pub struct Local;

/// Calls that may run here, with the arguments that are addresses (bit n: argument n).
const ALLOWED: &[(Sysno, u8)] = &[
    (Sysno::read, 0b010),
    (Sysno::write, 0b010),
    (Sysno::pread64, 0b010),
    (Sysno::pwrite64, 0b010),
    (Sysno::openat, 0b010),
    (Sysno::openat2, 0b110),
    (Sysno::open_by_handle_at, 0b010),
    (Sysno::name_to_handle_at, 0b0_1110),
    (Sysno::close, 0),
    (Sysno::close_range, 0),
    (Sysno::dup, 0),
    (Sysno::lseek, 0),
    (Sysno::ftruncate, 0),
    (Sysno::fallocate, 0),
    (Sysno::fchmod, 0),
    (Sysno::fchown, 0),
    (Sysno::fchmodat, 0b010),
    (Sysno::fchownat, 0b010),
    (Sysno::utimensat, 0b110),
    (Sysno::mkdirat, 0b010),
    (Sysno::mknodat, 0b010),
    (Sysno::linkat, 0b1010),
    (Sysno::symlinkat, 0b101),
    (Sysno::unlinkat, 0b010),
    (Sysno::renameat2, 0b1010),
    (Sysno::fsetxattr, 0b110),
    (Sysno::lsetxattr, 0b111),
    (Sysno::pipe2, 0b001),
    (Sysno::tee, 0),
    (Sysno::splice, 0b1010),
    (Sysno::eventfd2, 0),
    (Sysno::signalfd4, 0b010),
    (Sysno::timerfd_create, 0),
    (Sysno::timerfd_settime, 0b1100),
    (Sysno::timerfd_gettime, 0b010),
    (Sysno::epoll_create1, 0),
    (Sysno::epoll_ctl, 0b1000),
    (Sysno::inotify_init1, 0),
    (Sysno::inotify_add_watch, 0b010),
    (Sysno::fanotify_init, 0),
    // Its mask takes two words where a word is half as wide.
    (
        Sysno::fanotify_mark,
        if size_of::<usize>() == 8 {
            0b1_0000
        } else {
            0b10_0000
        },
    ),
    (Sysno::memfd_create, 0b001),
    (Sysno::userfaultfd, 0),
    (Sysno::pidfd_open, 0),
    (Sysno::pidfd_getfd, 0),
    (Sysno::pidfd_send_signal, 0b100),
    (Sysno::listxattr, 0b011),
    (Sysno::getxattr, 0b0111),
    (Sysno::setxattr, 0b00111),
    (Sysno::flock, 0),
    (Sysno::ppoll, 0b1101),
    (Sysno::socket, 0),
    (Sysno::socketpair, 0b1000),
    (Sysno::bind, 0b010),
    (Sysno::connect, 0b010),
    (Sysno::listen, 0),
    (Sysno::accept4, 0b0110),
    (Sysno::shutdown, 0),
    (Sysno::sendmsg, 0b010),
    (Sysno::setsockopt, 0b1000),
    (Sysno::getsockopt, 0b1_1000),
    (Sysno::sendto, 0b1_0010),
    (Sysno::getpid, 0),
    (Sysno::gettid, 0),
    (Sysno::getrandom, 0b001),
    (Sysno::clock_gettime, 0b010),
    (Sysno::getpriority, 0),
    (Sysno::sched_getaffinity, 0b100),
    (Sysno::sched_getattr, 0b010),
    (Sysno::ioprio_get, 0),
    (Sysno::get_robust_list, 0b110),
    (Sysno::prlimit64, 0b1100),
    (Sysno::msgget, 0),
    (Sysno::semget, 0),
    (Sysno::shmget, 0),
    (Sysno::semop, 0b010),
    (Sysno::msgsnd, 0b010),
    (Sysno::msgrcv, 0b010),
    (Sysno::mq_open, 0b1001),
    (Sysno::mq_unlink, 0b001),
    (Sysno::mq_timedsend, 0b1_0010),
    (Sysno::mq_timedreceive, 0b1_1010),
    (Sysno::mq_getsetattr, 0b110),
    (Sysno::io_uring_setup, 0b010),
    (Sysno::bpf, 0b010),
    (Sysno::seccomp, 0b100),
    (Sysno::membarrier, 0),
    (Sysno::statx, 0b1_0010),
    (Sysno::fsopen, 0b001),
    (Sysno::fsconfig, 0b1100),
    (Sysno::fsmount, 0),
    (Sysno::open_tree, 0b010),
    (Sysno::move_mount, 0b1010),
    (Sysno::mount_setattr, 0b1010),
];

/// Commands of fcntl(2) that take a number or nothing.
const FCNTL_NUMBERS: &[i32] = &[
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_SETPIPE_SZ,
    libc::F_GETPIPE_SZ,
    libc::F_SETLEASE,
    libc::F_GETLEASE,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
    F_SETSIG,
    F_GETSIG,
];

/// Commands of fcntl(2) that take an address.
const FCNTL_ADDRESSES: &[i32] = &[
    libc::F_GETLK,
    libc::F_SETLK,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
    F_SETOWN_EX,
    F_GETOWN_EX,
    F_GETOWNER_UIDS,
];

// `include/uapi/asm-generic/fcntl.h`; libc does not have them everywhere.
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
const F_GETOWNER_UIDS: i32 = 17;

/// Requests of ioctl(2) with an address: bytes to be read, the ticks of a timerfd, terminals.
#[allow(
    clippy::unnecessary_cast,
    reason = "requests have the width of a long, which differs"
)]
const IOCTLS: &[u64] = &[
    libc::FIONREAD as u64,
    libc::TIOCOUTQ as u64,
    SIOCOUTQNSD,
    libc::_IOW::<u64>(b'T' as u32, 0) as u64,
    libc::TCGETS as u64,
    libc::TCSETS as u64,
    libc::TIOCGLCKTRMIOS as u64,
    libc::TIOCSLCKTRMIOS as u64,
    libc::TIOCGWINSZ as u64,
    libc::TIOCSWINSZ as u64,
    libc::TIOCGPTN as u64,
    libc::TIOCGPTLCK as u64,
    libc::TIOCSPTLCK as u64,
    libc::TIOCGPKT as u64,
    libc::TIOCPKT as u64,
    libc::TIOCGEXCL as u64,
    libc::TIOCGSID as u64,
    libc::TIOCGPGRP as u64,
];

/// Requests that take a number or nothing.
#[allow(
    clippy::unnecessary_cast,
    reason = "requests have the width of a long, which differs"
)]
const IOCTL_NUMBERS: &[u64] = &[
    INOTIFY_SET_NEXT,
    SIOCGSKNS,
    SIOCUNIXFILE,
    libc::TIOCEXCL as u64,
    libc::TIOCGPTPEER as u64,
];

/// `INOTIFY_IOC_SETNEXTWD`, which takes a number.
#[allow(
    clippy::unnecessary_cast,
    reason = "requests have the width of a long, which differs"
)]
const INOTIFY_SET_NEXT: u64 = libc::_IOW::<i32>(b'I' as u32, 0) as u64;

/// `SIOCUNIXFILE`, which takes nothing: a descriptor of the file that a socket is bound to.
const SIOCUNIXFILE: u64 = 0x89e0;

/// `SIOCOUTQNSD`: bytes that were never sent. `include/uapi/linux/sockios.h`.
const SIOCOUTQNSD: u64 = 0x894b;

/// `SIOCGSKNS`, which takes nothing: a descriptor of the network namespace of a socket.
const SIOCGSKNS: u64 = 0x894c;

const KCMP_EPOLL_TFD: u64 = 7;

/// Commands of shmctl(2), semctl(2) and msgctl(2) with an address of a structure or of an array.
const IPC_ADDRESSES: &[i32] = &[
    libc::IPC_SET,
    libc::IPC_STAT,
    libc::IPC_SET | IPC_64,
    libc::IPC_STAT | IPC_64,
    libc::GETALL,
    libc::SETALL,
];

/// Commands of theirs that take a number or nothing.
const IPC_NUMBERS: &[i32] = &[
    libc::IPC_RMID,
    libc::GETPID,
    libc::GETVAL,
    libc::SETVAL,
    libc::SHM_LOCK,
    libc::SHM_UNLOCK,
];

/// What some machines add to such a command for the structures of today.
const IPC_64: i32 = 0x100;

/// Which arguments of a call are addresses; a refusal if the call may not run here.
fn addresses(call: &Call) -> Result<u8> {
    let sysno = call.sysno;
    if call.private.is_some() || call.compat.is_some() {
        return Err(Error::Refused(sysno));
    }
    let word = |index: usize| match call.args.get(index) {
        Some(Arg::Word(word)) => Ok(*word),
        _ => Err(Error::Refused(sysno)),
    };
    let among = |list: &[i32], word: u64| list.iter().any(|one| u64::try_from(*one) == Ok(word));
    let is_fcntl = sysno == widest(Sysno::fcntl);
    let is_llseek = Native::CALLS.llseek == u32::try_from(sysno.id()).ok();
    match sysno {
        _ if is_fcntl && among(FCNTL_NUMBERS, word(1)?) => return Ok(0),
        _ if is_fcntl && among(FCNTL_ADDRESSES, word(1)?) => return Ok(0b100),
        _ if is_fcntl && word(1)? == u64::from(Native::CALLS.set_lock) => return Ok(0b100),
        _ if is_llseek => return Ok(0b1000),
        Sysno::ioctl if IOCTLS.contains(&word(1)?) => return Ok(0b100),
        Sysno::ioctl if IOCTL_NUMBERS.contains(&word(1)?) => return Ok(0),
        Sysno::kcmp if word(2)? == KCMP_EPOLL_TFD => return Ok(0b1_0000),
        Sysno::kcmp => return Ok(0),
        Sysno::shmctl | Sysno::msgctl if among(IPC_ADDRESSES, word(1)?) => return Ok(0b100),
        Sysno::shmctl | Sysno::msgctl if among(IPC_NUMBERS, word(1)?) => return Ok(0),
        Sysno::semctl if among(IPC_ADDRESSES, word(2)?) => return Ok(0b1000),
        Sysno::semctl if among(IPC_NUMBERS, word(2)?) => return Ok(0),
        _ => {}
    }
    ALLOWED
        .iter()
        .find(|(allowed, _)| widest(*allowed) == sysno)
        .map(|(_, mask)| *mask)
        .ok_or(Error::Refused(sysno))
}

impl Local {
    /// One call whose arguments are numbers, at the price of the call: for who makes very many.
    pub fn call<const N: usize>(sysno: Sysno, args: [Arg; N]) -> Result<i64> {
        let call = Call {
            sysno,
            args: args.to_vec(),
            tolerate: false,
            compat: None,
            private: None,
        };
        let mut words = [0; 6];
        for (slot, arg) in words.iter_mut().zip(&args) {
            let Arg::Word(word) = arg else {
                return Err(Error::Refused(sysno));
            };
            *slot = *word;
        }
        if addresses(&call)? != 0 {
            return Err(Error::Refused(sysno));
        }
        let ret = invoke(sysno, words);
        match failure(ret) {
            None => Ok(ret),
            Some(errno) => Err(CallError {
                sysno,
                errno,
                index: 0,
                text: format!("{sysno}({words:x?})"),
            }
            .into()),
        }
    }
}

/// A process that ends when it has run a program: where it works is its own matter.
pub(crate) struct Passing;

impl Site for Passing {
    fn run(&mut self, program: &Program) -> Result<Outcome> {
        admit(program, |call| match call.sysno {
            Sysno::fchdir => Ok(0),
            _ => addresses(call),
        })?;
        run(program)
    }
}

impl Site for Local {
    fn run(&mut self, program: &Program) -> Result<Outcome> {
        admit(program, addresses)?;
        tracing::trace!(target: "criu::program", site = "local", "\n{program}");
        run(program)
    }
}

fn admit(program: &Program, addresses: impl Fn(&Call) -> Result<u8>) -> Result<()> {
    for call in program.calls() {
        let mask = addresses(call)?;
        for (index, arg) in call.args.iter().enumerate() {
            let wants_address = mask >> index & 1 == 1;
            let fits = match arg {
                Arg::Blob(..) => wants_address,
                Arg::Word(word) => !wants_address || *word == 0,
                Arg::Ret(_) => !wants_address,
                Arg::Cell(_) => false,
            };
            if !fits {
                return Err(Error::Refused(call.sysno));
            }
        }
    }
    Ok(())
}

fn run(program: &Program) -> Result<Outcome> {
    let mut outcome = Outcome::new(program);
    let mut buffers: Vec<Vec<u8>> = program.data.iter().map(|data| data.bytes.clone()).collect();
    let bases: Vec<u64> = buffers
        .iter_mut()
        .map(|buffer| buffer.as_mut_ptr().addr() as u64)
        .collect();
    for (index, call) in program.calls.iter().enumerate() {
        let mut args = [0u64; 6];
        for (slot, arg) in args.iter_mut().zip(&call.args) {
            *slot = resolve(arg, &outcome, &bases);
            if let Arg::Blob(blob, _) = arg {
                tie(program, *blob, &outcome, &bases, &mut buffers);
            }
        }
        let ret = invoke(call.sysno, args);
        outcome.push(ret);
        if let Some(errno) = failure(ret)
            && !call.tolerate
        {
            return Err(CallError {
                sysno: call.sysno,
                errno,
                index,
                text: program.text(index),
            }
            .into());
        }
    }
    for (index, _) in program.data.iter().enumerate().filter(|(_, data)| data.out) {
        outcome.store(u32::try_from(index).expect("few blobs"), &buffers[index]);
    }
    Ok(outcome)
}

/// Writes addresses and results into a blob, and into those that it leads to: a message has a vector of buffers.
fn tie(program: &Program, blob: Blob, outcome: &Outcome, bases: &[u64], buffers: &mut [Vec<u8>]) {
    for (offset, link) in &program.data[blob.0 as usize].links {
        let at = *offset as usize;
        let word = resolve(link, outcome, bases);
        let room = &mut buffers[blob.0 as usize][at..at + size_of::<usize>()];
        match usize::try_from(word) {
            Ok(word) => room.copy_from_slice(&word.to_ne_bytes()),
            Err(_) => room.fill(0xff),
        }
        if let Arg::Blob(next, _) = link {
            tie(program, *next, outcome, bases, buffers);
        }
    }
}

fn resolve(arg: &Arg, outcome: &Outcome, bases: &[u64]) -> u64 {
    match arg {
        Arg::Word(word) | Arg::Cell(word) => *word,
        Arg::Ret(ret) => outcome.known(*ret).unwrap_or(0).cast_unsigned(),
        Arg::Blob(blob, offset) => bases[blob.0 as usize] + u64::from(*offset),
    }
}

fn invoke(sysno: Sysno, args: [u64; 6]) -> i64 {
    let [a, b, c, d, e, f] = args.map(|arg| usize::try_from(arg).unwrap_or(usize::MAX));
    // SAFETY: `addresses` admitted the call: it does not touch the tracer's mappings, and each of its
    // address arguments points into a buffer of `run` that outlives the call or is null. Lengths are
    // the program's: typed constructors take them from the blob itself.
    let result = unsafe { syscalls::raw_syscall!(sysno, a, b, c, d, e, f) };
    result.cast_signed() as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[test]
    fn results_feed_later_calls() {
        let mut program = Program::new();
        let text = program.bytes(*b"hello");
        let back = program.room(5);
        let name = program.cstr("x");
        let fd = program.call(Sysno::memfd_create, [name.into(), 0u64.into()]);
        let written = program.call(Sysno::write, [fd.into(), text.into(), 5u64.into()]);
        program.call(
            Sysno::pread64,
            [fd.into(), back.into(), written.into(), 0u64.into()],
        );
        program.call(Sysno::close, [fd.into()]);
        let outcome = Local.run(&program).unwrap();
        assert_eq!(outcome.bytes(back), b"hello");
    }

    #[test]
    fn calls_on_our_own_memory_are_refused() {
        let mut program = Program::new();
        program.call(Sysno::munmap, [0u64.into(), 4096u64.into()]);
        assert!(matches!(
            Local.run(&program),
            Err(Error::Refused(Sysno::munmap))
        ));
        let mut program = Program::new();
        program.call(
            Sysno::read,
            [0u64.into(), 0x1234_0000u64.into(), 1u64.into()],
        );
        assert!(matches!(
            Local.run(&program),
            Err(Error::Refused(Sysno::read))
        ));
    }

    #[test]
    fn a_call_of_numbers_has_no_addresses() {
        let group = Local::call(Sysno::getpid, []).unwrap();
        assert_eq!(group, i64::from(std::process::id()));
        let failed = Local::call(Sysno::close, [(-1i32).into()]).unwrap_err();
        assert_eq!(failed.errno(), Some(Errno::EBADF));
        let read = Local::call(Sysno::read, [0.into(), 0x1234_0000.into(), 1.into()]);
        assert!(matches!(read, Err(Error::Refused(Sysno::read))));
    }

    #[test]
    fn a_tolerated_failure_is_an_answer() {
        let mut program = Program::new();
        let ret = program.call(Sysno::close, [(-1i32).into()]);
        program.tolerate();
        assert_eq!(Local.run(&program).unwrap().get(ret), Err(Errno::EBADF));
        let mut program = Program::new();
        program.call(Sysno::close, [(-1i32).into()]);
        let error = Local.run(&program).unwrap_err();
        assert_eq!(error.to_string(), "close: EBADF: Bad file number");
    }
}
