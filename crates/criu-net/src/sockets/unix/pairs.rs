//! Sockets that are made two at a time: those of one process all at once.

use criu_image::id::VPid;
use criu_image::pb;
use criu_kind::{RestoreCx, Result, Within};
use criu_tracee::{Blob, Program};

use crate::sockets::unix::build::{Builder, NEW, as_who, run};

/// Two sockets that are made at once, and who is remembered for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    one: usize,
    other: usize,
    creds: Option<pb::UcredEntry>,
}

/// Pairs that a process makes in one go.
const AT_ONCE: usize = 250;

impl Builder<'_> {
    /// Who is remembered for a pair, and who makes it.
    fn pair_maker(
        &self,
        cx: &mut dyn RestoreCx,
        one: usize,
        other: Option<usize>,
    ) -> (Option<pb::UcredEntry>, VPid) {
        let facts = [Some(one), other].into_iter().flatten();
        let creds = facts
            .map(|index| self.sockets[index].fact.peer)
            .find(Option::is_some)
            .flatten();
        (creds, self.maker(cx, one, creds))
    }

    pub(super) fn plan_pair(&mut self, cx: &mut dyn RestoreCx, one: usize, other: usize) {
        let (creds, maker) = self.pair_maker(cx, one, Some(other));
        let pair = Pair { one, other, creds };
        self.pairs.entry(maker).or_default().push(pair);
        self.sockets[one].planned = true;
        self.sockets[other].planned = true;
    }

    /// Makes the pairs that are planned, those of a process at once.
    pub(super) fn make_pairs(&mut self, cx: &mut dyn RestoreCx) -> Result<()> {
        let mut planned: Vec<(VPid, Vec<Pair>)> = self.pairs.drain().collect();
        planned.sort_by_key(|(maker, _)| maker.get());
        for (maker, pairs) in planned {
            for pairs in pairs.chunks(AT_ONCE) {
                self.make_some(cx, maker, pairs)
                    .within(|| self.subject(pairs[0].one))?;
            }
        }
        Ok(())
    }

    fn make_some(&mut self, cx: &mut dyn RestoreCx, maker: VPid, pairs: &[Pair]) -> Result<()> {
        let mut program = Program::new();
        let mut made = Vec::with_capacity(pairs.len());
        for pair in pairs {
            made.push(self.add_pair(pair.one, pair.creds, &mut program));
        }
        let outcome = run(cx, maker, &program)?;
        for (pair, both) in pairs.iter().zip(made) {
            let made = two(outcome.bytes(both));
            for (index, fd) in [(pair.one, made.0), (pair.other, made.1)] {
                self.sockets[index].made = Some((maker, fd));
                self.sockets[index].here = Some(cx.fetch(maker, fd)?);
            }
            for index in [pair.one, pair.other] {
                self.bind_made(cx, index)?;
            }
        }
        Ok(())
    }

    /// Adds the call that makes a pair.
    fn add_pair(&self, one: usize, creds: Option<pb::UcredEntry>, program: &mut Program) -> Blob {
        let both = program.room(8);
        let kind = self.sockets[one].entry.r#type | NEW.unsigned_abs();
        as_who(creds, program, |program| {
            program.socketpair(libc::AF_UNIX, kind, 0, both);
        });
        both
    }

    /// Makes a socket with another end that is nobody's.
    pub(super) fn make_half(&mut self, cx: &mut dyn RestoreCx, one: usize) -> Result<()> {
        let (creds, maker) = self.pair_maker(cx, one, None);
        let mut program = Program::new();
        let both = self.add_pair(one, creds, &mut program);
        let made = two(run(cx, maker, &program)?.bytes(both));
        self.sockets[one].made = Some((maker, made.0));
        self.sockets[one].here = Some(cx.fetch(maker, made.0)?);
        self.sockets[one].other = Some(cx.fetch(maker, made.1)?);
        self.bind_made(cx, one)
    }
}

/// The two descriptors that socketpair(2) stores.
fn two(bytes: &[u8]) -> (i32, i32) {
    let word = |at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&bytes[at..at + 4]);
        i32::from_ne_bytes(word)
    };
    (word(0), word(4))
}
