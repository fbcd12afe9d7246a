//! What can go wrong with an image, by what the caller can do about it.
use std::io;

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an image could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such image, and the caller needs it.
    #[error("image {image} is missing")]
    Missing {
        /// File name.
        image: String,
    },
    /// The file system refused.
    #[error("image {image}: cannot {action}")]
    Io {
        /// File name, or the directory's.
        image: String,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The bytes are not an image of this kind.
    #[error("image {image} is corrupt at offset {offset}")]
    Corrupt {
        /// File name.
        image: String,
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        #[source]
        why: Why,
    },
    /// The writer was asked for something no reader would understand.
    #[error("image {image} cannot hold this entry")]
    Refused {
        /// File name.
        image: String,
        /// What does not fit.
        #[source]
        why: Why,
    },
    /// A file is not what the manifest says it was at dump.
    #[error("image {image} has changed since the dump")]
    Changed {
        /// File name.
        image: String,
        /// What differs.
        #[source]
        difference: crate::manifest::Difference,
    },
}

/// What is wrong at a place in an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Why {
    /// The file ends too early.
    #[error("{what} needs {need} bytes, {have} are left")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Bytes it takes.
        need: u64,
        /// Bytes there are.
        have: u64,
    },
    /// The file starts as another kind of file.
    #[error("magic is {found:#010x}, not {expected:#010x}")]
    Magic {
        /// The number of this kind.
        expected: u32,
        /// The number in the file.
        found: u32,
    },
    /// Not a protobuf message, or not one of this type.
    #[error("not a {message}")]
    Message {
        /// The message that belongs here.
        message: &'static str,
        /// Where the decoder stopped.
        source: prost::DecodeError,
    },
    /// Another message belongs at this place.
    #[error("a {expected} belongs here, not a {asked}")]
    OtherMessage {
        /// What belongs here.
        expected: &'static str,
        /// What was asked for.
        asked: &'static str,
    },
    /// The bytes after a message are not as many as the message says.
    #[error("the message announces {announced} bytes of payload, {given} are given")]
    Payload {
        /// By the message.
        announced: u64,
        /// By the caller.
        given: u64,
    },
    /// An entry longer than the format can express.
    #[error("{0} bytes are too many for one entry")]
    TooLong(usize),
    /// An image of exactly one entry has another number of them.
    #[error("{0} entries where one belongs")]
    NotSingle(usize),
    /// Such an image has no entries.
    #[error("a raw image has no entries")]
    Raw,
    /// No kind of image has such a name.
    #[error("no kind of image has this name")]
    Name,
    /// A file name that would leave the directory.
    #[error("not a plain file name")]
    Path,
    /// A range of pages that cannot be.
    #[error("{count} pages at {vaddr:#x}: {problem}")]
    Extent {
        /// Start address.
        vaddr: u64,
        /// Number of pages.
        count: u64,
        /// What is wrong with it.
        problem: ExtentProblem,
    },
    /// The manifest is not what this crate writes.
    #[error("not a manifest: {0}")]
    Manifest(String),
    /// The chain of parent directories is longer than any real one, so it is likely a circle.
    #[error("more than {0} parent directories")]
    Parents(usize),
}

/// What is wrong with a range of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExtentProblem {
    /// The address is not on a page boundary.
    #[error("not on a page boundary")]
    Misaligned,
    /// The range has no pages.
    #[error("empty")]
    Empty,
    /// The range goes past the end of the address space.
    #[error("ends beyond the address space")]
    Overflow,
    /// The range starts before the end of the one before it.
    #[error("overlaps or precedes the range before it")]
    Disorder,
    /// The range is both here and in the parent.
    #[error("both present and in the parent")]
    Contradiction,
    /// The range needs more bytes than the pages image has.
    #[error("the pages image ends before it")]
    Beyond,
}

impl Error {
    pub(crate) fn io(image: impl Into<String>, action: &'static str, source: io::Error) -> Self {
        Self::Io {
            image: image.into(),
            action,
            source,
        }
    }

    pub(crate) fn corrupt(image: impl Into<String>, offset: u64, why: Why) -> Self {
        Self::Corrupt {
            image: image.into(),
            offset,
            why,
        }
    }

    pub(crate) fn refused(image: impl Into<String>, why: Why) -> Self {
        Self::Refused {
            image: image.into(),
            why,
        }
    }
}
