//! Entries out of the bytes of an image: `[magic] ([length] [message] [payload])*`.
//!
//! A reader has the whole file, shares its memory with the entries it gives out, and takes no length
//! on trust. An entry keeps its bytes beside the decoded message, because prost forgets fields it does
//! not know: [`Entry::is_exact`] tells.
use std::ops::Deref;

use prost::bytes::Bytes;
use prost::{Message, Name};

use crate::desc::{COMMON_MAGIC, Desc, MessageType, Prefix, SERVICE_MAGIC};
use crate::error::{Error, Result, Why};
use crate::layout::{Cursor, Payload};

/// A decoded entry, with the bytes it was decoded from and the payload after it.
///
/// It dereferences to its message.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry<M> {
    /// The message.
    pub message: M,
    /// Its bytes in the image.
    pub raw: Bytes,
    /// The bytes after it, padding included.
    pub extra: Bytes,
}

impl<M: Message> Entry<M> {
    /// Whether the message encodes to the very bytes it came from.
    ///
    /// If not, the image has fields this crate does not know, lacks a required one, or was written
    /// by an encoder with other habits than protobuf-c.
    pub fn is_exact(&self) -> bool {
        self.message.encoded_len() == self.raw.len() && self.message.encode_to_vec() == self.raw
    }
}

impl<M> Deref for Entry<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.message
    }
}

/// An entry whose message is not decoded.
#[derive(Debug, Clone)]
pub struct AnyEntry {
    /// The type of the message.
    pub message: &'static MessageType,
    /// Its bytes in the image.
    pub raw: Bytes,
    /// The bytes after it, padding included.
    pub extra: Bytes,
    offset: u64,
}

impl AnyEntry {
    /// Where in the image it starts.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// Goes through the entries of one image.
#[derive(Debug, Clone)]
pub struct ImageReader {
    desc: &'static Desc,
    name: String,
    left: Bytes,
    offset: u64,
    cursor: Cursor,
    first_format: bool,
}

impl ImageReader {
    /// Takes the whole file, and checks that it is of this kind.
    pub fn new(
        desc: &'static Desc,
        name: impl Into<String>,
        bytes: impl Into<Bytes>,
    ) -> Result<Self> {
        let mut reader = Self {
            desc,
            name: name.into(),
            left: bytes.into(),
            offset: 0,
            cursor: Cursor::new(desc.layout),
            first_format: false,
        };
        reader.magics()?;
        Ok(reader)
    }

    /// The file name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kind.
    pub fn desc(&self) -> &'static Desc {
        self.desc
    }

    /// Whether the image is of format 1.0, which has no common magic number.
    pub fn is_first_format(&self) -> bool {
        self.first_format
    }

    /// Bytes gone through so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next entry, which must be an `M`; `None` at the end of the image.
    pub fn read<M: Message + Default + Name>(&mut self) -> Result<Option<Entry<M>>> {
        let Some(entry) = self.read_any()? else {
            return Ok(None);
        };
        let expected = entry.message.name;
        if expected != M::NAME {
            let why = Why::OtherMessage {
                expected,
                asked: M::NAME,
            };
            return Err(Error::corrupt(&self.name, entry.offset, why));
        }
        let AnyEntry {
            raw, extra, offset, ..
        } = entry;
        let message = M::decode(raw.clone()).map_err(|source| {
            Error::corrupt(
                &self.name,
                offset,
                Why::Message {
                    message: M::NAME,
                    source,
                },
            )
        })?;
        Ok(Some(Entry {
            message,
            raw,
            extra,
        }))
    }

    /// All entries that are left; each must be an `M`.
    pub fn read_all<M: Message + Default + Name>(mut self) -> Result<Vec<Entry<M>>> {
        let mut entries = Vec::new();
        while let Some(entry) = self.read()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    /// The entry of an image that has exactly one.
    pub fn read_only<M: Message + Default + Name>(self) -> Result<Entry<M>> {
        let name = self.name.clone();
        let mut entries = self.read_all()?;
        match (entries.pop(), entries.len()) {
            (Some(entry), 0) => Ok(entry),
            (last, before) => {
                let count = before + usize::from(last.is_some());
                Err(Error::corrupt(name, 0, Why::NotSingle(count)))
            }
        }
    }

    /// The next entry, undecoded; `None` at the end of the image.
    pub fn read_any(&mut self) -> Result<Option<AnyEntry>> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let offset = self.offset;
        let Some(message) = self.desc.messages.get(self.cursor.index()) else {
            return Err(Error::corrupt(&self.name, offset, Why::Raw));
        };
        let length = self.number("the length of an entry")?;
        let raw = self.take(length.into(), "an entry")?;
        let payload = self.cursor.pass(&raw).map_err(|source| {
            Error::corrupt(
                &self.name,
                offset,
                Why::Message {
                    message: message.name,
                    source,
                },
            )
        })?;
        let extra = match payload {
            Payload::Bytes(len, _) => self.take(len, "the payload of an entry")?,
            Payload::Rest => self.take(self.left.len() as u64, "the rest")?,
        };
        Ok(Some(AnyEntry {
            message,
            raw,
            extra,
            offset,
        }))
    }

    fn magics(&mut self) -> Result<()> {
        let own = self.desc.magic;
        match self.desc.prefix {
            Prefix::None => Ok(()),
            Prefix::Own => self.magic(own),
            Prefix::Service => {
                self.magic(SERVICE_MAGIC)?;
                self.magic(own)
            }
            Prefix::Common => {
                self.first_format = self.left.starts_with(&own.to_le_bytes());
                if !self.first_format {
                    self.magic(COMMON_MAGIC)?;
                }
                self.magic(own)
            }
        }
    }

    fn magic(&mut self, expected: u32) -> Result<()> {
        let offset = self.offset;
        match self.number("the magic number")? {
            found if found == expected => Ok(()),
            found => Err(Error::corrupt(
                &self.name,
                offset,
                Why::Magic { expected, found },
            )),
        }
    }

    fn number(&mut self, what: &'static str) -> Result<u32> {
        let bytes = self.take(4, what)?;
        let mut word = [0; 4];
        word.copy_from_slice(&bytes);
        Ok(u32::from_le_bytes(word))
    }

    /// Shares the memory of the file: a length is checked before anything is done with it.
    fn take(&mut self, need: u64, what: &'static str) -> Result<Bytes> {
        let have = self.left.len();
        match usize::try_from(need) {
            Ok(len) if len <= have => {
                self.offset += need;
                Ok(self.left.split_to(len))
            }
            _ => {
                let why = Why::Truncated {
                    what,
                    need,
                    have: have as u64,
                };
                Err(Error::corrupt(&self.name, self.offset, why))
            }
        }
    }
}
