//! Entries into an image.
use std::fs::File;
use std::io::{self, Read, Write};

use prost::{Message, Name};

use crate::desc::{COMMON_MAGIC, Desc, Prefix, SERVICE_MAGIC};
use crate::error::{Error, Result, Why};
use crate::layout::{Cursor, Payload};

/// How much is gathered before it is written.
const BUFFER: usize = 64 << 10;

/// Appends entries to an image, through a buffer.
///
/// It writes only what [`ImageReader`](crate::ImageReader) reads: the right message at the right
/// place, followed by as many bytes as it announces. What is in the buffer is lost without
/// [`finish`](Self::finish): were it written on drop, an error then would pass unseen.
#[derive(Debug)]
#[must_use]
pub struct ImageWriter<W: Write = File> {
    desc: &'static Desc,
    name: String,
    out: W,
    cursor: Cursor,
    buffer: Vec<u8>,
}

impl<W: Write> ImageWriter<W> {
    /// Starts an image of this kind: writes its magic numbers.
    pub fn new(desc: &'static Desc, name: impl Into<String>, out: W) -> Result<Self> {
        let mut writer = Self {
            desc,
            name: name.into(),
            out,
            cursor: Cursor::new(desc.layout),
            buffer: Vec::new(),
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
        let mut source = source.take(len);
        let copied = if len <= BUFFER as u64 {
            source.read_to_end(&mut self.buffer).map(|read| read as u64)
        } else {
            self.flush()?;
            io::copy(&mut source, &mut self.out)
        };
        let given = copied.map_err(|source| Error::io(&self.name, "write", source))?;
        if given != len {
            return Err(Error::refused(
                &self.name,
                Why::Payload {
                    announced: len,
                    given,
                },
            ));
        }
        self.buffer.extend((0..padding).map(|_| 0));
        self.flush_if_full()
    }

    /// Appends bytes as they are: an image that is not made of entries.
    pub fn write_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.put(bytes)
    }

    /// Empties the buffer, and gives back what was written to.
    pub fn finish(mut self) -> Result<W> {
        self.flush()?;
        Ok(self.out)
    }

    /// Appends the framed message, and says how much padding comes after `len` bytes of payload.
    /// A message that is refused leaves no trace.
    fn message<M: Message + Name>(&mut self, message: &M, len: u64) -> Result<u64> {
        let refused = |why| Error::refused(&self.name, why);
        let expected = self.desc.messages.get(self.cursor.index());
        let expected = expected.ok_or_else(|| refused(Why::Raw))?.name;
        if expected != M::NAME {
            return Err(refused(Why::OtherMessage {
                expected,
                asked: M::NAME,
            }));
        }
        let raw = message.encode_to_vec();
        let size = u32::try_from(raw.len()).map_err(|_| refused(Why::TooLong(raw.len())))?;
        let mut cursor = self.cursor.clone();
        let padding = match cursor.pass(&raw) {
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
        self.cursor = cursor;
        self.buffer.extend(size.to_le_bytes());
        self.buffer.extend(raw);
        Ok(padding)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend(bytes);
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> Result<()> {
        if self.buffer.len() < BUFFER {
            Ok(())
        } else {
            self.flush()
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.out
            .write_all(&self.buffer)
            .map_err(|source| Error::io(&self.name, "write", source))?;
        self.buffer.clear();
        Ok(())
    }
}
