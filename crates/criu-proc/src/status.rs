//! A task in many lines: `/proc/PID/status`, proc_pid_status(5).

use nix::unistd::Pid;

use crate::text::{Line, lines, split_at_byte};
use crate::{ParseError, SignalMask, TaskState, status_value};

/// The four ids of a credential: credentials(7). In the reader's user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ids {
    /// The real id.
    pub real: u32,
    /// The effective id.
    pub effective: u32,
    /// The saved id.
    pub saved: u32,
    /// The file system id.
    pub fs: u32,
}

/// `Seccomp:` seccomp(2), the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Seccomp {
    /// 0.
    Disabled,
    /// 1: read, write, exit and sigreturn only.
    Strict,
    /// 2: BPF programs decide.
    Filter,
}

macro_rules! status {
    ($($(#[$doc:meta])* $key:literal $name:ident: $kind:ident $type:ty = $read:ident;)*) => {
        /// What status says, as far as a checkpoint cares; [`status_field`] finds the rest.
        ///
        /// `proc_pid_status` in `fs/proc/array.c`. `None` is what this kernel, or this kind of task, does not tell:
        /// kernel threads and zombies have no memory.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Status {
            $(
                #[doc = concat!("`", $key, ":`")]
                ///
                $(#[$doc])*
                pub $name: status!(@field $kind $type),
            )*
        }

        impl Status {
            /// From all the bytes of the file.
            pub fn parse(status: &[u8]) -> Result<Self, ParseError> {
                $(let mut $name: Option<$type> = None;)*
                for mut line in lines("status", status) {
                    let Some((key, value)) = split_at_byte(line.rest(), b':') else {
                        return Err(line.error("a line like Key: value"));
                    };
                    line = Line::new("status", line.number(), value);
                    $(if key == $key.as_bytes() {
                        $name = Some(status_value::$read(line)?);
                        continue;
                    })*
                }
                Ok(Self { $($name: status!(@take $kind $name $key)),* })
            }
        }
    };
    (@field must $type:ty) => { $type };
    (@field may $type:ty) => { Option<$type> };
    (@take must $name:ident $key:literal) => {
        $name.ok_or_else(|| ParseError::missing("status", concat!("a line ", $key)))?
    };
    (@take may $name:ident $key:literal) => { $name };
}

status! {
    /// The name, its escapes undone: prctl(2), `PR_SET_NAME`.
    "Name" comm: must Vec<u8> = comm;
    /// Since Linux 4.7; not of a task without `fs_struct` (a zombie).
    "Umask" umask: may u32 = octal;
    /// What it is doing.
    "State" state: must TaskState = state;
    /// The process.
    "Tgid" tgid: must Pid = pid;
    /// The task.
    "Pid" pid: must Pid = pid;
    /// The parent process; 0 if outside this pid namespace.
    "PPid" ppid: must Pid = pid;
    /// Who traces it; `None` (printed as 0) if nobody, or somebody outside this pid namespace.
    "TracerPid" tracer: must Option<Pid> = pid_or_none;
    /// User ids.
    "Uid" uid: must Ids = ids;
    /// Group ids.
    "Gid" gid: must Ids = ids;
    /// Size of the descriptor table; 0 without one.
    "FDSize" fd_size: must u64 = decimal;
    /// Supplementary groups.
    "Groups" groups: must Vec<u32> = decimals;
    /// The process in each pid namespace from this `/proc`'s inwards; Linux 4.1.
    "NStgid" ns_tgid: may Vec<Pid> = pid_list;
    /// The task in each.
    "NSpid" ns_pid: may Vec<Pid> = pid_list;
    /// Its group in each.
    "NSpgid" ns_pgid: may Vec<Pid> = pid_list;
    /// Its session in each.
    "NSsid" ns_sid: may Vec<Pid> = pid_list;
    /// A kernel thread; Linux 6.8.
    "Kthread" kthread: may bool = flag;
    /// Virtual memory, in bytes.
    "VmSize" vm_size: may u64 = size;
    /// Locked memory, in bytes: mlock(2).
    "VmLck" vm_lck: may u64 = size;
    /// Pinned memory, in bytes.
    "VmPin" vm_pin: may u64 = size;
    /// Resident memory, in bytes.
    "VmRSS" vm_rss: may u64 = size;
    /// Swapped out anonymous memory, in bytes.
    "VmSwap" vm_swap: may u64 = size;
    /// A core dump is being written; Linux 4.15.
    "CoreDumping" core_dumping: may bool = flag;
    /// Transparent huge pages are allowed: prctl(2), `PR_SET_THP_DISABLE`; Linux 5.0.
    "THP_enabled" thp_enabled: may bool = flag;
    /// Threads of the process.
    "Threads" threads: must u32 = decimal32;
    /// Signals queued for the real user, and their limit.
    "SigQ" sig_queue: must (u64, u64) = ratio;
    /// Pending for the task.
    "SigPnd" sig_pending: must SignalMask = signals;
    /// Pending for the process.
    "ShdPnd" shared_pending: must SignalMask = signals;
    /// Blocked.
    "SigBlk" sig_blocked: must SignalMask = signals;
    /// Ignored.
    "SigIgn" sig_ignored: must SignalMask = signals;
    /// Caught.
    "SigCgt" sig_caught: must SignalMask = signals;
    /// Inheritable: capabilities(7).
    "CapInh" cap_inheritable: must u64 = hex;
    /// Permitted.
    "CapPrm" cap_permitted: must u64 = hex;
    /// Effective.
    "CapEff" cap_effective: must u64 = hex;
    /// Bounding set.
    "CapBnd" cap_bounding: must u64 = hex;
    /// Ambient; Linux 4.3.
    "CapAmb" cap_ambient: may u64 = hex;
    /// prctl(2), `PR_SET_NO_NEW_PRIVS`; Linux 4.10.
    "NoNewPrivs" no_new_privs: may bool = flag;
    /// The mode; Linux 3.8.
    "Seccomp" seccomp: may Seccomp = seccomp;
    /// Its filters; Linux 5.9.
    "Seccomp_filters" seccomp_filters: may u32 = decimal32;
}

/// The value of another line of status (`x86_Thread_features`, `Cpus_allowed_list`), without the blanks around it.
pub fn status_field<'a>(status: &'a [u8], key: &str) -> Option<&'a [u8]> {
    lines("status", status)
        .filter_map(|line| split_at_byte(line.rest(), b':'))
        .find_map(|(name, value)| (name == key.as_bytes()).then_some(value.trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXTURE: &[u8] = include_bytes!("../fixtures/status");

    #[test]
    fn a_real_process() {
        let status = Status::parse(FIXTURE).expect("a real file");
        assert_eq!(status.comm, b"a) R (\n\\ \xff");
        assert_eq!(
            (status.umask, status.state, status.tracer),
            (Some(0o22), TaskState::Running, None)
        );
        assert_eq!(
            status.gid,
            Ids {
                real: 0,
                effective: 0,
                saved: 0,
                fs: 0
            }
        );
        assert_eq!(status.ns_sid, Some(vec![Pid::from_raw(2320)]));
        assert_eq!(
            (status.vm_lck, status.vm_rss),
            (Some(0), Some(14256 * 1024))
        );
        assert_eq!(
            (status.sig_queue, status.sig_ignored.to_u64()),
            ((3, 96365), Some(0x1001000))
        );
        assert!(status.sig_caught.contains(2));
        assert_eq!(status.cap_permitted, 0x1ff_feff_ffff);
        assert_eq!(
            (status.seccomp, status.no_new_privs),
            (Some(Seccomp::Disabled), Some(false))
        );
        assert_eq!(
            status_field(FIXTURE, "Cpus_allowed_list"),
            Some(b"0-1".as_slice())
        );
        assert_eq!(status_field(FIXTURE, "Nothing"), None);
    }

    #[test]
    fn a_zombie_of_mips_in_two_pid_namespaces() {
        let status = Status::parse(include_bytes!("../fixtures/status.mips-zombie"))
            .expect("a plausible file");
        assert_eq!(
            (status.state, status.vm_size, status.umask),
            (TaskState::Zombie, None, None)
        );
        assert_eq!(
            status.ns_pid,
            Some(vec![Pid::from_raw(812), Pid::from_raw(7)])
        );
        assert_eq!(status.groups, [4, 100_000]);
        assert!(status.sig_blocked.contains(128) && status.sig_blocked.to_u64().is_none());
    }

    #[test]
    fn refusals() {
        let text = String::from_utf8_lossy(FIXTURE).replace("Threads:\t1\n", "");
        let error = Status::parse(text.as_bytes()).expect_err("no Threads");
        assert_eq!(error.to_string(), "status: expected a line Threads");
        let error = Status::parse(b"Name:\tx\nUmask:\t0092\n").expect_err("9 is not octal");
        assert_eq!(
            error.to_string(),
            "status:2: expected an octal number, found \"0092\""
        );
    }
}
