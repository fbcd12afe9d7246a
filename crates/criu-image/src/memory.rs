//! Images in memory, for tests and for tools that change a dump on its way.
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::memfd::{MFdFlags, memfd_create};
use prost::bytes::Bytes;

use crate::error::{Error, Result};
use crate::store::{Store, plain};

/// Images in memory. Each is a memfd: pages are written through descriptors, so a byte vector would
/// not do.
#[derive(Debug, Default)]
pub struct Memory {
    files: Mutex<Files>,
}

#[derive(Debug, Default)]
struct Files {
    finished: BTreeMap<String, File>,
    created: BTreeMap<String, File>,
}

impl Memory {
    /// A store with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a finished image.
    pub fn insert(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let file = new_file(plain(name)?)?;
        file.write_all_at(bytes, 0)
            .map_err(|error| Error::io(name, "write", error))?;
        self.files().finished.insert(name.to_owned(), file);
        Ok(())
    }

    /// No code panics while it has the lock, so a poisoned one is as good.
    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Memory {
    fn names(&self) -> Result<Vec<String>> {
        Ok(self.files().finished.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>> {
        let Some(file) = self.open(name)? else {
            return Ok(None);
        };
        read_all(&file)
            .map(Some)
            .map_err(|error| Error::io(name, "read", error))
    }

    fn open(&self, name: &str) -> Result<Option<File>> {
        let files = self.files();
        let file = files.finished.get(name).map(File::try_clone).transpose();
        file.map_err(|error| Error::io(name, "open", error))
    }

    fn create(&self, name: &str) -> Result<File> {
        let file = new_file(plain(name)?)?;
        let ours = file
            .try_clone()
            .map_err(|error| Error::io(name, "create", error))?;
        self.files().created.insert(name.to_owned(), ours);
        Ok(file)
    }

    fn finish(&self) -> Result<()> {
        let mut files = self.files();
        let Files { finished, created } = &mut *files;
        finished.append(created);
        Ok(())
    }
}

fn new_file(name: &str) -> Result<File> {
    match memfd_create("criu-image", MFdFlags::MFD_CLOEXEC) {
        Ok(fd) => Ok(fd.into()),
        Err(errno) => Err(Error::io(name, "create", errno.into())),
    }
}

fn read_all(file: &File) -> io::Result<Bytes> {
    let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StoreExt, desc, pb};

    #[test]
    fn images_appear_when_finished() {
        let store = Memory::new();
        let entry = pb::UtsnsEntry {
            nodename: "a".into(),
            domainname: "b".into(),
        };
        store.write_entry(desc::UTSNS, 9u32, &entry).unwrap();
        assert!(store.names().unwrap().is_empty());
        store.finish().unwrap();
        let read = store.entry::<pb::UtsnsEntry>(desc::UTSNS, 9u32).unwrap();
        assert_eq!(read.message, entry);
        assert!(read.is_exact());
    }

    #[test]
    fn a_missing_image_is_told_from_a_bad_one() {
        let store = Memory::new();
        assert!(
            store
                .entries::<pb::FileEntry>(desc::FILES, ())
                .unwrap()
                .is_none()
        );
        assert!(matches!(
            store.entry::<pb::InventoryEntry>(desc::INVENTORY, ()),
            Err(Error::Missing { .. })
        ));
        store.insert("inventory.img", b"junk").unwrap();
        assert!(matches!(
            store.entry::<pb::InventoryEntry>(desc::INVENTORY, ()),
            Err(Error::Corrupt { .. })
        ));
        assert!(store.create("../x").is_err());
    }
}
