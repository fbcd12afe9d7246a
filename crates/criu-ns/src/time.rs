//! Time namespaces: what `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME` show, time_namespaces(7), Linux 5.6.
//!
//! The offsets of a namespace can be set only before anybody has entered it, and who makes one by unshare(2) is not in
//! it: only its children will be. So it is entered by setns(2).

use criu_image::id::NsId;
use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{Error, Result, Shift};
use criu_proc::{ProcDir, TimensOffsets};
use criu_tracee::{Local, Program, Site, Sysno};
use nix::errno::Errno;

const NANOS: i64 = 1_000_000_000;
/// `struct __kernel_timespec`, of two words of 64 bits on every machine.
const TIMESPEC: usize = 16;
/// Of unshare(2) and setns(2).
const CLONE_NEWTIME: i32 = 0x80;
/// Clocks that are ahead of the image by less need no namespace.
const LEEWAY: i64 = NANOS;

/// What the clocks show, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// `CLOCK_MONOTONIC`.
    pub monotonic: i64,
    /// `CLOCK_BOOTTIME`.
    pub boottime: i64,
}

/// What became of the clocks of a tree.
#[derive(Debug, PartialEq, Eq)]
pub enum Going {
    /// They show what is wanted, or hardly more, as they are.
    AsTheyAre,
    /// They go on from what is wanted, and differ by so much from ours.
    On(Shift),
    /// They are the machine's, for this reason.
    Not(&'static str),
}

impl Clocks {
    /// Asks a task, or us.
    pub fn of(site: &mut dyn Site) -> Result<Self> {
        let mut program = Program::new();
        let rooms = ask(&mut program);
        let outcome = site.run(&program)?;
        let [monotonic, boottime] = rooms.map(|room| nanos(outcome.bytes(room)));
        Ok(Self {
            monotonic,
            boottime,
        })
    }

    /// Reads `timens-N`; `None` if it is not there, or is empty.
    pub fn load(store: &dyn Store, id: NsId) -> Result<Option<Self>> {
        let entries = store.entries::<pb::TimensEntry>(desc::TIMENS, id)?;
        let Some(entry) = entries.unwrap_or_default().into_iter().next() else {
            return Ok(None);
        };
        let parse = |time: &pb::Timespec| {
            let sec = i64::try_from(time.tv_sec).ok()?.checked_mul(NANOS)?;
            let nsec = i64::try_from(time.tv_nsec)
                .ok()
                .filter(|nsec| *nsec < NANOS)?;
            // The kernel refuses offsets that lead further.
            sec.checked_add(nsec).filter(|nanos| *nanos < i64::MAX / 2)
        };
        let entry = entry.message;
        match (parse(&entry.monotonic), parse(&entry.boottime)) {
            (Some(monotonic), Some(boottime)) => Ok(Some(Self {
                monotonic,
                boottime,
            })),
            _ => Err(Error::corrupt(
                desc::TIMENS.file_name(id),
                "clocks that no kernel has",
            )),
        }
    }

    /// Writes `timens-N`.
    pub fn write(self, store: &dyn Store, id: NsId) -> Result<()> {
        let time = |nanos: i64| pb::Timespec {
            tv_sec: (nanos / NANOS).unsigned_abs(),
            tv_nsec: (nanos % NANOS).unsigned_abs(),
        };
        let entry = pb::TimensEntry {
            monotonic: time(self.monotonic),
            boottime: time(self.boottime),
        };
        Ok(store.write_entry(desc::TIMENS, id, &entry)?)
    }

    /// Whether clocks that show `self` do where `wanted` is wanted.
    fn will_do(self, wanted: Self) -> bool {
        let ahead = [
            self.monotonic - wanted.monotonic,
            self.boottime - wanted.boottime,
        ];
        ahead.iter().all(|ahead| (0..LEEWAY).contains(ahead))
    }

    fn minus(self, other: Self) -> Shift {
        Shift {
            monotonic: self.monotonic - other.monotonic,
            boottime: self.boottime - other.boottime,
        }
    }
}

/// Lets the clocks of a task go on from `wanted`, and those of all that it will clone. It has no threads and no
/// children yet; `process` is its directory.
pub fn go_on(task: &mut dyn Site, process: &ProcDir, wanted: Clocks) -> Result<Going> {
    let shown = Clocks::of(task)?;
    if shown.will_do(wanted) {
        return Ok(Going::AsTheyAre);
    }
    let offsets = match process.read("timens_offsets") {
        Ok(text) => criu_proc::timens_offsets(&text).map_err(criu_proc::Error::from)?,
        Err(criu_proc::Error::Kernel {
            errno: Errno::ENOENT,
            ..
        }) => {
            return Ok(machines(
                "this kernel has no time namespaces (CONFIG_TIME_NS)",
                shown,
                wanted,
            ));
        }
        Err(error) => return Err(error.into()),
    };
    let ours = Clocks::of(&mut Local)?;
    let (program, rooms) = enter(&lines(offsets, shown, wanted));
    match task.run(&program) {
        Ok(outcome) => {
            let [monotonic, boottime] = rooms.map(|room| nanos(outcome.bytes(room)));
            let theirs = Clocks {
                monotonic,
                boottime,
            };
            Ok(Going::On(theirs.minus(ours)))
        }
        Err(error) => {
            let why = match error.errno() {
                Some(Errno::EPERM | Errno::EACCES) => {
                    "a time namespace needs CAP_SYS_ADMIN and CAP_SYS_TIME"
                }
                Some(Errno::ENOSPC) => {
                    "there are too many time namespaces (/proc/sys/user/max_time_namespaces)"
                }
                _ => return Err(error.into()),
            };
            // Its children would enter what it has made.
            leave(task)?;
            Ok(machines(why, shown, wanted))
        }
    }
}

fn machines(why: &'static str, shown: Clocks, wanted: Clocks) -> Going {
    let back = wanted.minus(shown);
    let seconds = back.monotonic.max(back.boottime) / NANOS;
    if seconds > 0 {
        tracing::warn!("the clocks of the tree go back by {seconds} s: {why}");
    } else {
        tracing::info!("the clocks of the tree jump: {why}");
    }
    Going::Not(why)
}

/// Questions for what the clocks show.
fn ask(program: &mut Program) -> [criu_tracee::Blob; 2] {
    [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME].map(|clock| {
        let room = program.room(TIMESPEC);
        program.call(Sysno::clock_gettime, [clock.into(), room.into()]);
        room
    })
}

fn nanos(bytes: &[u8]) -> i64 {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        i64::from_ne_bytes(word)
    };
    word(0) * NANOS + word(8)
}

/// What to write into `timens_offsets`, so that clocks which show `shown` with these offsets show `wanted`. The first
/// kernels know the clocks by their numbers only.
fn lines(offsets: TimensOffsets, shown: Clocks, wanted: Clocks) -> String {
    let line = |clock: i32, (sec, nsec): (i64, u32), shown: i64, wanted: i64| {
        // An offset may be larger than what 64 bits of nanoseconds hold.
        let nanos = i128::from(sec) * i128::from(NANOS) + i128::from(nsec) + i128::from(wanted)
            - i128::from(shown);
        let sec = nanos.div_euclid(NANOS.into());
        format!("{clock} {sec} {}\n", nanos.rem_euclid(NANOS.into()))
    };
    let monotonic = (shown.monotonic, wanted.monotonic);
    let boottime = (shown.boottime, wanted.boottime);
    line(
        libc::CLOCK_MONOTONIC,
        offsets.monotonic,
        monotonic.0,
        monotonic.1,
    ) + &line(
        libc::CLOCK_BOOTTIME,
        offsets.boottime,
        boottime.0,
        boottime.1,
    )
}

/// Makes a namespace, sets its clocks, enters it, and asks what they show.
fn enter(offsets: &str) -> (Program, [criu_tracee::Blob; 2]) {
    let mut program = Program::new();
    program.unshare(CLONE_NEWTIME);
    let path = program.cstr("/proc/self/timens_offsets");
    let flags = libc::O_WRONLY | libc::O_CLOEXEC;
    let fd = program.openat(libc::AT_FDCWD, path, flags, 0);
    let text = program.bytes(offsets.as_bytes());
    program.write(fd, text, offsets.len());
    program.close(fd);
    join(&mut program, "/proc/self/ns/time_for_children");
    let rooms = ask(&mut program);
    (program, rooms)
}

/// Lets the children of a task be where it is itself, unless it may not.
fn leave(task: &mut dyn Site) -> Result<()> {
    let mut program = Program::new();
    join(&mut program, "/proc/self/ns/time");
    match task.run(&program) {
        Ok(_) => Ok(()),
        // Then it could not make one either.
        Err(error) if error.errno() == Some(Errno::EPERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Enters a time namespace.
fn join(program: &mut Program, path: &str) {
    let path = program.cstr(path);
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    let fd = program.openat(libc::AT_FDCWD, path, flags, 0);
    program.setns(fd, CLONE_NEWTIME);
    program.close(fd);
}

#[cfg(test)]
mod tests {
    use criu_image::Memory;
    use criu_tracee::Dry;
    use expect_test::expect;

    use super::*;

    const SHOWN: Clocks = Clocks {
        monotonic: 50 * NANOS + 7,
        boottime: 60 * NANOS,
    };

    #[test]
    fn a_namespace_is_set_before_it_is_entered() {
        let (program, _) = enter("1 5 0\n7 6 0\n");
        expect![[r#"
            $0 = unshare(128)
            $1 = openat(-100, "/proc/self/timens_offsets", 0x80001, 0)
            $2 = write($1, <31203520300a37203620300a>, 12)
            $3 = close($1)
            $4 = openat(-100, "/proc/self/ns/time_for_children", 0x80000, 0)
            $5 = setns($4, 128)
            $6 = close($4)
            $7 = clock_gettime(1, [16])
            $8 = clock_gettime(7, [16])
        "#]]
        .assert_eq(&program.to_string());
        let mut dry = Dry::new();
        leave(&mut dry).expect("on paper");
        expect![[r#"
            $0 = openat(-100, "/proc/self/ns/time", 0x80000, 0)
            $1 = setns($0, 128)
            $2 = close($0)
        "#]]
        .assert_eq(dry.listing());
    }

    #[test]
    fn offsets_count_from_the_first_namespace() {
        let wanted = Clocks {
            monotonic: 45 * NANOS,
            boottime: 1_000 * NANOS + 3,
        };
        let offsets = |monotonic, boottime| TimensOffsets {
            monotonic,
            boottime,
        };
        let first = lines(offsets((0, 0), (0, 0)), SHOWN, wanted);
        assert_eq!(first, "1 -6 999999993\n7 940 3\n");
        let nested = lines(offsets((-3, 0), (100, 999_999_999)), SHOWN, wanted);
        assert_eq!(nested, "1 -9 999999993\n7 1041 2\n");
    }

    #[test]
    fn a_clock_may_run_ahead_a_little_and_never_back() {
        let at = |monotonic| Clocks { monotonic, ..SHOWN };
        assert!(SHOWN.will_do(SHOWN) && at(SHOWN.monotonic + LEEWAY - 1).will_do(SHOWN));
        assert!(!at(SHOWN.monotonic + LEEWAY).will_do(SHOWN));
        assert!(!at(SHOWN.monotonic - 1).will_do(SHOWN));
    }

    #[test]
    fn clocks_survive_the_image() {
        let store = Memory::new();
        let (id, other) = (NsId::new(9), NsId::new(0));
        SHOWN.write(&store, id).expect("memory");
        let mad = pb::TimensEntry {
            boottime: pb::Timespec {
                tv_sec: u64::MAX,
                tv_nsec: 0,
            },
            ..pb::TimensEntry::default()
        };
        store
            .write_entry(desc::TIMENS, other, &mad)
            .expect("memory");
        store.finish().expect("memory");
        assert_eq!(Clocks::load(&store, id).expect("good"), Some(SHOWN));
        Clocks::load(&store, other).expect_err("no such time");
        assert_eq!(Clocks::load(&store, NsId::new(1)).expect("none"), None);
    }

    #[test]
    fn clocks_are_those_of_this_machine() {
        let now = |clock| nix::time::clock_gettime(clock).expect("a clock");
        let before = now(nix::time::ClockId::CLOCK_MONOTONIC);
        let clocks = Clocks::of(&mut Local).expect("two clocks");
        let after = now(nix::time::ClockId::CLOCK_MONOTONIC);
        let nanos = |time: nix::sys::time::TimeSpec| time.tv_sec() * NANOS + time.tv_nsec();
        assert!((nanos(before)..=nanos(after)).contains(&clocks.monotonic));
    }
}
