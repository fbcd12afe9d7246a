//! Descriptor numbers: those that tasks need, those that we need on the way, and how many there may be.
//!
//! Files are opened here under any number and sent to theirs, so nothing is needed twice: here one for each file, in a
//! task those of its table. What a task needs beside them, for a moment, are numbers that no task has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::RawFd;

use criu_image::id::FileId;
use criu_kind::{Error, Result, Tie};
use criu_tracee::{Local, Program, Site};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that we open besides those of the tasks, at any time.
const SPARE: usize = 256;
/// Numbers that a task needs besides its own: what is sent to it comes through one, and what is fetched by it needs one
/// for the process and one for the file.
const ROOM: usize = 3;

/// Gives out descriptor numbers that no task needs.
#[derive(Debug)]
pub(crate) struct Numbers {
    used: BTreeSet<RawFd>,
    next: RawFd,
    limit: RawFd,
}

impl Numbers {
    /// `used` are those of all tasks; so many files are open here at the same time.
    pub(crate) fn new(used: BTreeSet<RawFd>, count: usize) -> Result<Self> {
        let wanted = Wanted::of(&used, count);
        Self::within(used, &wanted, raise(wanted.at_ease)?)
    }

    fn within(used: BTreeSet<RawFd>, wanted: &Wanted, limit: u64) -> Result<Self> {
        if limit < wanted.at_least {
            return Err(Error::unsupported(
                format!(
                    "the restore of {} takes {} descriptors, and the limit here is {limit}",
                    wanted.what, wanted.at_least
                ),
                format!("raise the limit: `ulimit -Hn {}`", wanted.at_ease),
            ));
        }
        let next = if limit >= wanted.at_ease {
            wanted.above
        } else {
            0
        };
        Ok(Self {
            used,
            next,
            limit: RawFd::try_from(limit).unwrap_or(RawFd::MAX),
        })
    }

    /// From here on numbers are sought that no task needs.
    pub(crate) fn floor(&self) -> RawFd {
        self.next
    }

    /// The first number that is too large.
    pub(crate) fn limit(&self) -> RawFd {
        self.limit
    }

    /// How many numbers all tasks can do without, though each needs some for a moment.
    pub(crate) fn lanes(&self) -> usize {
        let limit = usize::try_from(self.limit).unwrap_or(0);
        limit.saturating_sub(self.used.len() + ROOM - 1).max(1)
    }

    /// Moves a descriptor to a number that no task needs.
    pub(crate) fn lift(&mut self, mut fd: RawFd) -> Result<RawFd> {
        loop {
            while self.used.contains(&self.next) {
                self.next += 1;
            }
            if fd >= self.next && !self.used.contains(&fd) {
                return Ok(fd);
            }
            let mut program = Program::new();
            let moved = program.fcntl(fd, libc::F_DUPFD_CLOEXEC, self.next);
            program.close(fd);
            fd = Local.run(&program)?.fd(moved);
            self.next = fd;
        }
    }
}

/// The limits of descriptors with which a restore can do.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// Behind all numbers that tasks have.
    above: RawFd,
    /// With this what is ours goes above what is theirs.
    at_ease: u64,
    at_least: u64,
    /// Whose the least is.
    what: String,
}

impl Wanted {
    fn of(used: &BTreeSet<RawFd>, count: usize) -> Self {
        let highest = used.last().copied().unwrap_or(-1).max(2);
        let above = highest + 1;
        let number = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let all = number(above.unsigned_abs() as usize);
        let of_files = number(count + SPARE);
        let of_tasks = all.max(number(used.len() + ROOM));
        let what = if of_files > of_tasks {
            format!("{count} files")
        } else {
            format!("tasks with {} descriptors up to {highest}", used.len())
        };
        Self {
            above,
            at_ease: of_files.max(all + number(SPARE)),
            at_least: of_files.max(of_tasks),
            what,
        }
    }
}

/// Raises our limit as far as we may, and further if we can and it is wanted: kinds make more on the way than there
/// are in the end. What it is then.
fn raise(wanted: u64) -> Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(Error::kernel("getrlimit"))?;
    #[allow(
        clippy::useless_conversion,
        reason = "limits have 32 bits on 32-bit machines"
    )]
    let (soft, hard) = (u64::from(soft), u64::from(hard));
    let set = |soft: u64, hard: u64| {
        let most = nix::sys::resource::RLIM_INFINITY;
        let [soft, hard] = [soft, hard].map(|limit| limit.try_into().unwrap_or(most));
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard)
    };
    let most = wanted.max(hard);
    if soft >= most || set(most, most).is_ok() {
        return Ok(soft.max(most));
    }
    if soft < hard {
        set(hard, hard).map_err(Error::kernel("setrlimit"))?;
    }
    Ok(hard)
}

/// The number of each file that is tied to another: the one it is to have, unless others are to have that too, or one
/// of `spare`.
pub(crate) fn tied_numbers(
    ties: &[Tie],
    spare: &mut dyn Iterator<Item = RawFd>,
) -> Result<HashMap<FileId, RawFd>> {
    let mut claims: BTreeMap<RawFd, BTreeSet<FileId>> = BTreeMap::new();
    for (id, number) in ties {
        if let Some(number) = number {
            claims.entry(*number).or_default().insert(*id);
        }
    }
    let mut numbers = HashMap::new();
    for (number, files) in claims {
        if let (Some(id), 1) = (files.first(), files.len()) {
            numbers.entry(*id).or_insert(number);
        }
    }
    for (id, _) in ties {
        if !numbers.contains_key(id) {
            let number = spare.next().ok_or(Error::Kernel {
                call: "dup3",
                errno: Errno::EMFILE,
            })?;
            numbers.insert(*id, number);
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(used: std::ops::Range<RawFd>, count: usize, limit: u64) -> Result<Numbers> {
        let used: BTreeSet<RawFd> = used.collect();
        let wanted = Wanted::of(&used, count);
        Numbers::within(used, &wanted, limit)
    }

    #[test]
    fn every_file_is_counted_once() {
        let numbers = within(0..10_000, 10_000, 20_000).expect("enough");
        assert_eq!((numbers.floor(), numbers.limit()), (10_000, 20_000));
        let numbers = within(0..16_000, 16_000, 20_000).expect("enough");
        assert_eq!(numbers.floor(), 16_000);
        // Ours do not fit above theirs any more.
        let numbers = within(0..19_997, 16_000, 20_000).expect("enough");
        assert_eq!((numbers.floor(), numbers.lanes()), (0, 1));
        let numbers = within(0..19_990, 16_000, 20_000).expect("enough");
        assert_eq!((numbers.floor(), numbers.lanes()), (0, 8));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refusal = |used, count| {
            let error = within(used, count, 20_000).expect_err("too many");
            error.to_string()
        };
        let full = refusal(0..19_998, 5);
        assert!(full.contains("tasks with 19998 descriptors up to 19997 takes 20001"));
        let far = refusal(20_000..20_001, 1);
        assert!(far.contains("tasks with 1 descriptors up to 20000 takes 20001"));
        let many = refusal(0..3, 19_745);
        assert!(many.contains("19745 files takes 20001"));
        assert!(within(19_999..20_000, 19_744, 20_000).is_ok());
    }

    #[test]
    fn numbers_are_sought_where_no_task_has_any() {
        let used: BTreeSet<RawFd> = (0..40).chain([42]).collect();
        let wanted = Wanted::of(&used, 1);
        let refused = Numbers::within(used, &wanted, 64).expect_err("fewer than we open");
        assert!(refused.to_string().contains("takes 257"));
        let used: BTreeSet<RawFd> = (0..900).chain([902]).collect();
        let wanted = Wanted::of(&used, 1);
        let mut sought = Numbers::within(used, &wanted, 1024).expect("enough");
        assert_eq!(sought.floor(), 0);
        let mut lifted = Vec::new();
        for _ in 0..3 {
            let file = std::fs::File::open("/dev/null").expect("it is there");
            lifted.push(
                sought
                    .lift(std::os::fd::IntoRawFd::into_raw_fd(file))
                    .expect("free"),
            );
        }
        assert_eq!(lifted, [900, 901, 903]);
    }

    #[test]
    fn files_have_the_number_they_are_tied_under() {
        let file = FileId::new;
        let ties = [
            (file(1), Some(5)),
            (file(2), Some(6)),
            (file(3), Some(6)),
            (file(1), Some(7)),
            (file(9), None),
        ];
        let numbers = tied_numbers(&ties, &mut (100..)).expect("enough");
        let of = |id| numbers[&file(id)];
        // Both that are to have the same number for a moment wait elsewhere.
        assert_eq!([1, 2, 3, 9].map(of), [5, 100, 101, 102]);
        tied_numbers(&ties, &mut (100..102)).expect_err("one too few");
    }
}
