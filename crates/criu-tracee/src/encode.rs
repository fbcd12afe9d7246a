//! From a program to the bytes that the stub reads, and back.
//!
//! A program that does not fit is cut into chunks; results of earlier chunks become literals.

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
    /// The blobs that the chunk holds, and where in it.
    blobs: Vec<(u32, usize)>,
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
        let found = self.blobs.iter().find(|(known, _)| *known == blob.0);
        found.map(|(_, at)| *at)
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
        let mut plan = Plan::new(self.program.data.len());
        for call in &self.program.calls[self.next..] {
            let count = plan.calls.len();
            let waits = |arg: &Arg| self.waits_for_chunk(arg, self.next);
            if count > 0 && call.args.iter().any(waits) {
                break;
            }
            let before = plan.sizes();
            let mut slots = [Slot::Word(Plan::ZERO); 6];
            for (slot, arg) in slots.iter_mut().zip(&call.args) {
                *slot = self.reserve(&mut plan, arg);
            }
            plan.calls.push(slots);
            if plan.size() > room {
                if count == 0 {
                    return Err(Error::TooLarge {
                        need: plan.size(),
                        room,
                    });
                }
                plan.truncate(before);
                break;
            }
        }
        Ok(Some(self.assemble(&plan, base)))
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

    /// Makes room for what an argument needs, and says where its word is.
    fn reserve(&self, plan: &mut Plan, arg: &Arg) -> Slot {
        match arg {
            Arg::Word(word) => plan.word(PoolWord::Literal(*word)),
            Arg::Cell(at) => Slot::Cell(*at),
            Arg::Ret(ret) => match self.outcome.known(*ret) {
                Some(value) => plan.word(PoolWord::Literal(value.cast_unsigned())),
                None => Slot::Ret(ret.0 as usize - self.next),
            },
            Arg::Blob(blob, offset) => {
                self.hold(plan, *blob);
                plan.word(PoolWord::Address(blob.0, *offset))
            }
        }
    }

    /// Makes room for a blob and those it points at.
    fn hold(&self, plan: &mut Plan, blob: Blob) {
        let data = &self.program.data[blob.0 as usize];
        if plan.blob(blob.0, data) {
            for (_, link) in &data.links {
                if let Arg::Blob(target, _) = link {
                    self.hold(plan, *target);
                }
            }
        }
    }

    fn assemble(&self, plan: &Plan, base: u64) -> Chunk {
        let count = plan.calls.len();
        let mut at = LAYOUT.size() * (count + 1);
        let mut blobs = Vec::with_capacity(plan.out.len() + plan.inward.len());
        let mut places = vec![0; self.program.data.len()];
        let mut back = at;
        for (list, comes_back) in [(&plan.out, true), (&plan.inward, false)] {
            for (blob, size) in list {
                places[*blob as usize] = align(at);
                blobs.push((*blob, align(at)));
                at = align(at) + size;
            }
            if comes_back {
                back = at;
            }
        }
        let words_at = align(at);
        let mut bytes = vec![0; words_at + plan.words.len() * LAYOUT.word()];

        let address =
            |blob: u32, offset: u32| base + places[blob as usize] as u64 + u64::from(offset);
        for (blob, at) in &blobs {
            let data = &self.program.data[*blob as usize];
            let content = self.outcome.current(self.program, *blob);
            bytes[*at..at + content.len()].copy_from_slice(content);
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
        let calls = &self.program.calls[self.next..];
        for (position, (call, slots)) in calls.iter().zip(&plan.calls).enumerate() {
            let args = slots.map(|slot| match slot {
                Slot::Word(index) => base + (words_at + index * LAYOUT.word()) as u64,
                Slot::Cell(at) => at,
                Slot::Ret(call) => base + (LAYOUT.size() * call + LAYOUT.ret()) as u64,
            });
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PoolWord {
    Literal(u64),
    Address(u32, u32),
}

impl PoolWord {
    /// Where it is looked for: words that follow each other are looked for in different places.
    fn place(self) -> usize {
        let (high, low) = match self {
            Self::Literal(word) => (word >> 12, word),
            Self::Address(blob, offset) => (u64::from(blob), u64::from(offset)),
        };
        usize::try_from((high ^ low) % RECENT as u64).unwrap_or(0)
    }
}

/// Where a record finds the word of an argument.
#[derive(Clone, Copy, Debug)]
enum Slot {
    /// Number of a word of the chunk.
    Word(usize),
    /// An address that the program names itself.
    Cell(u64),
    /// The result of this call of the chunk.
    Ret(usize),
}

/// How many words are remembered, to be used again: programs repeat themselves, but soon or never.
const RECENT: usize = 256;

/// What a chunk will hold.
#[derive(Debug)]
struct Plan {
    calls: Vec<[Slot; 6]>,
    words: Vec<PoolWord>,
    /// Numbers of words, by their place.
    recent: [u32; RECENT],
    out: Vec<(u32, usize)>,
    inward: Vec<(u32, usize)>,
    /// Which blobs are among those.
    held: Vec<bool>,
    blob_bytes: usize,
}

impl Plan {
    /// The number of the word that unused arguments point at.
    const ZERO: usize = 0;

    fn new(blobs: usize) -> Self {
        Self {
            calls: Vec::new(),
            words: vec![PoolWord::Literal(0)],
            recent: [0; RECENT],
            out: Vec::new(),
            inward: Vec::new(),
            held: vec![false; blobs],
            blob_bytes: 0,
        }
    }

    fn word(&mut self, word: PoolWord) -> Slot {
        let recent = &mut self.recent[word.place()];
        if self.words.get(*recent as usize) != Some(&word) {
            *recent = u32::try_from(self.words.len()).expect("a chunk fits its room");
            self.words.push(word);
        }
        Slot::Word(*recent as usize)
    }

    /// Whether the blob is new to the chunk.
    fn blob(&mut self, blob: u32, data: &Data) -> bool {
        if std::mem::replace(&mut self.held[blob as usize], true) {
            return false;
        }
        let list = if data.out {
            &mut self.out
        } else {
            &mut self.inward
        };
        list.push((blob, data.bytes.len()));
        self.blob_bytes += align(data.bytes.len()) + ALIGN;
        true
    }

    fn size(&self) -> usize {
        LAYOUT.size() * (self.calls.len() + 1)
            + self.blob_bytes
            + self.words.len() * LAYOUT.word()
            + 2 * ALIGN
    }

    fn sizes(&self) -> [usize; 5] {
        [
            self.calls.len(),
            self.words.len(),
            self.out.len(),
            self.inward.len(),
            self.blob_bytes,
        ]
    }

    fn truncate(&mut self, [calls, words, out, inward, blob_bytes]: [usize; 5]) {
        self.calls.truncate(calls);
        self.words.truncate(words);
        self.out.truncate(out);
        self.inward.truncate(inward);
        self.blob_bytes = blob_bytes;
    }
}
