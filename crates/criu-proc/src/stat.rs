//! A task in one line: `/proc/PID/stat`, proc_pid_stat(5).

use nix::unistd::Pid;

use crate::text::{Line, split_at_byte};
use crate::{Dev, ParseError, TaskState};

macro_rules! stat {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $read:ident;)*) => {
        /// What stat says. Addresses (and `exit_code`) are 0 to a reader without `PTRACE_MODE_READ`.
        ///
        /// `do_task_stat` in `fs/proc/array.c`. Times are in ticks of `sysconf(_SC_CLK_TCK)`.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Stat {
            /// The task, in the pid namespace of this `/proc`.
            pub pid: Pid,
            /// Its name, any bytes but zero, here not escaped: prctl(2), `PR_SET_NAME`.
            pub comm: Vec<u8>,
            /// What it is doing.
            pub state: TaskState,
            $($(#[$doc])* pub $name: $type,)*
        }

        fn after_state(line: &mut Line<'_>, pid: Pid, comm: Vec<u8>, state: TaskState) -> Result<Stat, ParseError> {
            $(let $name = line.$read(concat!("the field ", stringify!($name)))?;)*
            Ok(Stat { pid, comm, state, $($name),* })
        }
    };
}

stat! {
    /// The parent; 0 if it is outside this pid namespace.
    ppid: Pid = pid;
    /// The process group.
    pgrp: Pid = pid;
    /// The session.
    session: Pid = pid;
    /// The controlling terminal in the packing of [`tty`](Self::tty), 0 if none.
    tty_nr: i32 = int;
    /// The foreground process group of that terminal, -1 if none.
    tpgid: Pid = pid;
    /// `PF_*` of `include/linux/sched.h`.
    flags: u32 = dec;
    /// Faults without a disk.
    minflt: u64 = dec;
    /// The same, of reaped children.
    cminflt: u64 = dec;
    /// Faults with a disk.
    majflt: u64 = dec;
    /// The same, of reaped children.
    cmajflt: u64 = dec;
    /// Time in user mode.
    utime: u64 = dec;
    /// Time in the kernel.
    stime: u64 = dec;
    /// Time in user mode, of reaped children.
    cutime: u64 = dec;
    /// Time in the kernel, of reaped children.
    cstime: u64 = dec;
    /// As the scheduler sees it: nice plus 20, or for real-time policies minus the priority minus 1.
    priority: i32 = int;
    /// 19 (low) to -20 (high).
    nice: i32 = int;
    /// Threads of the process.
    num_threads: u32 = dec;
    /// Always 0 since Linux 2.6.17.
    itrealvalue: i64 = int;
    /// When it started, in ticks since boot in the reader's time namespace.
    starttime: u64 = dec;
    /// Virtual memory, in bytes.
    vsize: u64 = dec;
    /// Resident memory, in pages.
    rss: u64 = dec;
    /// `RLIMIT_RSS`, in bytes.
    rsslim: u64 = dec;
    /// `mm->start_code`.
    startcode: u64 = dec;
    /// `mm->end_code`.
    endcode: u64 = dec;
    /// `mm->start_stack`.
    startstack: u64 = dec;
    /// The stack pointer, only of an exiting task; else 0.
    kstkesp: u64 = dec;
    /// The instruction pointer, only of an exiting task; else 0.
    kstkeip: u64 = dec;
    /// The low 31 pending signals: see [`Status`](crate::Status) for all.
    signal: u64 = dec;
    /// The low 31 blocked signals.
    blocked: u64 = dec;
    /// The low 31 ignored signals.
    sigignore: u64 = dec;
    /// The low 31 caught signals.
    sigcatch: u64 = dec;
    /// Whether it waits in the kernel (an address on old kernels).
    wchan: u64 = dec;
    /// Always 0.
    nswap: u64 = dec;
    /// Always 0.
    cnswap: u64 = dec;
    /// The signal the parent gets when it exits; -1 for a thread that is no leader.
    exit_signal: i32 = int;
    /// The processor it ran on last.
    processor: i32 = int;
    /// 1 to 99 for real-time policies, else 0.
    rt_priority: u32 = dec;
    /// `SCHED_*`: sched(7).
    policy: u32 = dec;
    /// Time waiting for block I/O.
    delayacct_blkio_ticks: u64 = dec;
    /// Time running a virtual CPU.
    guest_time: u64 = dec;
    /// The same, of reaped children.
    cguest_time: u64 = dec;
    /// `mm->start_data`; from here on since Linux 3.3 and 3.5.
    start_data: u64 = dec;
    /// `mm->end_data`.
    end_data: u64 = dec;
    /// `mm->start_brk`.
    start_brk: u64 = dec;
    /// `mm->arg_start`.
    arg_start: u64 = dec;
    /// `mm->arg_end`.
    arg_end: u64 = dec;
    /// `mm->env_start`.
    env_start: u64 = dec;
    /// `mm->env_end`.
    env_end: u64 = dec;
    /// The status as wait(2) would tell it.
    exit_code: i32 = int;
}

impl Stat {
    /// From all the bytes of the file. The name ends at the *last* parenthesis: it may hold any itself.
    pub fn parse(stat: &[u8]) -> Result<Self, ParseError> {
        let whole = Line::new("stat", 1, stat);
        let close = stat
            .iter()
            .rposition(|&byte| byte == b')')
            .ok_or_else(|| whole.error("a name like (comm)"))?;
        let (head, tail) = (&stat[..close], &stat[close + 1..]);
        let (pid, comm) =
            split_at_byte(head, b'(').ok_or_else(|| whole.error("a name like (comm)"))?;
        let mut before = Line::new("stat", 1, pid);
        let pid = before.pid("a pid")?;
        before.end()?;
        let mut line = Line::new("stat", 1, tail);
        let state = match line.word() {
            &[letter] => TaskState::from_letter(letter),
            _ => None,
        };
        let state = state.ok_or_else(|| Line::new("stat", 1, tail).error("a state letter"))?;
        // Newer kernels may add fields behind the last: that is how this file grows.
        after_state(&mut line, pid, comm.to_vec(), state)
    }

    /// The controlling terminal: `new_encode_dev` of `include/linux/kdev_t.h` undone.
    pub fn tty(&self) -> Option<Dev> {
        let packed = self.tty_nr.cast_unsigned();
        (packed != 0).then_some(Dev {
            major: packed >> 8 & 0xfff,
            minor: packed & 0xff | packed >> 12 & 0xf_ff00,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_looks_like_fields() {
        let stat = Stat::parse(include_bytes!("../fixtures/stat")).expect("a real file");
        assert_eq!(stat.comm, b"a) R (\n\\ \xff");
        assert_eq!(
            (stat.pid.as_raw(), stat.state, stat.ppid.as_raw()),
            (4081, TaskState::Running, 4078)
        );
        assert_eq!(
            (stat.session.as_raw(), stat.tty(), stat.tpgid.as_raw()),
            (2320, None, -1)
        );
        assert_eq!(
            (stat.rsslim, stat.exit_signal, stat.exit_code),
            (u64::MAX, 17, 0)
        );
        assert_eq!((stat.starttime, stat.env_end), (69726, 140_735_111_114_703));
    }

    #[test]
    fn a_terminal() {
        let mut stat = Stat::parse(include_bytes!("../fixtures/stat")).expect("a real file");
        stat.tty_nr = 0x8801; // 136:1, the second pty.
        assert_eq!(
            stat.tty(),
            Some(Dev {
                major: 136,
                minor: 1
            })
        );
        stat.tty_nr = i32::MIN | 0x8801; // Minor 2^19 + 1 sets the sign.
        assert_eq!(
            stat.tty(),
            Some(Dev {
                major: 136,
                minor: 0x8_0001
            })
        );
    }

    #[test]
    fn refusals_name_the_field() {
        let error = Stat::parse(b"1 (x) S 0 1 q").expect_err("q is no session");
        assert_eq!(
            error.to_string(),
            "stat:1: expected the field session, found \"q\""
        );
        Stat::parse(b"1 x").expect_err("no name");
        Stat::parse(b"1 )x(").expect_err("parentheses the wrong way round");
    }
}
