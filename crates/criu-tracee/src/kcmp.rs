//! Which tasks and descriptors have an object of the kernel in common: kcmp(2).
//!
//! Needs `CONFIG_KCMP` and the right to trace both tasks. The kernel gives objects an order, so that n of
//! them take n log n comparisons ([`find`]).

use std::cmp::Ordering;

use nix::errno::Errno;
use nix::unistd::Pid;
use syscalls::Sysno;

use crate::{Error, Local, Result};

/// What is compared; numbers of `include/uapi/linux/kcmp.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kcmp {
    /// The struct files of two descriptors.
    File(i32, i32),
    /// Address spaces.
    Vm,
    /// Tables of descriptors.
    Files,
    /// Working directory, root and umask.
    Fs,
    /// Signal actions.
    Sighand,
}

/// Compares an object of `one` with the same of `other`.
pub fn kcmp(one: Pid, other: Pid, what: Kcmp) -> Result<Ordering> {
    let (kind, a, b) = match what {
        Kcmp::File(a, b) => (0, a, b),
        Kcmp::Vm => (1, 0, 0),
        Kcmp::Files => (2, 0, 0),
        Kcmp::Fs => (3, 0, 0),
        Kcmp::Sighand => (4, 0, 0),
    };
    let (one, other) = (one.as_raw().into(), other.as_raw().into());
    let order = Local::call(Sysno::kcmp, [one, other, kind.into(), a.into(), b.into()]);
    match order? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        // 3: different, and no order can be told; no kernel says so of these.
        _ => Err(Error::Kernel {
            call: "kcmp",
            errno: Errno::EINVAL,
        }),
    }
}

/// Finds an equal object in a sorted list, or puts the new one in its place.
pub fn find<O: Copy, I: Copy>(
    list: &mut Vec<(O, I)>,
    new: (O, I),
    compare: impl Fn(O) -> Result<Ordering>,
) -> Result<Option<I>> {
    let (mut low, mut high) = (0, list.len());
    while low < high {
        let middle = usize::midpoint(low, high);
        match compare(list[middle].0)? {
            Ordering::Equal => return Ok(Some(list[middle].1)),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    list.insert(low, new);
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_again() {
        let mut list = Vec::new();
        for (new, at) in [(5, 0), (3, 1), (9, 2), (3, 3), (5, 4), (9, 5)] {
            let found = find(&mut list, (new, at), |known: i32| Ok(known.cmp(&new)));
            let first = [(5, 0), (3, 1), (9, 2)].iter().find(|(n, _)| *n == new);
            let want = first.map(|(_, at)| *at).filter(|first| *first != at);
            assert_eq!(found.expect("no error"), want);
        }
        let me = Pid::this();
        for what in [Kcmp::Vm, Kcmp::Files, Kcmp::Fs, Kcmp::Sighand] {
            assert!(matches!(kcmp(me, me, what), Ok(Ordering::Equal)));
        }
    }
}
