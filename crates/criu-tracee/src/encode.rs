//! From a program to the bytes that the stub reads, and back.
//!
//! A program that does not fit is cut into chunks; results of earlier chunks become literals.

use std::collections::HashMap;

use criu_arch::{Arch, COMPAT, END, Record, RecordLayout, TOLERATE};
use nix::errno::Errno;

use crate::error::{CallError, Error, Result};
use crate::native::Native;
use crate::program::{Arg, Blob, Data, Program};
use crate::site::Outcome;

const LAYOUT: RecordLayout = RecordLayout::new(Native::WORD);
const ALIGN: usize = 16;

/// The part of a program that runs in one go.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Records first, then what comes back, then what only goes in.
    pub(crate) bytes: Vec<u8>,
    /// How many bytes come back.
    pub(crate) back: usize,
    first: usize,
    count: usize,
    /// Offset of each blob that the chunk holds.
    blobs: HashMap<u32, usize>,
}

/// A program on its way through a site.
#[derive(Debug)]
pub(crate) struct Progress<'p> {
    program: &'p Program,
    next: usize,
    outcome: Outcome,
}

impl Chunk {
    /// Where in the chunk a blob lies.
    pub(crate) fn offset_of(&self, blob: Blob) -> Option<usize> {
        self.blobs.get(&blob.0).copied()
    }
}

impl<'p> Progress<'p> {
    pub(crate) fn new(program: &'p Program) -> Self {
        Self {
            program,
            next: 0,
            outcome: Outcome::new(program),
        }
    }

    pub(crate) fn into_outcome(self) -> Outcome {
        self.outcome
    }

    /// The next chunk, to lie at `base` in at most `room` bytes; `None` when all is done.
    pub(crate) fn chunk(&self, base: u64, room: usize) -> Result<Option<Chunk>> {
        if self.next == self.program.calls.len() {
            return Ok(None);
        }
        let mut plan = Plan::default();
        let mut count = 0;
        for (index, call) in self.program.calls.iter().enumerate().skip(self.next) {
            let before = plan.clone_sizes();
            if call
                .args
                .iter()
                .any(|arg| self.waits_for_chunk(arg, self.next))
                && count > 0
            {
                break;
            }
            for arg in &call.args {
                self.reserve(&mut plan, arg);
            }
            if plan.size(count + 1) > room {
                if count == 0 {
                    return Err(Error::TooLarge {
                        need: plan.size(1),
                        room,
                    });
                }
                plan.truncate(before);
                break;
            }
            count = index - self.next + 1;
        }
        Ok(Some(self.assemble(plan, count, base)))
    }

    /// A blob that holds a result of the running chunk cannot be written yet.
    fn waits_for_chunk(&self, arg: &Arg, first: usize) -> bool {
        let Arg::Blob(blob, _) = arg else {
            return false;
        };
        let data = &self.program.data[blob.0 as usize];
        data.links.iter().any(|(_, link)| match link {
            Arg::Ret(ret) => ret.0 as usize >= first,
            Arg::Blob(..) => self.waits_for_chunk(link, first),
            Arg::Word(_) | Arg::Cell(_) => false,
        })
    }

    fn reserve(&self, plan: &mut Plan, arg: &Arg) {
        match arg {
            Arg::Word(word) => plan.word(*word),
            Arg::Cell(_) => {}
            Arg::Ret(ret) => {
                if let Some(value) = self.outcome.known(*ret) {
                    plan.word(value.cast_unsigned());
                }
            }
            Arg::Blob(blob, offset) => {
                let data = &self.program.data[blob.0 as usize];
                if plan.blob(blob.0, data) {
                    for (_, link) in &data.links {
                        if let Arg::Blob(..) = link {
                            self.reserve(plan, link);
                        }
                    }
                }
                plan.blob_word(blob.0, *offset);
            }
        }
    }

    fn assemble(&self, plan: Plan, count: usize, base: u64) -> Chunk {
        let mut at = LAYOUT.size() * (count + 1);
        let mut blobs = HashMap::new();
        for (blob, size) in &plan.out {
            blobs.insert(*blob, align(at));
            at = align(at) + size;
        }
        let back = at;
        for (blob, size) in &plan.inward {
            blobs.insert(*blob, align(at));
            at = align(at) + size;
        }
        let words_at = align(at);
        let mut bytes = vec![0; words_at + plan.words.len() * LAYOUT.word()];

        let address = |blob: u32, offset: u32| base + blobs[&blob] as u64 + u64::from(offset);
        for blob in blobs.keys() {
            let data = &self.program.data[*blob as usize];
            let content = self.outcome.current(self.program, *blob);
            let at = blobs[blob];
            bytes[at..at + content.len()].copy_from_slice(content);
            for (offset, link) in &data.links {
                let value = match link {
                    Arg::Word(word) | Arg::Cell(word) => *word,
                    Arg::Ret(ret) => self.outcome.known(*ret).unwrap_or(0).cast_unsigned(),
                    Arg::Blob(target, shift) => address(target.0, *shift),
                };
                LAYOUT.put(&mut bytes, at + *offset as usize, value);
            }
        }
        for (index, word) in plan.words.iter().enumerate() {
            let value = match word {
                PoolWord::Literal(word) => *word,
                PoolWord::Address(blob, offset) => address(*blob, *offset),
            };
            LAYOUT.put(&mut bytes, words_at + index * LAYOUT.word(), value);
        }
        let word_address =
            |word: PoolWord| base + (words_at + plan.index[&word] * LAYOUT.word()) as u64;
        for position in 0..count {
            let call = &self.program.calls[self.next + position];
            let mut args = [word_address(PoolWord::Literal(0)); 6];
            for (slot, arg) in args.iter_mut().zip(&call.args) {
                *slot = match arg {
                    Arg::Word(word) => word_address(PoolWord::Literal(*word)),
                    Arg::Cell(at) => *at,
                    Arg::Blob(blob, offset) => word_address(PoolWord::Address(blob.0, *offset)),
                    Arg::Ret(ret) => match self.outcome.known(*ret) {
                        Some(value) => word_address(PoolWord::Literal(value.cast_unsigned())),
                        None => {
                            base + (LAYOUT.size() * (ret.0 as usize - self.next) + LAYOUT.ret())
                                as u64
                        }
                    },
                };
            }
            let mut flags = if call.tolerate { TOLERATE } else { 0 };
            let mut nr = call
                .private
                .map_or(call.sysno.id().unsigned_abs() as u64, u64::from);
            if let Some(number) = call.compat {
                (flags, nr) = (flags | COMPAT, number.into());
            }
            LAYOUT.put_record(
                &mut bytes,
                LAYOUT.size() * position,
                &Record { nr, flags, args },
            );
        }
        LAYOUT.put(&mut bytes, LAYOUT.size() * count, END);
        Chunk {
            bytes,
            back,
            first: self.next,
            count,
            blobs,
        }
    }

    /// Takes in what a chunk brought back.
    pub(crate) fn absorb(&mut self, chunk: &Chunk, back: &[u8]) -> Result<()> {
        for (blob, at) in &chunk.blobs {
            let data = &self.program.data[*blob as usize];
            if data.out {
                self.outcome
                    .store(*blob, &back[*at..*at + data.bytes.len()]);
            }
        }
        for position in 0..chunk.count {
            let index = chunk.first + position;
            let ret = LAYOUT.get(back, LAYOUT.size() * position + LAYOUT.ret());
            self.outcome.push(ret);
            if let Some(errno) = failure(ret)
                && !self.program.calls[index].tolerate
            {
                let sysno = self.program.calls[index].sysno;
                return Err(CallError {
                    sysno,
                    errno,
                    index,
                    text: self.program.text(index),
                }
                .into());
            }
        }
        self.next += chunk.count;
        Ok(())
    }
}

/// The errno in a raw result.
pub(crate) fn failure(ret: i64) -> Option<Errno> {
    (-4095..0)
        .contains(&ret)
        .then(|| Errno::from_raw(i32::try_from(-ret).expect("below 4096")))
}

fn align(at: usize) -> usize {
    at.next_multiple_of(ALIGN)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum PoolWord {
    Literal(u64),
    Address(u32, u32),
}

/// What a chunk will hold besides its records.
#[derive(Debug)]
struct Plan {
    words: Vec<PoolWord>,
    index: HashMap<PoolWord, usize>,
    out: Vec<(u32, usize)>,
    inward: Vec<(u32, usize)>,
    blob_bytes: usize,
}

impl Default for Plan {
    fn default() -> Self {
        let mut plan = Self {
            words: Vec::new(),
            index: HashMap::new(),
            out: Vec::new(),
            inward: Vec::new(),
            blob_bytes: 0,
        };
        plan.word(0); // Unused arguments point at it.
        plan
    }
}

impl Plan {
    fn word(&mut self, word: u64) {
        self.pool(PoolWord::Literal(word));
    }

    fn blob_word(&mut self, blob: u32, offset: u32) {
        self.pool(PoolWord::Address(blob, offset));
    }

    fn pool(&mut self, word: PoolWord) {
        let next = self.words.len();
        if *self.index.entry(word).or_insert(next) == next {
            self.words.push(word);
        }
    }

    /// Whether the blob is new to the chunk.
    fn blob(&mut self, blob: u32, data: &Data) -> bool {
        let list = if data.out {
            &mut self.out
        } else {
            &mut self.inward
        };
        // Most programs use a blob in one call: look from the end.
        if list.iter().rev().any(|(known, _)| *known == blob) {
            return false;
        }
        list.push((blob, data.bytes.len()));
        self.blob_bytes += align(data.bytes.len()) + ALIGN;
        true
    }

    fn size(&self, calls: usize) -> usize {
        LAYOUT.size() * (calls + 1) + self.blob_bytes + self.words.len() * LAYOUT.word() + 2 * ALIGN
    }

    fn clone_sizes(&self) -> [usize; 4] {
        [
            self.words.len(),
            self.out.len(),
            self.inward.len(),
            self.blob_bytes,
        ]
    }

    fn truncate(&mut self, [words, out, inward, blob_bytes]: [usize; 4]) {
        for word in self.words.drain(words..) {
            self.index.remove(&word);
        }
        self.out.truncate(out);
        self.inward.truncate(inward);
        self.blob_bytes = blob_bytes;
    }
}
