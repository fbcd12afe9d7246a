//! The processors a thread may run on: sched_setaffinity(2). Kept in the extension.
//!
//! One that may run on all of them has no wish: it is left out, so that it may run on all processors of
//! another machine too. A wish that the new machine cannot fulfil at all is dropped.

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::{Local, Program, Site};

use crate::words::number;

/// 8192 processors: the most that Linux is built for.
const MASK: usize = 1024;

#[derive(Debug)]
pub(crate) struct Affinity;

impl Aspect for Affinity {
    fn name(&self) -> &'static str {
        "affinity"
    }

    fn ask(&self, _: &ThreadView<'_>, _: &mut Program) -> Result<Answer> {
        Ok(Box::new(|view, _, draft| {
            let mut program = Program::new();
            let mask = program.room(MASK);
            let got = program.sched_getaffinity(view.thread.tid().as_raw(), MASK, mask);
            let outcome = Local.run(&program)?;
            let bytes = outcome.bytes(mask);
            // It tells how many bytes this kernel has processors for.
            let told = usize::try_from(outcome.value(got)).unwrap_or(MASK);
            let all = 0..told.min(MASK).div_ceil(8);
            let mut words: Vec<u64> = all.map(|at| number(bytes, 8 * at, 8)).collect();
            while words.last() == Some(&0) {
                words.pop();
            }
            if !holds_all(&words, view.online) {
                draft.ext.affinity = words;
            }
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        let wish = saved.ext.map(|ext| &ext.affinity);
        let wish = wish.filter(|wish| !wish.is_empty());
        // First what holds if the wish cannot be fulfilled.
        for words in saved.now.processors.iter().chain(wish) {
            let mask: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let length = mask.len();
            let mask = program.bytes(mask);
            program.sched_setaffinity(0, length, mask);
            program.tolerate();
        }
        Ok(())
    }
}

/// Whether the mask has every processor of a list like `0-3,8`.
fn holds_all(mask: &[u64], list: &str) -> bool {
    let has = |cpu: usize| {
        mask.get(cpu / 64)
            .is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    };
    list.trim().split(',').all(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) => (first..=last).all(has),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Thread, check_dress};
    use expect_test::expect;

    #[test]
    fn all_processors_are_no_wish() {
        assert!(holds_all(&[0b11], "0-1\n"));
        assert!(holds_all(&[0b1011, 1], "0-1,3,64"));
        assert!(!holds_all(&[0b1011], "0-1,3,64"));
        assert!(!holds_all(&[1], "0-1"));
    }

    #[test]
    fn a_wish_is_set_if_it_can_be() {
        let mut thread = Thread::new();
        thread.ext.affinity = vec![2];
        check_dress(
            &Affinity,
            &thread,
            expect![[r#"
            $0 = sched_setaffinity(0, 8, <0200000000000000>) ?
        "#]],
        );
    }

    #[test]
    fn who_was_kept_to_one_processor_is_let_go() {
        let mut thread = Thread::new();
        thread.now.processors = Some(vec![3]);
        let all = expect![[r#"
            $0 = sched_setaffinity(0, 8, <0300000000000000>) ?
        "#]];
        check_dress(&Affinity, &thread, all);
        thread.ext.affinity = vec![1];
        let wish = expect![[r#"
            $0 = sched_setaffinity(0, 8, <0300000000000000>) ?
            $1 = sched_setaffinity(0, 8, <0100000000000000>) ?
        "#]];
        check_dress(&Affinity, &thread, wish);
    }
}
