//! What a process takes back from semaphores when it ends: `SEM_UNDO` of semop(2).
//!
//! No interface tells it, but semop(2) answers `ERANGE` where the sum to take back would leave its range. Several
//! operations of one call are tried one after the other and take effect together or not at all: so the process itself
//! tries one that brings the sum near the end of its range, followed by one that is bound to fail.
//! The answer tells on which side of a bound the sum lies, and nothing has changed: no value, no time, no pid.
//! Halving the range finds the sum. Semaphores that the process may not alter now are taken for unowed.

use criu_image::pb;
use criu_kind::{Error, Result};
use criu_tracee::{Program, Ret, Site};
use nix::errno::Errno;

/// The most that a semaphore holds, `SEMVMX`, and the most that is taken back, `SEMAEM`.
const MOST: i32 = 32767;
/// Calls in one batch.
const BATCH: usize = 2048;
const NOWAIT: i16 = 0o4000;
const UNDO: i16 = 0x1000;

/// `struct sembuf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Op {
    by: i32,
    undo: bool,
}

fn operate(program: &mut Program, id: u32, num: u32, ops: &[Op]) -> Ret {
    // A semaphore is waited for to be zero by an operation of zero.
    let ops: Vec<Op> = ops.iter().copied().filter(|op| op.by != 0).collect();
    let mut bytes = Vec::with_capacity(6 * ops.len());
    for op in &ops {
        let num = u16::try_from(num).unwrap_or(u16::MAX);
        let by = i16::try_from(op.by).unwrap_or(i16::MIN);
        let flags = if op.undo { NOWAIT | UNDO } else { NOWAIT };
        bytes.extend_from_slice(&num.to_ne_bytes());
        bytes.extend_from_slice(&by.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
    }
    let blob = program.bytes(bytes);
    program.semop(id, blob, ops.len())
}

fn plain(by: i32) -> Op {
    Op { by, undo: false }
}

fn undone(by: i32) -> Op {
    Op { by, undo: true }
}

/// Takes from any semaphore more than it can hold.
const NEVER: Op = Op {
    by: -MOST - 1,
    undo: false,
};

/// Operations that are refused by `ERANGE` if and only if the sum is at least `bound`, which is positive.
fn at_least(bound: i32, value: u16) -> [Op; 5] {
    let up = MOST - i32::from(value);
    let [none, other] = [plain(0), plain(0)];
    [plain(up), undone(bound - MOST - 1), NEVER, none, other]
}

/// Operations that are refused by `ERANGE` if and only if the sum is at most `bound`, which is negative.
fn at_most(bound: i32, value: u16) -> [Op; 5] {
    let by = MOST + 2 + bound;
    let down = plain(-i32::from(value));
    let (first, rest) = (by.min(MOST), by - by.min(MOST));
    [down, undone(first), plain(-first), undone(rest), NEVER]
}

/// A set whose semaphores are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) id: u32,
    pub(crate) values: &'a [u16],
}

/// What the process of a site owes to semaphores of these sets: index of the set, number, sum.
pub(crate) fn sums(site: &mut dyn Site, sets: &[Asked<'_>]) -> Result<Vec<(usize, u32, i32)>> {
    let all = sets.iter().enumerate().flat_map(|(set, asked)| {
        let values = asked.values.iter().zip(0..);
        values.map(move |(value, num)| (set, asked.id, num, *value))
    });
    let all: Vec<(usize, u32, u32, u16)> = all.collect();
    let mut owed = Vec::new();
    for part in all.chunks(BATCH) {
        let above = ask(
            site,
            part.iter()
                .map(|(_, id, num, value)| (*id, *num, at_least(1, *value))),
        )?;
        let below = ask(
            site,
            part.iter()
                .map(|(_, id, num, value)| (*id, *num, at_most(-1, *value))),
        )?;
        for ((one, above), below) in part.iter().zip(above).zip(below) {
            if above != below {
                owed.push((*one, if above { (1, MOST) } else { (-MOST - 1, -1) }));
            }
        }
    }
    // Each round halves all ranges that are left.
    while owed.iter().any(|(_, (low, high))| low != high) {
        let middle = |(low, high): (i32, i32)| {
            if low > 0 {
                (low + high + 1) / 2
            } else {
                (low + high - 1) / 2
            }
        };
        let questions = owed.iter().map(|((_, id, num, value), range)| {
            let bound = middle(*range);
            let ops = if bound > 0 {
                at_least(bound, *value)
            } else {
                at_most(bound, *value)
            };
            (*id, *num, ops)
        });
        let answers = ask(site, questions)?;
        for ((_, range), refused) in owed.iter_mut().zip(answers) {
            let bound = middle(*range);
            *range = match (range.0 == range.1, bound > 0, refused) {
                (true, ..) => *range,
                (_, true, true) => (bound, range.1),
                (_, true, false) => (range.0, bound - 1),
                (_, false, true) => (range.0, bound),
                (_, false, false) => (bound + 1, range.1),
            };
        }
    }
    Ok(owed
        .into_iter()
        .map(|((set, _, num, _), (sum, _))| (set, num, sum))
        .collect())
}

/// Whether each question was refused by `ERANGE`.
fn ask(
    site: &mut dyn Site,
    questions: impl Iterator<Item = (u32, u32, [Op; 5])>,
) -> Result<Vec<bool>> {
    let mut program = Program::new();
    let mut rets = Vec::new();
    for (id, num, ops) in questions {
        rets.push(operate(&mut program, id, num, &ops));
        program.tolerate();
    }
    let outcome = site.run(&program)?;
    let answers = rets.into_iter().map(|ret| match outcome.get(ret) {
        Err(Errno::ERANGE) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno @ (Errno::E2BIG | Errno::ENOSPC | Errno::ENOMEM)) => Err(Error::unsupported(
            format!("what it owes to semaphores cannot be asked for ({errno})"),
            "raise the limits in /proc/sys/kernel/sem",
        )),
        Err(errno) => Err(Error::kernel("semop")(errno)),
        Ok(_) => Err(Error::kernel("semop")(Errno::EPROTO)),
    });
    answers.collect()
}

/// Adds the call after which the process of the site owes this, and the value is what it was.
pub(crate) fn owe(program: &mut Program, id: u32, undo: &pb::IpcUndoEntry, value: u16) {
    let value = i32::from(value);
    let (sum, size) = (undo.adj, undo.adj.abs());
    let ops = if sum > 0 {
        [plain(-value), plain(size), undone(-size), plain(value)]
    } else {
        [plain(-value), undone(size), plain(-size), plain(value)]
    };
    operate(program, id, undo.num, &ops);
}

/// Adds the call after which the process of the site is who operated the semaphore last.
pub(crate) fn touch(program: &mut Program, id: u32, num: u32, value: u16) {
    let by = if i32::from(value) < MOST { 1 } else { -1 };
    operate(program, id, num, &[plain(by), plain(-by)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `perform_atomic_semop_slow` of `ipc/sem.c`, v6.18, on one semaphore.
    fn refused(sum: i32, value: u16, ops: [Op; 5]) -> bool {
        let (mut sum, mut value) = (sum, i32::from(value));
        for op in ops.into_iter().filter(|op| op.by != 0) {
            assert!(i16::try_from(op.by).is_ok());
            if value + op.by < 0 {
                assert_eq!(op, NEVER);
                return false;
            }
            value += op.by;
            assert!(value <= MOST, "out of range by its value");
            if op.undo {
                sum -= op.by;
                if !(-MOST - 1..=MOST).contains(&sum) {
                    return true;
                }
            }
        }
        panic!("nothing failed");
    }

    #[test]
    fn questions_are_answered_by_the_sum_alone() {
        for value in [0, 1, 2, 16000, 32766, 32767] {
            for sum in [-32768, -32767, -300, -2, -1, 0, 1, 2, 300, 32766, 32767] {
                for bound in [1, 2, 300, 301, 32767] {
                    assert_eq!(refused(sum, value, at_least(bound, value)), sum >= bound);
                }
                for bound in [-1, -2, -300, -301, -32768] {
                    assert_eq!(refused(sum, value, at_most(bound, value)), sum <= bound);
                }
            }
        }
    }
}
