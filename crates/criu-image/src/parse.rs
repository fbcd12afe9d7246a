//! Any file of a dump, by its name alone: for tools that show images, and for fuzzing.
use prost::bytes::Bytes;

use crate::desc::{COMMON_MAGIC, Desc, Prefix, SERVICE_MAGIC};
use crate::error::{Error, Result, Why};
use crate::read::{AnyEntry, ImageReader};

/// An image taken apart, and put together again from the decoded messages.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// The kind.
    pub desc: &'static Desc,
    /// The entries; none if the image is raw.
    pub entries: Vec<AnyEntry>,
    /// The image as this crate would write it.
    pub encoded: Vec<u8>,
    /// Where the entries start that are not the same after decoding and encoding.
    pub inexact: Vec<u64>,
}

/// Reads an image of any kind. The kind is that of the file name.
pub fn parse_any(name: &str, bytes: &[u8]) -> Result<Parsed> {
    let (desc, _) = Desc::of_file(name).ok_or_else(|| Error::corrupt(name, 0, Why::Name))?;
    let mut parsed = Parsed {
        desc,
        entries: Vec::new(),
        encoded: Vec::new(),
        inexact: Vec::new(),
    };
    if desc.is_raw() {
        parsed.encoded = bytes.to_vec();
        return Ok(parsed);
    }
    let mut reader = ImageReader::new(desc, name, Bytes::copy_from_slice(bytes))?;
    let prefix = match desc.prefix {
        Prefix::Common if !reader.is_first_format() => Some(COMMON_MAGIC),
        Prefix::Service => Some(SERVICE_MAGIC),
        _ => None,
    };
    for magic in prefix.into_iter().chain([desc.magic]) {
        parsed.encoded.extend(magic.to_le_bytes());
    }
    while let Some(entry) = reader.read_any()? {
        let again = entry.message.reencode(&entry.raw).map_err(|source| {
            let why = Why::Message {
                message: entry.message.name,
                source,
            };
            Error::corrupt(name, entry.offset(), why)
        })?;
        let too_long = |_| Error::corrupt(name, entry.offset(), Why::TooLong(again.len()));
        let length = u32::try_from(again.len()).map_err(too_long)?;
        parsed.encoded.extend(length.to_le_bytes());
        parsed.encoded.extend(&again);
        parsed.encoded.extend(&entry.extra);
        if again != entry.raw {
            parsed.inexact.push(entry.offset());
        }
        parsed.entries.push(entry);
    }
    Ok(parsed)
}
