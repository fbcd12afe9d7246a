//! The seccomp filters of the whole tree, each once.
//!
//! A thread names its *oldest* filter, and `prev` leads from each to the next newer one: the field means
//! "written before this", and CRIU writes the newest first. Equal chains share their entries. If all
//! threads of a process have the same chain, it is the leader's, with `SECCOMP_FILTER_FLAG_TSYNC`, as CRIU
//! writes it: filters that are installed thread by thread are alike but not the same, and a later TSYNC
//! of the program itself would fail on them.

use std::collections::HashMap;

use criu_image::pb;
use criu_kind::{Draft, Result, ThreadView};
use criu_proc::Seccomp;

use crate::entries;
use crate::seccomp::FLAG_TSYNC;

/// BPF code and flags.
type Filter = (Vec<u8>, u32);

/// Collects filters.
#[derive(Debug, Default)]
pub struct SeccompTable {
    filters: Vec<pb::SeccompFilter>,
    index: HashMap<pb::SeccompFilter, u32>,
}

impl SeccompTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the threads of a process, leader first, and notes in each draft what it has.
    pub fn process(&mut self, threads: &mut [(ThreadView<'_>, &mut Draft)]) -> Result<()> {
        let mut chains = Vec::new();
        for (view, _) in threads.iter() {
            chains.push(match view.status.seccomp {
                Some(Seccomp::Filter) => Some(chain_of(view)?),
                _ => None,
            });
        }
        let synced = chains[0].is_some() && chains.iter().all(|chain| *chain == chains[0]);
        for (position, ((view, draft), chain)) in threads.iter_mut().zip(chains).enumerate() {
            let thread = entries::thread_of(draft);
            match (view.status.seccomp, chain) {
                (_, Some(_)) if synced && position > 0 => {}
                (_, Some(chain)) => {
                    thread.set_seccomp_mode(pb::SeccompMode::Filter);
                    thread.seccomp_filter = self.chain(chain, synced);
                }
                (Some(Seccomp::Strict), None) => thread.set_seccomp_mode(pb::SeccompMode::Strict),
                (_, None) => {}
            }
        }
        Ok(())
    }

    /// The number of the oldest filter of a chain, given oldest first.
    fn chain(&mut self, chain: Vec<Filter>, synced: bool) -> Option<u32> {
        let mut prev = None;
        for (filter, flags) in chain.into_iter().rev() {
            let flags = flags | if synced { FLAG_TSYNC } else { 0 };
            let entry = pb::SeccompFilter {
                filter,
                prev,
                flags: Some(flags),
            };
            let fresh = u32::try_from(self.filters.len()).ok()?;
            let number = *self.index.entry(entry.clone()).or_insert(fresh);
            if number == fresh {
                self.filters.push(entry);
            }
            prev = Some(number);
        }
        prev
    }

    /// The content of `seccomp.img`.
    pub fn into_entry(self) -> pb::SeccompEntry {
        pb::SeccompEntry {
            seccomp_filters: self.filters,
        }
    }
}

fn chain_of(view: &ThreadView<'_>) -> Result<Vec<Filter>> {
    let mut chain = Vec::new();
    let stopped = view.thread.stopped()?;
    while let Some((code, flags)) = stopped.seccomp_filter(chain.len() as u64)? {
        chain.push((code, u32::try_from(flags).unwrap_or(u32::MAX)));
    }
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_chains_are_stored_once() {
        let mut table = SeccompTable::new();
        let (old, new) = ((vec![1; 8], 2), (vec![2; 8], 0));
        assert_eq!(table.chain(vec![old.clone(), new.clone()], false), Some(1));
        assert_eq!(table.chain(vec![old.clone(), new.clone()], false), Some(1));
        assert_eq!(table.chain(vec![new.clone()], false), Some(0));
        // The same code below another chain is another filter, and so is one for all threads.
        assert_eq!(table.chain(vec![old.clone()], false), Some(2));
        assert_eq!(table.chain(vec![old, new], true), Some(4));
        let filters = table.into_entry().seccomp_filters;
        let links: Vec<_> = filters.iter().map(|f| (f.prev, f.flags)).collect();
        let (log, both) = (Some(2), Some(3));
        assert_eq!(
            links,
            [
                (None, Some(0)),
                (Some(0), log),
                (None, log),
                (None, Some(1)),
                (Some(3), both),
            ]
        );
    }
}
