//! A batch of syscalls as data.
//!
//! A [`Program`] says what is to be done; a [`crate::Site`] is where. Results feed later calls as
//! [`Ret`]s, memory travels as [`Blob`]s. It prints itself as an strace would.

use std::fmt;

use criu_arch::Arch;
use syscalls::Sysno;

use crate::native::Native;

/// The result of an earlier call of the same program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ret(pub(crate) u32);

/// Bytes that travel with the program, into the site and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Blob(pub(crate) u32);

/// One argument of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A number.
    Word(u64),
    /// The result of an earlier call.
    Ret(Ret),
    /// The address of a blob, plus an offset.
    Blob(Blob, u32),
    /// The word that lies at this address of the site when the call is made.
    Cell(u64),
}

/// One call.
#[derive(Clone, Debug)]
pub struct Call {
    /// Which.
    pub sysno: Sysno,
    /// Its arguments; the rest are zero.
    pub args: Vec<Arg>,
    /// Whether a failure is an answer rather than an end.
    pub tolerate: bool,
    /// Its number in the table of 32-bit code, if it is to be made as such code makes it.
    pub compat: Option<u32>,
    /// Its number, if this machine alone has it: `sysno` has no name for it then.
    pub private: Option<u32>,
}

#[derive(Clone, Debug)]
pub(crate) struct Data {
    pub(crate) bytes: Vec<u8>,
    /// Words in the bytes that hold an address or a result: offset and what.
    pub(crate) links: Vec<(u32, Arg)>,
    /// Whether the caller wants it back.
    pub(crate) out: bool,
}

/// A list of calls and the memory they work on.
#[derive(Clone, Debug, Default)]
pub struct Program {
    pub(crate) calls: Vec<Call>,
    pub(crate) data: Vec<Data>,
}

impl Program {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// The number of calls.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Adds a call. Prefer the typed constructors of [`crate::calls`]. A machine that has the call in a
    /// form with wider arguments gets that.
    pub fn call<const N: usize>(&mut self, sysno: Sysno, args: [Arg; N]) -> Ret {
        const { assert!(N <= 6) };
        self.push(sysno, args.to_vec())
    }

    /// Adds a call that only some machines have, by its number there.
    pub fn call_numbered<const N: usize>(&mut self, number: u32, args: [Arg; N]) -> Ret {
        if let Some(sysno) = Sysno::new(number as usize) {
            return self.call(sysno, args);
        }
        let ret = self.call(Sysno::restart_syscall, args);
        if let Some(call) = self.calls.last_mut() {
            call.private = Some(number);
        }
        ret
    }

    /// Adds a call whose last arguments are of 64 bits each, which machines pass differently.
    pub(crate) fn call_wide(&mut self, sysno: Sysno, args: &[Arg], wide: &[u64]) -> Ret {
        let mut args = args.to_vec();
        for value in wide {
            let split = Native::CALLS.wide.split(args.len(), *value);
            args.extend(split.into_iter().map(Arg::Word));
        }
        self.push(sysno, args)
    }

    /// Adds a call with these arguments as they are.
    pub(crate) fn push(&mut self, sysno: Sysno, args: Vec<Arg>) -> Ret {
        self.calls.push(Call {
            sysno: widest(sysno),
            args,
            tolerate: false,
            compat: None,
            private: None,
        });
        Ret(count(self.calls.len() - 1))
    }

    /// The result of the call at `index`.
    ///
    /// # Panics
    ///
    /// If there is no such call yet.
    pub fn ret(&self, index: usize) -> Ret {
        assert!(
            index < self.calls.len(),
            "a result of a call of this program"
        );
        Ret(count(index))
    }

    /// Makes a failure of the last call an answer: the program goes on.
    pub fn tolerate(&mut self) {
        if let Some(call) = self.calls.last_mut() {
            call.tolerate = true;
        }
    }

    /// Makes the last call one of 32-bit code, with its number there. Only for a task of such code: no
    /// other has its room where that can reach.
    pub fn compat(&mut self, number: u32) {
        if let Some(call) = self.calls.last_mut() {
            call.compat = Some(number);
        }
    }

    /// Bytes for a call to read.
    pub fn bytes(&mut self, bytes: impl Into<Vec<u8>>) -> Blob {
        self.blob(bytes.into(), false)
    }

    /// A string with its terminating NUL.
    pub fn cstr(&mut self, text: impl AsRef<[u8]>) -> Blob {
        let mut bytes = text.as_ref().to_vec();
        bytes.push(0);
        self.blob(bytes, false)
    }

    /// Zeroed room for a call to write into; read it with [`crate::Outcome::bytes`].
    pub fn room(&mut self, length: usize) -> Blob {
        self.blob(vec![0; length], true)
    }

    /// Bytes that a call reads and writes.
    pub fn in_out(&mut self, bytes: impl Into<Vec<u8>>) -> Blob {
        self.blob(bytes.into(), true)
    }

    /// Stores an argument into the word at `offset` of a blob when the program runs: an address
    /// inside a structure, or a result of an earlier call that is still to come.
    pub fn link(&mut self, blob: Blob, offset: usize, arg: impl Into<Arg>) {
        self.data[blob.0 as usize]
            .links
            .push((count(offset), arg.into()));
    }

    /// Appends the calls of `other`; `Ret`s and `Blob`s of it must be shifted with the return value.
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    fn blob(&mut self, bytes: Vec<u8>, out: bool) -> Blob {
        self.data.push(Data {
            bytes,
            links: Vec::new(),
            out,
        });
        Blob(count(self.data.len() - 1))
    }

    /// One call as text.
    pub(crate) fn text(&self, index: usize) -> String {
        let call = &self.calls[index];
        let args: Vec<String> = call.args.iter().map(|arg| self.arg_text(arg)).collect();
        let args = args.join(", ");
        match call {
            Call {
                private: Some(number),
                ..
            } => format!("call_{number:#x}({args})"),
            Call {
                compat: Some(_),
                sysno,
                ..
            } => format!("compat_{sysno}({args})"),
            Call { sysno, .. } => format!("{sysno}({args})"),
        }
    }

    fn arg_text(&self, arg: &Arg) -> String {
        match arg {
            Arg::Word(word) if word.cast_signed() < 0 && word.cast_signed() > -4096 => {
                word.cast_signed().to_string()
            }
            Arg::Word(word) if *word < 4096 => word.to_string(),
            Arg::Word(word) => format!("{word:#x}"),
            Arg::Ret(ret) => format!("${}", ret.0),
            Arg::Cell(at) => format!("*{at:#x}"),
            Arg::Blob(blob, offset) => {
                let data = &self.data[blob.0 as usize];
                let text = blob_text(data);
                if *offset == 0 {
                    text
                } else {
                    format!("{text}+{offset}")
                }
            }
        }
    }
}

fn blob_text(data: &Data) -> String {
    if data.out && data.bytes.iter().all(|byte| *byte == 0) {
        return format!("[{}]", data.bytes.len());
    }
    match data.bytes.split_last() {
        Some((0, text)) if !text.is_empty() && text.iter().all(|b| (0x20..0x7f).contains(b)) => {
            format!("{:?}", String::from_utf8_lossy(text))
        }
        _ => {
            let shown: String = data
                .bytes
                .iter()
                .take(64)
                .map(|byte| format!("{byte:02x}"))
                .collect();
            let more = if data.bytes.len() > 64 { "…" } else { "" };
            format!("<{shown}{more}>")
        }
    }
}

/// The call that takes the place of one whose arguments are too narrow.
pub(crate) fn widest(sysno: Sysno) -> Sysno {
    let number = sysno.id().unsigned_abs();
    let mut all = Native::CALLS.wider.iter();
    let wider = all.find(|(narrow, _)| *narrow as usize == number as usize);
    wider.map_or(sysno, |(_, wide)| numbered(*wide))
}

/// A call by its number on this machine.
pub(crate) fn numbered(number: u32) -> Sysno {
    Sysno::new(number as usize).expect("numbers in the contract are those of calls")
}

/// Programs are far smaller than 2^32 in every count.
fn count(value: usize) -> u32 {
    u32::try_from(value).expect("a program holds fewer than 2^32 calls, blobs and bytes per blob")
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, call) in self.calls.iter().enumerate() {
            let tolerated = if call.tolerate { " ?" } else { "" };
            writeln!(f, "${index} = {}{tolerated}", self.text(index))?;
        }
        Ok(())
    }
}

impl From<Ret> for Arg {
    fn from(ret: Ret) -> Self {
        Self::Ret(ret)
    }
}

impl From<Blob> for Arg {
    fn from(blob: Blob) -> Self {
        Self::Blob(blob, 0)
    }
}

macro_rules! words {
    ($($signed:ty as $wide:ty),*) => { $(
        impl From<$signed> for Arg {
            fn from(value: $signed) -> Self { Self::Word(<$wide>::from(value) as u64) }
        }
    )* };
}
words!(
    i32 as i64, u32 as u64, u16 as u64, u8 as u64, u64 as u64, i64 as i64
);

impl From<usize> for Arg {
    fn from(value: usize) -> Self {
        Self::Word(value as u64)
    }
}
