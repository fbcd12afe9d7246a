//! What a process does with each signal: sigaction(2).
//!
//! An image has an entry for every signal but SIGKILL and SIGSTOP, in order, without numbers.
//! Not restored: handlers of 32-bit tasks. The kernel notes in which mode the call is made, and the
//! calls of a program are 64-bit.

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
            if action.compat_sigaction() && action.sigaction > 1 {
                let fact = format!("a 32-bit handler of signal {signal}");
                return Err(Error::unsupported(fact, "restore this task with CRIU"));
            }
            let bytes = program.bytes(encode(action));
            program.rt_sigaction(signal, bytes, 0, Native::SIGSET);
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

fn encode(entry: &pb::SaEntry) -> Vec<u8> {
    let mut bytes = vec![0; LAYOUT.size];
    put(&mut bytes, LAYOUT.handler, WORD, entry.sigaction);
    put(&mut bytes, LAYOUT.flags.0, LAYOUT.flags.1, entry.flags);
    if let Some(at) = LAYOUT.restorer {
        put(&mut bytes, at, WORD, entry.restorer);
    }
    let mask = to_sigset(entry.mask, entry.mask_extended);
    bytes[LAYOUT.mask..LAYOUT.mask + mask.len()].copy_from_slice(&mask);
    bytes
}
