//! Where a program runs.

use std::collections::HashMap;

use criu_arch::Arch;
use nix::errno::Errno;

use crate::encode::failure;
use crate::error::Result;
use crate::native::Native;
use crate::program::{Blob, Program, Ret};

/// A place that can run a [`Program`]: the tracer ([`crate::Local`]), a stopped task, or paper
/// ([`crate::Dry`]).
pub trait Site {
    /// Runs the program to its end or to its first failure that it does not tolerate.
    fn run(&mut self, program: &Program) -> Result<Outcome>;
}

/// A result as the word of the machine that it was in a register: 32-bit ones are sign-extended.
pub(crate) fn word(value: i64) -> u64 {
    value.cast_unsigned() & u64::MAX >> (64 - 8 * Native::WORD)
}

/// What a program gave.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    rets: Vec<i64>,
    blobs: HashMap<u32, Vec<u8>>,
}

impl Outcome {
    pub(crate) fn new(program: &Program) -> Self {
        Self {
            rets: Vec::with_capacity(program.calls.len()),
            blobs: HashMap::new(),
        }
    }

    /// The result of a call, or its errno where the program tolerated one.
    pub fn get(&self, ret: Ret) -> Result<i64, Errno> {
        let value = self.value(ret);
        match failure(value) {
            Some(errno) => Err(errno),
            None => Ok(value),
        }
    }

    /// The raw result of a call.
    pub fn value(&self, ret: Ret) -> i64 {
        self.rets[ret.0 as usize]
    }

    /// The result of a call that gives an address, or an id that may be as large as a word.
    pub fn word(&self, ret: Ret) -> u64 {
        word(self.value(ret))
    }

    /// The result of a call that makes a descriptor.
    pub fn fd(&self, ret: Ret) -> i32 {
        i32::try_from(self.value(ret)).expect("the kernel's descriptors are ints")
    }

    /// What the calls wrote into a blob of [`Program::room`] or [`Program::in_out`].
    pub fn bytes(&self, blob: Blob) -> &[u8] {
        self.blobs.get(&blob.0).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn known(&self, ret: Ret) -> Option<i64> {
        self.rets.get(ret.0 as usize).copied()
    }

    pub(crate) fn push(&mut self, ret: i64) {
        self.rets.push(ret);
    }

    pub(crate) fn store(&mut self, blob: u32, bytes: &[u8]) {
        self.blobs.insert(blob, bytes.to_vec());
    }

    /// A blob as it is now: after earlier chunks wrote into it.
    pub(crate) fn current<'a>(&'a self, program: &'a Program, blob: u32) -> &'a [u8] {
        self.blobs
            .get(&blob)
            .unwrap_or(&program.data[blob as usize].bytes)
    }
}
