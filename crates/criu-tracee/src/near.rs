//! One processor for a tracer and its only task.

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// This thread, and whom it clones, keep to the processor it is on, until this is dropped.
///
/// A tracer and its task take turns. To wake a task on an idle processor takes the interrupt of that one, and in a
/// virtual machine a way through the host; to give one's own away takes two microseconds.
#[derive(Debug)]
pub struct Near {
    before: CpuSet,
}

impl Near {
    /// `None` where there is no choice, or none that is known.
    pub fn keep() -> Option<Self> {
        let before = sched_getaffinity(Pid::from_raw(0)).ok()?;
        let mut one = CpuSet::new();
        one.set(sched_getcpu().ok()?).ok()?;
        if one == before {
            return None;
        }
        sched_setaffinity(Pid::from_raw(0), &one).ok()?;
        Some(Self { before })
    }

    /// Where this thread could run before, as words of 64 processors.
    pub fn before(&self) -> Vec<u64> {
        let mut words = vec![0; CpuSet::count().div_ceil(64)];
        for cpu in 0..CpuSet::count() {
            if self.before.is_set(cpu) == Ok(true) {
                words[cpu / 64] |= 1 << (cpu % 64);
            }
        }
        while words.last() == Some(&0) {
            words.pop();
        }
        words
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        // It was set before; were all of it gone since, the kernel would have moved us there itself.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own, as it changes what others inherit.
    #[test]
    fn it_is_given_back() {
        let check = || {
            let mask = || sched_getaffinity(Pid::from_raw(0)).expect("known");
            let before = mask();
            let Some(near) = Near::keep() else {
                let cpus = (0..CpuSet::count()).filter(|cpu| before.is_set(*cpu) == Ok(true));
                assert_eq!(cpus.count(), 1, "there was a choice");
                return;
            };
            let count = |set: &CpuSet| {
                let cpus = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true));
                cpus.count()
            };
            assert_eq!(count(&mask()), 1);
            let told: u32 = near.before().iter().map(|word| word.count_ones()).sum();
            assert_eq!(told as usize, count(&before));
            drop(near);
            assert_eq!(mask(), before);
        };
        std::thread::spawn(check).join().expect("the thread ends");
    }
}
