//! The stack for signal handlers: sigaltstack(2).
//!
//! That the thread stood on it is no part of it: the stack pointer says so.

use criu_image::pb;
use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::arch::{Arch, StackLayout};
use criu_tracee::{Native, Program};

use crate::entries;
use crate::words::{WORD, int, put, word};

const LAYOUT: StackLayout = Native::STACK;
const SS_ONSTACK: u32 = 1;

#[derive(Debug)]
pub(crate) struct Altstack;

impl Aspect for Altstack {
    fn name(&self) -> &'static str {
        "altstack"
    }

    fn ask(&self, _: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        let stack = program.room(LAYOUT.bytes);
        program.sigaltstack(0, stack);
        Ok(Box::new(move |_, outcome, draft| {
            let bytes = outcome.bytes(stack);
            entries::thread_of(draft).sas = Some(pb::ThreadSasEntry {
                ss_sp: word(bytes, LAYOUT.sp),
                ss_size: word(bytes, LAYOUT.size),
                ss_flags: int(bytes, LAYOUT.flags) & !SS_ONSTACK,
            });
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        if let Some(sas) = &entries::thread(saved)?.sas {
            let mut bytes = vec![0; LAYOUT.bytes];
            put(&mut bytes, LAYOUT.sp, WORD, sas.ss_sp);
            put(&mut bytes, LAYOUT.size, WORD, sas.ss_size);
            put(
                &mut bytes,
                LAYOUT.flags,
                4,
                (sas.ss_flags & !SS_ONSTACK).into(),
            );
            let stack = program.bytes(bytes);
            program.sigaltstack(stack, 0);
        }
        Ok(())
    }
}
