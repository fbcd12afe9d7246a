//! Images of a directory, each compared with the manifest when it is read.
//!
//! One pass instead of two: what is parsed is what was compared. Pages are not read through this;
//! [`Checked::verify_pages`] compares them.
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use prost::bytes::Bytes;

use crate::desc::{self, Desc};
use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::manifest::{Depth, Difference, Manifest, changed};
use crate::store::{Store, plain};

/// A directory of images that must be what its manifest says, if it has one of the same dump.
#[derive(Debug)]
pub struct Checked {
    directory: Directory,
    manifest: Option<Manifest>,
    /// All that is there, whatever it is: most images that are asked for are not.
    there: BTreeSet<String>,
    /// What several ask for.
    kept: Mutex<BTreeMap<String, Bytes>>,
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
        let there = everything(directory.path())?;
        for (name, _) in manifest.iter().flat_map(Manifest::files) {
            if !there.contains(plain(name)?) {
                return Err(changed(name, Difference::Gone));
            }
        }
        Ok(Self {
            directory,
            manifest,
            there,
            kept: Mutex::default(),
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
        let often = OFTEN.iter().any(|desc| desc.is(name));
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if often && let Some(bytes) = kept().get(name) {
            return Ok(Some(bytes.clone()));
        }
        let bytes = match self.there.contains(name) {
            true => self.directory.read(name)?,
            false => None,
        };
        let record = self.manifest.as_ref().and_then(|known| known.record(name));
        match (&bytes, record) {
            (Some(bytes), Some(record)) => record.check(name, bytes)?,
            (None, Some(_)) => return Err(changed(name, Difference::Gone)),
            (_, None) => {}
        }
        if often && let Some(bytes) = &bytes {
            kept().insert(name.to_owned(), bytes.clone());
        }
        Ok(bytes)
    }

    fn open(&self, name: &str) -> Result<Option<File>> {
        match self.there.contains(name) {
            true => self.directory.open(name),
            false => Ok(None),
        }
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

/// The images of the whole tree that each subsystem reads for itself.
const OFTEN: [&Desc; 4] = [desc::INVENTORY, desc::PSTREE, desc::FILES, desc::FILES_EXT];

fn everything(directory: &Path) -> Result<BTreeSet<String>> {
    let failed = |error| Error::io(directory.display().to_string(), "list", error);
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    Ok(names)
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
