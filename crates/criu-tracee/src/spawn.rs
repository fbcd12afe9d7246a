//! The first task of a restored tree.
#![allow(unsafe_code, reason = "clone3 and the mapping that tasks inherit")]

use criu_arch::Arch;
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::native::Native;
use crate::stop::{Hold, Running, Stop, Stopped};
use crate::tracee::{LEADER_ROOM, THREAD_ROOM, Tracee};

/// The stub and the rooms of all threads, mapped in the tracer where every task of the tree has a
/// hole, so that tasks are born with it.
#[derive(Debug)]
pub struct Nursery {
    at: u64,
    size: u64,
}

const PAGE: u64 = 64 << 10;

impl Nursery {
    /// Bytes of address space for tasks of up to `threads` threads.
    pub fn size_for(threads: usize) -> u64 {
        PAGE + (LEADER_ROOM + threads as u64 * THREAD_ROOM).next_multiple_of(PAGE)
    }

    /// Maps the nursery at `at`, which must be free here (`EEXIST` otherwise).
    pub fn map(at: u64, threads: usize) -> Result<Self> {
        let size = Self::size_for(threads);
        let length =
            usize::try_from(size).expect("a nursery is far smaller than the address space");
        let address = usize::try_from(at).map_err(|_| Error::Kernel {
            call: "mmap",
            errno: Errno::ENOMEM,
        })?;
        let flags = libc::MAP_PRIVATE
            | libc::MAP_ANONYMOUS
            | libc::MAP_NORESERVE
            | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: NOREPLACE: only free address space is taken, which no object of ours occupies.
        let got = unsafe {
            libc::mmap(
                std::ptr::without_provenance_mut(address),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        if got == libc::MAP_FAILED {
            return Err(Error::Kernel {
                call: "mmap",
                errno: Errno::last(),
            });
        }
        let nursery = Self { at, size };
        // SAFETY: the first page is ours.
        let done = unsafe {
            libc::mprotect(
                got,
                usize::try_from(PAGE).unwrap_or(0),
                libc::PROT_READ | libc::PROT_EXEC,
            )
        };
        Errno::result(done).map_err(|errno| Error::Kernel {
            call: "mprotect",
            errno,
        })?;
        // Written by the kernel, which makes the processor's instruction cache see it.
        Memory::open(Pid::this())?.write(at, Native::STUB.code)?;
        Ok(nursery)
    }

    /// Where it lies, first byte and one past the last.
    pub fn range(&self) -> std::ops::Range<u64> {
        self.at..self.at + self.size
    }

    pub(crate) fn code(&self) -> u64 {
        self.at
    }

    pub(crate) fn rooms(&self) -> u64 {
        self.at + PAGE
    }

    pub(crate) fn rooms_size(&self) -> u64 {
        self.size - PAGE
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        let length = usize::try_from(self.size).unwrap_or(0);
        let at = usize::try_from(self.at).unwrap_or(0);
        // SAFETY: the mapping is this value's own; no reference into it is ever given out.
        unsafe { libc::munmap(std::ptr::without_provenance_mut(at), length) };
    }
}

#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Clones the first task, stopped and held, with the given pids: its pid in the innermost new
/// namespace first (`clone3(2)`, `set_tid`). `flags` are `CLONE_NEW*` and `CLONE_PARENT`.
///
/// `EEXIST`: a pid is taken.
pub fn spawn_root(nursery: &Nursery, pids: &[i32], flags: u64) -> Result<Tracee> {
    let args = CloneArgs {
        flags,
        exit_signal: libc::SIGCHLD.cast_unsigned().into(),
        // The kernel refuses an address without a length.
        set_tid: if pids.is_empty() {
            0
        } else {
            pids.as_ptr().expose_provenance() as u64
        },
        set_tid_size: pids.len() as u64,
        ..CloneArgs::default()
    };
    let (pid, held) = spawn_held(&args)?;
    let vpid = pids.first().map_or(pid, |pid| Pid::from_raw(*pid));
    held.and_then(|held| Tracee::adopt_held(pid, vpid, nursery, held))
        .inspect_err(|_| bury(pid))
}

/// Of these regsets (`NT_*`) what a new thread has on this machine.
pub fn newborn(notes: &[u32]) -> Result<Vec<(u32, Vec<u8>)>> {
    if notes.is_empty() {
        return Ok(Vec::new());
    }
    let args = CloneArgs {
        exit_signal: libc::SIGCHLD.cast_unsigned().into(),
        ..CloneArgs::default()
    };
    let (pid, held) = spawn_held(&args)?;
    let all = held.and_then(|(stopped, _)| {
        let mut all = Vec::new();
        for note in notes {
            all.extend(stopped.regset_if_any(*note)?.map(|bytes| (*note, bytes)));
        }
        Ok(all)
    });
    bury(pid);
    all
}

/// Ends a child that is no good: it would wait for ever. It cannot fail for a child of ours that nobody has reaped.
fn bury(pid: Pid) {
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
    drop(crate::wait::reap(pid));
}

/// Clones a child and holds it.
fn spawn_held(args: &CloneArgs) -> Result<(Pid, Result<(Stopped, Stop)>)> {
    // SAFETY: without CLONE_VM the child works on a copy of our memory. It makes no call but those of
    // `wait_to_be_seized`, which touch no state that another thread may have left in disorder.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const *args, size_of::<CloneArgs>()) };
    if pid == 0 {
        wait_to_be_seized();
    }
    let pid = Errno::result(pid).map_err(|errno| Error::Kernel {
        call: "clone3",
        errno,
    })?;
    let pid = Pid::from_raw(i32::try_from(pid).expect("pids are ints"));
    let held = Running::seize(pid, Hold::Restore).and_then(|running| {
        running.interrupt()?;
        running.wait_held(None)
    });
    Ok((pid, held))
}

/// What the child does until it is seized; it dies with the tracer.
fn wait_to_be_seized() -> ! {
    // SAFETY: plain syscalls with numbers only.
    unsafe {
        libc::syscall(
            libc::SYS_prctl,
            libc::PR_SET_PDEATHSIG,
            libc::SIGKILL,
            0,
            0,
            0,
        );
        loop {
            libc::syscall(libc::SYS_ppoll, 0, 0, 0, 0, 0);
        }
    }
}
