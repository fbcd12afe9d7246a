//! Images of a directory, each compared with the manifest when it is read.
//!
//! One pass instead of two: what is parsed is what was compared. Pages are not read through this;
//! [`Checked::verify_pages`] compares them.
use std::fs::File;
use std::path::Path;

use prost::bytes::Bytes;

use crate::directory::{Directory, list};
use crate::error::Result;
use crate::manifest::{Depth, Difference, Manifest, changed};
use crate::store::{Store, plain};

/// A directory of images that must be what its manifest says, if it has one of the same dump.
#[derive(Debug)]
pub struct Checked {
    directory: Directory,
    manifest: Option<Manifest>,
}

impl Checked {
    /// A directory to read from. No image of the manifest is missing there.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let directory = Directory::open(path)?;
        let mut manifest = Manifest::load(directory.path())?;
        if let Some(known) = &manifest
            && known.is_stale(directory.path())?
        {
            manifest = None;
        }
        if let Some(manifest) = &manifest {
            let there = list(directory.path())?;
            for (name, _) in manifest.files() {
                let name = plain(name)?;
                let place = there.binary_search_by(|known| known.as_str().cmp(name));
                place.map_err(|_| changed(name, Difference::Gone))?;
            }
        }
        Ok(Self {
            directory,
            manifest,
        })
    }

    /// Bytes of the images of pages, which [`Checked::verify_pages`] reads.
    pub fn pages(&self) -> u64 {
        let files = self.manifest.iter().flat_map(Manifest::files);
        let pages = files.filter(|(name, _)| Depth::Pages.includes(name));
        pages.map(|(_, record)| record.size).sum()
    }

    /// Compares the images of pages, which are not read through this store.
    pub fn verify_pages(&self) -> Result<()> {
        match &self.manifest {
            Some(manifest) => manifest
                .compare(self.directory.path(), Depth::Pages)
                .map(drop),
            None => Ok(()),
        }
    }
}

impl Store for Checked {
    fn names(&self) -> Result<Vec<String>> {
        self.directory.names()
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>> {
        let bytes = self.directory.read(name)?;
        let record = self.manifest.as_ref().and_then(|known| known.record(name));
        match (&bytes, record) {
            (Some(bytes), Some(record)) => record.check(name, bytes)?,
            (None, Some(_)) => return Err(changed(name, Difference::Gone)),
            (_, None) => {}
        }
        Ok(bytes)
    }

    fn open(&self, name: &str) -> Result<Option<File>> {
        self.directory.open(name)
    }

    fn create(&self, name: &str) -> Result<File> {
        self.directory.create(name)
    }

    fn finish(&self) -> Result<()> {
        self.directory.finish()
    }

    fn parent(&self) -> Result<Option<Box<dyn Store>>> {
        self.directory.parent()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::error::Error;
    use crate::{Durability, StoreExt as _, desc, pb};

    fn dumped() -> tempfile::TempDir {
        let path = tempfile::tempdir().unwrap();
        let store = Directory::create(path.path(), Durability::Process).unwrap();
        let inventory = pb::InventoryEntry {
            img_version: 2,
            ..Default::default()
        };
        let seccomp = pb::SeccompEntry::default();
        store.write_entry(desc::INVENTORY, (), &inventory).unwrap();
        store.write_entry(desc::SECCOMP, (), &seccomp).unwrap();
        store.finish().unwrap();
        path
    }

    fn difference(result: Result<Option<Bytes>>) -> Difference {
        match result {
            Err(Error::Changed { difference, .. }) => difference,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_read_is_compared() {
        let dir = dumped();
        let checked = Checked::open(dir.path()).unwrap();
        let image = dir.path().join("seccomp.img");
        let mut bytes = fs::read(&image).unwrap();
        assert_eq!(checked.read("seccomp.img").unwrap().unwrap(), bytes);
        bytes[0] ^= 1;
        fs::write(&image, &bytes).unwrap();
        let other = difference(checked.read("seccomp.img"));
        assert!(matches!(other, Difference::Checksum { .. }));
        fs::write(&image, &bytes[1..]).unwrap();
        let other = difference(checked.read("seccomp.img"));
        assert!(matches!(other, Difference::Size { .. }));
        fs::remove_file(&image).unwrap();
        assert_eq!(difference(checked.read("seccomp.img")), Difference::Gone);
        let opened = Checked::open(dir.path()).map(|_| None);
        assert_eq!(difference(opened), Difference::Gone);
    }

    #[test]
    fn without_a_manifest_nothing_is_compared() {
        let dir = dumped();
        fs::remove_file(dir.path().join(crate::manifest::NAME)).unwrap();
        fs::write(dir.path().join("seccomp.img"), "other").unwrap();
        let checked = Checked::open(dir.path()).unwrap();
        assert_eq!(checked.read("seccomp.img").unwrap().unwrap(), "other");
        assert!(checked.read("core-1.img").unwrap().is_none());
    }
}
