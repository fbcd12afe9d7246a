//! Where images are kept: names to bytes, and nothing about what is in them.
//!
//! A store is read or written, not both: what is being created is not seen under its name before
//! [`Store::finish`], and never if that is not reached.
use std::fs::File;
use std::io::Write;

use prost::bytes::Bytes;
use prost::{Message, Name};

use crate::desc::{Desc, ImageId};
use crate::error::{Error, Result, Why};
use crate::read::{Entry, ImageReader};
use crate::write::ImageWriter;

/// A place for images.
pub trait Store {
    /// Names of all images, sorted.
    fn names(&self) -> Result<Vec<String>>;

    /// The whole image; `None` if there is no such one.
    fn read(&self, name: &str) -> Result<Option<Bytes>>;

    /// The image as a file, for reading at positions: its offset may be shared with others.
    fn open(&self, name: &str) -> Result<Option<File>>;

    /// A new, empty image. The descriptor may be passed to another process, which then writes there.
    fn create(&self, name: &str) -> Result<File>;

    /// A new image of these bytes.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.create(name)?
            .write_all(bytes)
            .map_err(|error| Error::io(name, "write", error))
    }

    /// What lies before `end` in an image that was created will not change any more: a store that sums
    /// its images may do so now.
    fn is_final(&self, name: &str, end: u64) -> Result<()> {
        let _nothing = (name, end);
        Ok(())
    }

    /// Makes all created images visible, the inventory last.
    fn finish(&self) -> Result<()>;

    /// The dump this one is an increment of: pages marked as the parent's are there.
    fn parent(&self) -> Result<Option<Box<dyn Store>>> {
        Ok(None)
    }
}

/// Images by kind and id instead of by name.
pub trait StoreExt: Store {
    /// Opens an image for reading; `None` if there is no such one.
    fn reader(&self, desc: &'static Desc, id: impl Into<ImageId>) -> Result<Option<ImageReader>> {
        let name = desc.file_name(id);
        self.read(&name)?
            .map(|bytes| ImageReader::new(desc, name, bytes))
            .transpose()
    }

    /// All entries of an image; `None` if there is no such one.
    fn entries<M: Message + Default + Name>(
        &self,
        desc: &'static Desc,
        id: impl Into<ImageId>,
    ) -> Result<Option<Vec<Entry<M>>>> {
        self.reader(desc, id)?
            .map(ImageReader::read_all)
            .transpose()
    }

    /// The entry of an image that must exist and has exactly one.
    fn entry<M: Message + Default + Name>(
        &self,
        desc: &'static Desc,
        id: impl Into<ImageId>,
    ) -> Result<Entry<M>> {
        let id = id.into();
        match self.reader(desc, id.clone())? {
            Some(reader) => reader.read_only(),
            None => Err(Error::Missing {
                image: desc.file_name(id),
            }),
        }
    }

    /// Starts an image.
    fn writer(&self, desc: &'static Desc, id: impl Into<ImageId>) -> Result<ImageWriter> {
        let name = desc.file_name(id);
        let file = self.create(&name)?;
        ImageWriter::new(desc, name, file)
    }

    /// Writes an image of one entry.
    fn write_entry<M: Message + Name>(
        &self,
        desc: &'static Desc,
        id: impl Into<ImageId>,
        message: &M,
    ) -> Result<()> {
        self.write_entries(desc, id, [message])
    }

    /// Writes an image of a few entries, in one go.
    fn write_entries<'m, M: Message + Name + 'm>(
        &self,
        desc: &'static Desc,
        id: impl Into<ImageId>,
        messages: impl IntoIterator<Item = &'m M>,
    ) -> Result<()> {
        let name = desc.file_name(id);
        let mut writer = ImageWriter::new(desc, &*name, Vec::new())?;
        for message in messages {
            writer.write(message)?;
        }
        self.put(&name, &writer.finish()?)
    }
}

impl<S: Store + ?Sized> StoreExt for S {}

/// A name that stays in its directory. Names come from ids and from the image streamer's peer.
pub(crate) fn plain(name: &str) -> Result<&str> {
    match name {
        "" | "." | ".." => Err(Error::refused(name, Why::Path)),
        name if name.contains(['/', '\0']) => Err(Error::refused(name, Why::Path)),
        name => Ok(name),
    }
}
