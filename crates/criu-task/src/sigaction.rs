//! What a process does with each signal: sigaction(2).
//!
//! An image has an entry for every signal but SIGKILL and SIGSTOP, in order, without numbers.
//! The kernel notes in which mode the call is made, and delivers the signal so: a 32-bit handler is set
//! by a call of 32-bit code.

use criu_image::pb;
use criu_kind::{Answer, Aspect, Error, Result, Saved, ThreadView};
use criu_tracee::arch::{Arch, Regs, SigactionLayout};
use criu_tracee::{Native, Program};

use crate::entries;
use crate::words::{WORD, number, put, sigset, to_sigset, word};

const LAYOUT: SigactionLayout = Native::SIGACTION;
const SIGKILL: usize = 9;
/// It differs by architecture only on MIPS, where signal sets are larger too.
const SIGSTOP: usize = if Native::SIGSET == 8 { 19 } else { 23 };

/// Every signal that can be asked of.
fn signals() -> impl Iterator<Item = usize> {
    (1..=8 * Native::SIGSET).filter(|signal| ![SIGKILL, SIGSTOP].contains(signal))
}

#[derive(Debug)]
pub(crate) struct Sigaction;

impl Aspect for Sigaction {
    fn name(&self) -> &'static str {
        "sigaction"
    }

    fn ask(&self, view: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        if !view.leader {
            return Ok(Box::new(|_, _, _| Ok(())));
        }
        let mut actions = Vec::new();
        for signal in signals() {
            let action = program.room(LAYOUT.size);
            program.rt_sigaction(signal, 0, action, Native::SIGSET);
            actions.push(action);
        }
        Ok(Box::new(move |view, outcome, draft| {
            let compat = view.thread.natural().is_compat();
            let entry = |action| decode(outcome.bytes(action), compat);
            entries::task_of(draft).sigactions = actions.into_iter().map(entry).collect();
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        if !saved.leader {
            return Ok(());
        }
        let actions = &entries::task(saved)?.sigactions;
        if !actions.is_empty() && actions.len() != signals().count() {
            return Err(Error::corrupt(
                "core",
                format!("{} sigactions", actions.len()),
            ));
        }
        for (signal, action) in signals().zip(actions) {
            let compat =
                Native::COMPAT.filter(|_| action.compat_sigaction() && action.sigaction > 1);
            let (layout, word) = compat.map_or((LAYOUT, WORD), |abi| (abi.sigaction, 4));
            let bytes = program.bytes(encode(action, layout, word));
            program.rt_sigaction(signal, bytes, 0, Native::SIGSET);
            if let Some(abi) = compat {
                program.compat(abi.rt_sigaction);
            }
        }
        Ok(())
    }
}

fn decode(bytes: &[u8], compat: bool) -> pb::SaEntry {
    let (mask, mask_extended) = sigset(&bytes[LAYOUT.mask..LAYOUT.mask + Native::SIGSET]);
    pb::SaEntry {
        sigaction: word(bytes, LAYOUT.handler),
        flags: number(bytes, LAYOUT.flags.0, LAYOUT.flags.1),
        restorer: LAYOUT.restorer.map_or(0, |at| word(bytes, at)),
        mask,
        compat_sigaction: Some(compat),
        mask_extended,
    }
}

fn encode(entry: &pb::SaEntry, layout: SigactionLayout, word: usize) -> Vec<u8> {
    let mut bytes = vec![0; layout.size];
    put(&mut bytes, layout.handler, word, entry.sigaction);
    put(&mut bytes, layout.flags.0, layout.flags.1, entry.flags);
    if let Some(at) = layout.restorer {
        put(&mut bytes, at, word, entry.restorer);
    }
    let mask = to_sigset(entry.mask, entry.mask_extended);
    bytes[layout.mask..layout.mask + mask.len()].copy_from_slice(&mask);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Thread, check_dress};
    use expect_test::expect;

    #[test]
    fn a_32_bit_handler_is_set_as_32_bit_code_sets_it() {
        let mut thread = Thread::new();
        let mut actions = vec![pb::SaEntry::default(); signals().count()];
        let mut action = pb::SaEntry {
            sigaction: 0x0804_9000,
            flags: 0x0400_0000,
            restorer: 0x0804_9100,
            ..pb::SaEntry::default()
        };
        action.compat_sigaction = Some(true);
        actions[0] = action;
        thread.task().sigactions = actions;
        let mut program = Program::new();
        Sigaction
            .dress(&thread.saved(), &mut program)
            .expect("a whole table");
        let listing = program.to_string();
        let first = listing.lines().next().expect("a call");
        let wanted =
            "$0 = compat_rt_sigaction(1, <0090040800000004009104080000000000000000>, 0, 8)";
        assert_eq!(first, wanted);
        thread.task().sigactions.clear();
        check_dress(&Sigaction, &thread, expect![[""]]);
    }
}
