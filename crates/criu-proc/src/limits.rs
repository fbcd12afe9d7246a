//! The resource limits of a process: `/proc/PID/limits`, proc_pid_limits(5), getrlimit(2).

use crate::ParseError;
use crate::text::{lines, signed, unsigned};

/// A resource, in the order of the file. Numbers differ by architecture (MIPS), so this is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "each is the RLIMIT_ constant of its name: getrlimit(2)"
)]
pub enum Resource {
    Cpu,
    Fsize,
    Data,
    Stack,
    Core,
    Rss,
    Nproc,
    Nofile,
    Memlock,
    As,
    Locks,
    Sigpending,
    Msgqueue,
    Nice,
    Rtprio,
    Rttime,
}

/// The names in the file: `lnames` in `fs/proc/base.c`.
const NAMES: [(Resource, &str); 16] = [
    (Resource::Cpu, "Max cpu time"),
    (Resource::Fsize, "Max file size"),
    (Resource::Data, "Max data size"),
    (Resource::Stack, "Max stack size"),
    (Resource::Core, "Max core file size"),
    (Resource::Rss, "Max resident set"),
    (Resource::Nproc, "Max processes"),
    (Resource::Nofile, "Max open files"),
    (Resource::Memlock, "Max locked memory"),
    (Resource::As, "Max address space"),
    (Resource::Locks, "Max file locks"),
    (Resource::Sigpending, "Max pending signals"),
    (Resource::Msgqueue, "Max msgqueue size"),
    (Resource::Nice, "Max nice priority"),
    (Resource::Rtprio, "Max realtime priority"),
    (Resource::Rttime, "Max realtime timeout"),
];

/// One bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rlim {
    /// In the unit of its resource.
    Value(u64),
    /// `RLIM_INFINITY`.
    Unlimited,
}

/// The two bounds of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limit {
    /// What the kernel enforces.
    pub soft: Rlim,
    /// What the process may raise that to.
    pub hard: Rlim,
}

/// All limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits([Limit; 16]);

impl Limits {
    /// From all the bytes of the file.
    pub fn parse(limits: &[u8]) -> Result<Self, ParseError> {
        let mut all = [None; 16];
        for mut line in lines("limits", limits).skip(1) {
            // Names come in the middle of each other nowhere, so the first that fits is the one.
            let Some(at) = NAMES
                .iter()
                .position(|(_, name)| line.take(name.as_bytes()))
            else {
                return Err(line.error("the name of a limit"));
            };
            let mut bound = || {
                let before = line.clone();
                rlim(line.word()).ok_or_else(|| before.error("a number or unlimited"))
            };
            all[at] = Some(Limit {
                soft: bound()?,
                hard: bound()?,
            });
        }
        let mut found = [Limit {
            soft: Rlim::Unlimited,
            hard: Rlim::Unlimited,
        }; 16];
        for ((limit, (_, name)), slot) in all.into_iter().zip(NAMES).zip(&mut found) {
            *slot = limit.ok_or_else(|| ParseError::missing("limits", name))?;
        }
        Ok(Self(found))
    }

    /// The limit of `resource`.
    pub fn get(&self, resource: Resource) -> Limit {
        // The enum is in the order of the file, and so is the array.
        self.0[resource as usize]
    }

    /// All of them, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (Resource, Limit)> {
        NAMES.iter().map(|(resource, _)| *resource).zip(self.0)
    }
}

/// Printed with `%lu`, but once with `%ld`.
fn rlim(word: &[u8]) -> Option<Rlim> {
    if word == b"unlimited" {
        return Some(Rlim::Unlimited);
    }
    unsigned(word, 10)
        .or_else(|| signed(word).map(i64::cast_unsigned))
        .map(Rlim::Value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXTURE: &[u8] = include_bytes!("../fixtures/limits");

    #[test]
    fn a_real_process() {
        let limits = Limits::parse(FIXTURE).expect("a real file");
        let stack = Limit {
            soft: Rlim::Value(8_388_608),
            hard: Rlim::Unlimited,
        };
        assert_eq!(limits.get(Resource::Stack), stack);
        assert_eq!(limits.get(Resource::Nice).hard, Rlim::Value(0)); // No unit in the last column.
        for (at, (resource, limit)) in limits.iter().enumerate() {
            assert_eq!((resource as usize, limits.get(resource)), (at, limit));
        }
    }

    #[test]
    fn refusals() {
        let error = Limits::parse(b"Limit\nMax cpu time  1 x seconds").expect_err("x is no bound");
        assert_eq!(
            error.to_string(),
            "limits:2: expected a number or unlimited, found \" x seconds\""
        );
        assert_eq!(
            Limits::parse(b"Limit\n")
                .expect_err("nothing there")
                .expected,
            "Max cpu time"
        );
    }
}
