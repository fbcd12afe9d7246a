//! What follows what in an image: which message is next, and how many bytes come after it.
use prost::{DecodeError, Message};

use crate::pb;

/// How the entries of an image follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Entries of one message and nothing else.
    Entries,
    /// One entry of the first message, then any number of the second.
    Headed,
    /// After each entry, the bytes that were waiting in the pipe.
    Pipe,
    /// After each entry, the packet.
    Packets,
    /// After the entry, the receive queue and the send queue.
    TcpQueues,
    /// After each entry, all keys and then all values.
    BpfMap,
    /// After each entry, a 16-bit value for each semaphore, padded to 8 bytes.
    Semaphores,
    /// After each entry of the first message, as many of the second as it counts; each of those has
    /// its text, padded to 8 bytes.
    MessageQueues,
    /// After each entry, the content padded to 4 bytes, unless it is in a pagemap.
    Segments,
    /// After the entry, content to the end of the file; or entries of the second message, each
    /// followed by a run of data.
    Ghost,
    /// Not made of entries.
    Raw,
}

/// What comes after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payload {
    /// So many bytes, of which the last few may be padding to a multiple of the second number.
    Bytes(u64, u64),
    /// Whatever is left of the file.
    Rest,
}

impl Payload {
    const NONE: Self = Self::Bytes(0, 1);
}

/// Where a reader or writer stands in the layout.
#[derive(Debug, Clone)]
pub(crate) struct Cursor {
    layout: Layout,
    /// How many entries of the second message come before the next of the first.
    seconds: u64,
}

impl Cursor {
    pub(crate) fn new(layout: Layout) -> Self {
        Self { layout, seconds: 0 }
    }

    /// Index in [`Desc::messages`](crate::Desc::messages) of the message that comes next.
    pub(crate) fn index(&self) -> usize {
        usize::from(self.seconds > 0)
    }

    /// Goes past a message whose encoding is `raw`, and says what follows it.
    pub(crate) fn pass(&mut self, raw: &[u8]) -> Result<Payload, DecodeError> {
        if self.seconds > 0 {
            return self.pass_second(raw);
        }
        let exactly = |len: u64| Payload::Bytes(len, 1);
        Ok(match self.layout {
            Layout::Entries | Layout::Raw => Payload::NONE,
            Layout::Headed => {
                self.seconds = u64::MAX;
                Payload::NONE
            }
            Layout::Pipe => exactly(pb::PipeDataEntry::decode(raw)?.bytes.into()),
            Layout::Packets => exactly(pb::SkPacketEntry::decode(raw)?.length.into()),
            Layout::TcpQueues => {
                let queues = pb::TcpStreamEntry::decode(raw)?;
                exactly(u64::from(queues.inq_len) + u64::from(queues.outq_len))
            }
            Layout::BpfMap => {
                let map = pb::BpfmapDataEntry::decode(raw)?;
                exactly(u64::from(map.keys_bytes) + u64::from(map.values_bytes))
            }
            Layout::Semaphores => padded(2 * u64::from(pb::IpcSemEntry::decode(raw)?.nsems), 8),
            Layout::MessageQueues => {
                self.seconds = pb::IpcMsgEntry::decode(raw)?.qnum.into();
                Payload::NONE
            }
            Layout::Segments => match pb::IpcShmEntry::decode(raw)? {
                segment if segment.in_pagemaps() => Payload::NONE,
                segment => padded(segment.size, 4),
            },
            Layout::Ghost if pb::GhostFileEntry::decode(raw)?.chunks() => {
                self.seconds = u64::MAX;
                Payload::NONE
            }
            Layout::Ghost => Payload::Rest,
        })
    }

    fn pass_second(&mut self, raw: &[u8]) -> Result<Payload, DecodeError> {
        if self.seconds != u64::MAX {
            self.seconds -= 1;
        }
        Ok(match self.layout {
            Layout::MessageQueues => padded(pb::IpcMsg::decode(raw)?.msize.into(), 8),
            Layout::Ghost => Payload::Bytes(pb::GhostChunkEntry::decode(raw)?.len, 1),
            _ => Payload::NONE,
        })
    }
}

/// A length no file has stays one no file has.
fn padded(len: u64, to: u64) -> Payload {
    Payload::Bytes(len.checked_next_multiple_of(to).unwrap_or(u64::MAX), to)
}
