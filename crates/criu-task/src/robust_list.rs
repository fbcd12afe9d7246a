//! The futexes to release when the thread dies: set_robust_list(2).
//!
//! A 32-bit thread of a 64-bit kernel has another list for that, asked and set by calls of 32-bit code;
//! the image has no field for it, so it is in the extension.

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::arch::{Arch, Regs};
use criu_tracee::{Local, Native, Program, Site, Sysno};

use crate::entries;
use crate::words::{WORD, int, word};

#[derive(Debug)]
pub(crate) struct RobustList;

impl Aspect for RobustList {
    fn name(&self) -> &'static str {
        "robust_list"
    }

    fn ask(&self, view: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        let compat = Native::COMPAT.filter(|_| view.thread.natural().is_compat());
        let compat = compat.map(|abi| {
            let (head, length) = (program.room(4), program.room(4));
            program.call(
                Sysno::get_robust_list,
                [0.into(), head.into(), length.into()],
            );
            program.compat(abi.get_robust_list);
            head
        });
        Ok(Box::new(move |view, outcome, draft| {
            let list = compat.map(|head| int(outcome.bytes(head), 0));
            draft.ext.compat_robust_list = list.filter(|list| *list != 0);
            let mut program = Program::new();
            let (head, length) = (program.room(WORD), program.room(WORD));
            let tid = view.thread.tid().as_raw();
            program.call(
                Sysno::get_robust_list,
                [tid.into(), head.into(), length.into()],
            );
            let outcome = Local.run(&program)?;
            let thread = entries::thread_of(draft);
            thread.futex_rla = word(outcome.bytes(head), 0);
            // The length is that of our words: CRIU would offer it to the kernel for a 32-bit thread.
            thread.futex_rla_len = match thread.futex_rla {
                0 => 0,
                _ => u32::try_from(word(outcome.bytes(length), 0)).unwrap_or(0),
            };
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        let thread = entries::thread(saved)?;
        if thread.futex_rla != 0 {
            program.set_robust_list(thread.futex_rla, thread.futex_rla_len);
        }
        let list = saved.ext.and_then(|ext| ext.compat_robust_list);
        if let (Some(list), Some(abi)) = (list, Native::COMPAT) {
            /// `struct compat_robust_list_head`.
            const HEAD: u32 = 12;
            program.set_robust_list(list, HEAD);
            program.compat(abi.set_robust_list);
        }
        Ok(())
    }
}
