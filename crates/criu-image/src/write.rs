//! Entries into an image.
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};

use prost::{Message, Name};

use crate::desc::{COMMON_MAGIC, Desc, Prefix, SERVICE_MAGIC};
use crate::error::{Error, Result, Why};
use crate::layout::{Cursor, Payload};

/// Appends entries to an image, through a buffer.
///
/// It writes only what [`ImageReader`](crate::ImageReader) reads: the right message at the right
/// place, followed by as many bytes as it announces. Nothing is sure to be in the file before
/// [`finish`](Self::finish).
#[derive(Debug)]
#[must_use]
pub struct ImageWriter<W: Write = File> {
    desc: &'static Desc,
    name: String,
    out: BufWriter<W>,
    cursor: Cursor,
    scratch: Vec<u8>,
}

impl<W: Write> ImageWriter<W> {
    /// Starts an image of this kind: writes its magic numbers.
    pub fn new(desc: &'static Desc, name: impl Into<String>, out: W) -> Result<Self> {
        let mut writer = Self {
            desc,
            name: name.into(),
            out: BufWriter::with_capacity(64 << 10, out),
            cursor: Cursor::new(desc.layout),
            scratch: Vec::new(),
        };
        let before = match desc.prefix {
            Prefix::None => return Ok(writer),
            Prefix::Own => None,
            Prefix::Common => Some(COMMON_MAGIC),
            Prefix::Service => Some(SERVICE_MAGIC),
        };
        for magic in before.into_iter().chain([desc.magic]) {
            writer.put(&magic.to_le_bytes())?;
        }
        Ok(writer)
    }

    /// The file name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Appends a message that nothing follows.
    pub fn write<M: Message + Name>(&mut self, message: &M) -> Result<()> {
        self.write_with_extra(message, &[])
    }

    /// Appends a message and the bytes that belong to it. Padding is added here.
    pub fn write_with_extra<M: Message + Name>(&mut self, message: &M, extra: &[u8]) -> Result<()> {
        self.write_from(message, extra.len() as u64, &mut { extra })
    }

    /// Appends a message and `len` bytes that are read from `source`.
    pub fn write_from<M: Message + Name>(
        &mut self,
        message: &M,
        len: u64,
        source: &mut dyn Read,
    ) -> Result<()> {
        let padding = self.message(message, len)?;
        let copied = io::copy(&mut source.take(len), &mut self.out)
            .map_err(|source| Error::io(&self.name, "write", source))?;
        if copied != len {
            let why = Why::Payload {
                announced: len,
                given: copied,
            };
            return Err(Error::refused(&self.name, why));
        }
        for _ in 0..padding {
            self.put(&[0])?;
        }
        Ok(())
    }

    /// Appends bytes as they are: an image that is not made of entries.
    pub fn write_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.put(bytes)
    }

    /// Empties the buffer, and gives back what was written to.
    pub fn finish(self) -> Result<W> {
        let Self { name, out, .. } = self;
        out.into_inner()
            .map_err(|error| Error::io(name, "write", error.into_error()))
    }

    /// Writes the framed message, and says how much padding follows `len` bytes of payload.
    fn message<M: Message + Name>(&mut self, message: &M, len: u64) -> Result<u64> {
        let refused = |why| Error::refused(&self.name, why);
        let expected = self
            .desc
            .messages
            .get(self.cursor.index())
            .ok_or_else(|| refused(Why::Raw))?;
        if expected.name != M::NAME {
            return Err(refused(Why::OtherMessage {
                expected: expected.name,
                asked: M::NAME,
            }));
        }
        self.scratch.clear();
        self.scratch.extend([0; 4]);
        self.scratch.extend(message.encode_to_vec());
        let (head, raw) = self.scratch.split_at_mut(4);
        let size = u32::try_from(raw.len()).map_err(|_| refused(Why::TooLong(raw.len())))?;
        head.copy_from_slice(&size.to_le_bytes());
        let padding = match self.cursor.clone().pass(raw) {
            Ok(Payload::Rest) => 0,
            Ok(Payload::Bytes(announced, unit)) => match announced.checked_sub(len) {
                Some(missing) if missing < unit => missing,
                _ => {
                    return Err(refused(Why::Payload {
                        announced,
                        given: len,
                    }));
                }
            },
            Err(source) => {
                return Err(refused(Why::Message {
                    message: M::NAME,
                    source,
                }));
            }
        };
        // Only now, so that a refused entry leaves no trace.
        self.cursor.pass(raw).map_err(|source| {
            Error::refused(
                &self.name,
                Why::Message {
                    message: M::NAME,
                    source,
                },
            )
        })?;
        self.out
            .write_all(&self.scratch)
            .map_err(|source| Error::io(&self.name, "write", source))?;
        Ok(padding)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out
            .write_all(bytes)
            .map_err(|source| Error::io(&self.name, "write", source))
    }
}
