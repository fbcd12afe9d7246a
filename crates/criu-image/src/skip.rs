//! Entries of an image in a file whose payloads are too large, or not wanted, in memory.
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use prost::bytes::Bytes;

use crate::desc::{Desc, MessageType};
use crate::error::{Error, Result, Why};
use crate::layout::{Cursor, Payload};
use crate::read::ImageReader;

/// The largest message read. Real ones are far smaller: what is large is in payloads.
const MAX_MESSAGE: u64 = 256 << 20;

/// Goes through the entries of an image, and only tells where their payloads are.
#[derive(Debug)]
pub struct SkippingReader {
    desc: &'static Desc,
    name: String,
    file: File,
    offset: u64,
    len: u64,
    cursor: Cursor,
}

/// An entry whose payload is still in the file.
#[derive(Debug, Clone)]
pub struct SkippedEntry {
    /// The type of the message.
    pub message: &'static MessageType,
    /// The message, as bytes.
    pub raw: Bytes,
    /// Where in the file the payload is, padding included.
    pub extra: Range<u64>,
}

impl SkippingReader {
    /// Takes the file of an image, and checks that it is of this kind.
    pub fn new(desc: &'static Desc, name: impl Into<String>, file: File) -> Result<Self> {
        let name = name.into();
        let len = file
            .metadata()
            .map_err(|error| Error::io(&name, "find", error))?
            .len();
        let cursor = Cursor::new(desc.layout);
        let mut reader = Self {
            desc,
            name,
            file,
            offset: 0,
            len,
            cursor,
        };
        let magics = reader.bytes(0, len.min(8))?;
        reader.offset = ImageReader::new(desc, &reader.name, magics)?.offset();
        Ok(reader)
    }

    /// The file, to read payloads from at positions.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The next entry; `None` at the end of the image.
    pub fn read(&mut self) -> Result<Option<SkippedEntry>> {
        let start = self.offset;
        if start == self.len {
            return Ok(None);
        }
        let corrupt = |why| Error::corrupt(&self.name, start, why);
        let messages = self.desc.messages;
        let message = messages
            .get(self.cursor.index())
            .ok_or_else(|| corrupt(Why::Raw))?;

        let head = self.range(start, 4, "the length of an entry")?;
        let mut length = [0; 4];
        length.copy_from_slice(&self.bytes(start, 4)?);
        let length = u64::from(u32::from_le_bytes(length));
        let place = self.range(head.end, length, "an entry")?;
        if length > MAX_MESSAGE {
            return Err(corrupt(Why::TooLong(
                usize::try_from(length).unwrap_or(usize::MAX),
            )));
        }
        let raw = self.bytes(place.start, length)?;
        let mut cursor = self.cursor.clone();
        let payload = cursor.pass(&raw).map_err(|source| {
            corrupt(Why::Message {
                message: message.name,
                source,
            })
        })?;
        let extra = match payload {
            Payload::Bytes(len, _) => self.range(place.end, len, "the payload of an entry")?,
            Payload::Rest => place.end..self.len,
        };
        self.cursor = cursor;
        self.offset = extra.end;
        Ok(Some(SkippedEntry {
            message,
            raw,
            extra,
        }))
    }

    /// A range that is in the file.
    fn range(&self, start: u64, need: u64, what: &'static str) -> Result<Range<u64>> {
        let have = self.len - start;
        if need > have {
            return Err(Error::corrupt(
                &self.name,
                start,
                Why::Truncated { what, need, have },
            ));
        }
        Ok(start..start + need)
    }

    /// Only called with lengths that were limited before.
    fn bytes(&self, at: u64, len: u64) -> Result<Bytes> {
        let failed = |error| Error::io(&self.name, "read", error);
        let mut bytes =
            vec![0; usize::try_from(len).map_err(|e| failed(std::io::Error::other(e)))?];
        self.file.read_exact_at(&mut bytes, at).map_err(failed)?;
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::{Memory, Store as _, StoreExt as _, desc, pb};

    fn ghost(tail: u64) -> SkippingReader {
        let store = Memory::new();
        let mut writer = store.writer(desc::GHOST_FILE, 1u32).unwrap();
        let head = pb::GhostFileEntry {
            chunks: Some(true),
            ..Default::default()
        };
        writer.write(&head).unwrap();
        writer
            .write_with_extra(&pb::GhostChunkEntry { len: 3, off: 0 }, b"abc")
            .unwrap();
        // More than the writer gathers.
        let large = vec![7; 100_000];
        let head = pb::GhostChunkEntry {
            len: 100_000,
            off: 4096,
        };
        writer.write_with_extra(&head, &large).unwrap();
        let file = writer.finish().unwrap();
        file.set_len(file.metadata().unwrap().len() - tail).unwrap();
        SkippingReader::new(desc::GHOST_FILE, "ghost-file-1.img", file).unwrap()
    }

    #[test]
    fn payloads_stay_where_they_are() {
        let mut reader = ghost(0);
        assert!(reader.read().unwrap().unwrap().extra.is_empty());
        let small = reader.read().unwrap().unwrap();
        let mut text = [0; 3];
        reader
            .file()
            .read_exact_at(&mut text, small.extra.start)
            .unwrap();
        assert_eq!(&text, b"abc");
        let large = reader.read().unwrap().unwrap();
        assert_eq!(large.extra.end - large.extra.start, 100_000);
        assert_eq!(pb::GhostChunkEntry::decode(large.raw).unwrap().off, 4096);
        assert!(reader.read().unwrap().is_none());
    }

    #[test]
    fn a_payload_that_is_cut_is_refused() {
        let mut reader = ghost(1);
        reader.read().unwrap();
        reader.read().unwrap();
        assert!(matches!(
            reader.read(),
            Err(Error::Corrupt {
                why: Why::Truncated { .. },
                ..
            })
        ));
    }

    #[test]
    fn another_kind_is_refused() {
        let store = Memory::new();
        for bytes in [&b""[..], b"abc", b"\x19\x43\x56\x54", b"abcdefgh"] {
            store.insert("files.img", bytes).unwrap();
            let file = store.open("files.img").unwrap().unwrap();
            assert!(SkippingReader::new(desc::FILES, "files.img", file).is_err());
        }
    }
}
