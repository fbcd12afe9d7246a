//! Images in a directory, as CRIU keeps them.
//!
//! A dump that died must not look like a complete image. So files are made in a hidden directory
//! beside their final place, `finish` renames them, and the inventory comes last: no inventory, no
//! image. An inventory of an earlier dump in the same directory is removed before the first rename.
//! That holds when the dumper dies. When the machine does, what was renamed may still be empty on
//! disk; therefore a manifest with all sizes is made durable before the inventory appears, and a
//! restore that finds other sizes refuses. How much more is flushed is [`Durability`].
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use prost::bytes::Bytes;

use crate::desc;
use crate::error::{Error, Result, Why};
use crate::follow::Follower;
use crate::manifest::{self, Manifest, Record};
use crate::store::{Store, plain};

/// Start of the name of the hidden directory of a dump in progress.
const PARTIAL: &str = ".criu-rs.partial-";
/// No dump has so many increments; a `parent` that leads back to itself has.
const MAX_PARENTS: usize = 4096;
/// The largest image read into memory. Pages are not: they are read through a descriptor.
const MAX_WHOLE: u64 = 4 << 30;

/// Bytes of an image from which on a thread of its own sums it.
const WORTH_FOLLOWING: u64 = 4 << 20;

/// What is on disk, not only in the page cache, when [`Store::finish`] returns.
///
/// Tasks may be waiting while it works, hence the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Nothing. Enough against the death of the dumper, not of the machine.
    Process,
    /// The manifest, and only then the inventory: a crash can lose the dump, but not silently.
    #[default]
    Manifest,
    /// Every image, and only then the inventory. Costs as much as the disk takes for all pages.
    Full,
}

/// A directory of images.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    depth: usize,
    partial: Option<Partial>,
}

/// The hidden directory: locked while its dump lives, removed when that ends either way.
#[derive(Debug)]
struct Partial {
    path: PathBuf,
    durability: Durability,
    /// Itself, locked.
    dir: File,
    /// What was written in one go, and so is known.
    known: Mutex<BTreeMap<String, Record>>,
    /// Sums what others write.
    follower: Mutex<Option<Follower>>,
    /// As it was when the dump was finished.
    manifest: Mutex<Option<Manifest>>,
}

impl Directory {
    /// A directory to read from.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::at_depth(path.as_ref(), 0)
    }

    /// A directory to dump into; it must exist. Files that died dumps left there are removed.
    pub fn create(path: impl AsRef<Path>, durability: Durability) -> Result<Self> {
        let mut directory = Self::open(path)?;
        directory.sweep()?;
        directory.partial = Some(Partial::new(&directory.path, durability)?);
        Ok(directory)
    }

    /// Whether [`Directory::complete`] has so much to do that others should not wait for it.
    pub fn has_much_to_sum(&self) -> bool {
        let Some(partial) = &self.partial else {
            return false;
        };
        let unknown = |manifest: &Manifest| -> u64 {
            let files = manifest.files();
            let unknown = files.filter(|(_, record)| record.crc32.is_none());
            unknown.map(|(_, record)| record.size).sum()
        };
        locked(&partial.manifest).as_ref().map_or(0, unknown) >= WORTH_FOLLOWING
    }

    /// Adds to the manifest of a finished dump the checksums of what others wrote.
    pub fn complete(&self) -> Result<()> {
        let Some(partial) = &self.partial else {
            return Ok(());
        };
        let follower = locked(&partial.follower).take();
        let begun = follower.map(Follower::finish).unwrap_or_default();
        let Some(mut manifest) = locked(&partial.manifest).take() else {
            return Ok(());
        };
        if manifest.sum(&self.path, &begun)? {
            manifest.save(&self.path, true)?;
        }
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn at_depth(path: &Path, depth: usize) -> Result<Self> {
        let name = || path.display().to_string();
        if depth > MAX_PARENTS {
            return Err(Error::corrupt(name(), 0, Why::Parents(MAX_PARENTS)));
        }
        let absolute =
            std::path::absolute(path).map_err(|error| Error::io(name(), "find", error))?;
        match fs::metadata(&absolute) {
            Ok(meta) if meta.is_dir() => Ok(Self {
                path: absolute,
                depth,
                partial: None,
            }),
            Ok(_) => Err(Error::io(
                name(),
                "open",
                io::ErrorKind::NotADirectory.into(),
            )),
            Err(error) => Err(Error::io(name(), "open", error)),
        }
    }

    /// Removes hidden directories that nobody has locked.
    fn sweep(&self) -> Result<()> {
        let failed = |error| Error::io(self.path.display().to_string(), "list", error);
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let ours = entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with(PARTIAL));
            let Some(lock) = ours.then(|| File::open(entry.path()).ok()).flatten() else {
                continue;
            };
            if lock.try_lock().is_ok() {
                // Another dump may do the same at the same time; then there is nothing left to do.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }

    /// An image and its length.
    fn open_sized(&self, name: &str) -> Result<Option<(File, u64)>> {
        // Nonblocking, because a FIFO put in place of an image would stop the restore here.
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(self.path.join(plain(name)?));
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| Error::io(name, "open", error))?,
        };
        match file.metadata() {
            Ok(meta) if meta.is_file() => Ok(Some((file, meta.len()))),
            Ok(_) => Err(Error::io(name, "open", io::ErrorKind::InvalidInput.into())),
            Err(error) => Err(Error::io(name, "open", error)),
        }
    }

    fn writable(&self, name: &str) -> Result<&Partial> {
        let refused = || Error::io(name, "create", io::ErrorKind::ReadOnlyFilesystem.into());
        self.partial.as_ref().ok_or_else(refused)
    }

    /// Removes what says that the directory holds a complete image.
    fn retract(&self) -> Result<()> {
        for name in [desc::INVENTORY.file_name(()).as_str(), manifest::NAME] {
            match fs::remove_file(self.path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io(name, "remove", error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Store for Directory {
    fn names(&self) -> Result<Vec<String>> {
        list(&self.path)
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>> {
        let Some((mut file, len)) = self.open_sized(name)? else {
            return Ok(None);
        };
        let failed = |error| Error::io(name, "read", error);
        if len > MAX_WHOLE {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        let mut bytes = Vec::new();
        let capacity = usize::try_from(len).map_err(|error| failed(io::Error::other(error)))?;
        bytes
            .try_reserve_exact(capacity)
            .map_err(|error| failed(io::Error::other(error)))?;
        // Limited, in case the file grows.
        (&mut file)
            .take(len)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        Ok(Some(bytes.into()))
    }

    fn open(&self, name: &str) -> Result<Option<File>> {
        Ok(self.open_sized(name)?.map(|(file, _)| file))
    }

    fn create(&self, name: &str) -> Result<File> {
        let partial = self.writable(name)?;
        partial.known().remove(name);
        if let Some(follower) = &*locked(&partial.follower) {
            follower.forget(name);
        }
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
        // Images have the memory of the tasks in them: nobody else may read that.
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        match openat(&partial.dir, plain(name)?, flags, mode) {
            Ok(file) => Ok(file.into()),
            Err(errno) => Err(Error::io(name, "create", errno.into())),
        }
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.create(name)?
            .write_all(bytes)
            .map_err(|error| Error::io(name, "write", error))?;
        let record = Record::of(bytes);
        self.writable(name)?.known().insert(name.to_owned(), record);
        Ok(())
    }

    fn is_final(&self, name: &str, end: u64) -> Result<()> {
        let partial = self.writable(name)?;
        let idle = || std::thread::available_parallelism().is_ok_and(|count| count.get() > 1);
        if end < WORTH_FOLLOWING || !idle() {
            return Ok(());
        }
        let mut follower = locked(&partial.follower);
        if follower.is_none() {
            // Without a thread all is summed in the end.
            *follower = Follower::start().ok();
        }
        if let Some(follower) = &*follower {
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            let file = openat(&partial.dir, plain(name)?, flags, Mode::empty());
            let file = file.map_err(|errno| Error::io(name, "open", errno.into()))?;
            follower.go_on(name, file.into(), end);
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        let inventory = desc::INVENTORY.file_name(());
        let partial = self.writable(&inventory)?;
        let mut names = list(&partial.path)?;
        let complete = names.contains(&inventory);
        names.retain(|name| *name != inventory);

        if partial.durability == Durability::Full {
            for name in &names {
                sync(&partial.path.join(name), name)?;
            }
        }
        if complete {
            self.retract()?;
            let manifest = Manifest::of_known(&partial.path, &partial.known())?;
            manifest.save(&partial.path, false)?;
            *locked(&partial.manifest) = Some(manifest);
            names.push(manifest::NAME.to_owned());
        }
        let target =
            File::open(&self.path).map_err(|error| Error::io("the directory", "open", error))?;
        let publish = |name: &str| {
            renameat(&partial.dir, name, &target, name)
                .map_err(|errno| Error::io(name, "rename", errno.into()))
        };
        for name in &names {
            publish(name)?;
        }
        let durable = partial.durability != Durability::Process;
        if complete {
            if durable {
                sync(&self.path.join(manifest::NAME), manifest::NAME)?;
                sync(&partial.path.join(&inventory), &inventory)?;
                sync(&self.path, "the directory")?;
            }
            publish(&inventory)?;
        }
        if durable {
            sync(&self.path, "the directory")?;
        }
        Ok(())
    }

    fn parent(&self) -> Result<Option<Box<dyn Store>>> {
        let path = self.path.join("parent");
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("parent", "open", error)),
            // Resolved here, because the kernel follows at most 40 links in one path.
            Ok(_) => match fs::canonicalize(&path) {
                Ok(path) => Ok(Some(Box::new(Self::at_depth(&path, self.depth + 1)?))),
                Err(error) => Err(Error::io("parent", "find", error)),
            },
        }
    }
}

impl Partial {
    fn new(directory: &Path, durability: Durability) -> Result<Self> {
        let failed = |error| Error::io(PARTIAL, "create", error);
        for attempt in 0.. {
            let path = directory.join(format!("{PARTIAL}{}-{attempt}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(failed)?,
            }
            // Before it is locked, another dump may take it for a dead one's and remove it.
            let Ok(lock) = File::open(&path) else {
                continue;
            };
            let same = |lock: &File| -> io::Result<bool> {
                Ok(lock.metadata()?.ino() == fs::metadata(&path)?.ino())
            };
            if lock.try_lock().is_ok() && same(&lock).unwrap_or(false) {
                return Ok(Self {
                    path,
                    durability,
                    dir: lock,
                    known: Mutex::default(),
                    follower: Mutex::default(),
                    manifest: Mutex::default(),
                });
            }
        }
        Err(failed(io::ErrorKind::AlreadyExists.into()))
    }

    /// No code panics while it has the lock, so a poisoned one is as good.
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        locked(&self.known)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Empty after `finish`. If it cannot be removed, the next dump into the directory tries again.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Names of plain files that are images or may be a plugin's, sorted.
pub(crate) fn list(directory: &Path) -> Result<Vec<String>> {
    let failed = |error| Error::io(directory.display().to_string(), "list", error);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let is_file = || match entry.file_type() {
            Ok(kind) if kind.is_symlink() => {
                fs::metadata(directory.join(&name)).is_ok_and(|meta| meta.is_file())
            }
            kind => kind.is_ok_and(|kind| kind.is_file()),
        };
        if !name.starts_with('.') && name != manifest::NAME && is_file() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn sync(path: &Path, name: &str) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|error| Error::io(name, "flush", error))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::{StoreExt as _, pb};

    fn dump(directory: &Directory, run: &str) {
        let mut pages = directory.create("pages-1.img").unwrap();
        pages.write_all(&[7; 4096]).unwrap();
        let inventory = pb::InventoryEntry {
            img_version: 2,
            dump_criu_run_id: Some(run.into()),
            ..Default::default()
        };
        directory
            .write_entry(desc::INVENTORY, (), &inventory)
            .unwrap();
    }

    fn hidden(path: &Path) -> usize {
        let entries = fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name());
        entries
            .filter(|name| name.to_string_lossy().starts_with('.'))
            .count()
    }

    #[test]
    fn nothing_is_seen_before_the_end_and_all_after() {
        for durability in [Durability::Process, Durability::Manifest, Durability::Full] {
            let path = tempfile::tempdir().unwrap();
            let directory = Directory::create(path.path(), durability).unwrap();
            dump(&directory, "a");
            assert!(directory.names().unwrap().is_empty());
            directory.finish().unwrap();
            assert_eq!(directory.names().unwrap(), ["inventory.img", "pages-1.img"]);
            drop(directory);
            assert_eq!(hidden(path.path()), 0);
            let read = Directory::open(path.path()).unwrap();
            assert_eq!(read.read("pages-1.img").unwrap().unwrap().len(), 4096);
            assert_eq!(read.read("pages-2.img").unwrap(), None);
            assert!(read.create("pages-2.img").is_err());
        }
    }

    #[test]
    fn sums_follow_who_writes() {
        let path = tempfile::tempdir().unwrap();
        let directory = Directory::create(path.path(), Durability::Process).unwrap();
        dump(&directory, "a");
        let mut pages = directory.create("pages-2.img").unwrap();
        let mut others = directory.create("pages-3.img").unwrap();
        for part in 1..=5u8 {
            pages.write_all(&vec![part; 3 << 20]).unwrap();
            others.write_all(&vec![part; 3 << 20]).unwrap();
            // The last is left for the end.
            if part < 5 {
                let end = u64::from(part) * (3 << 20);
                directory.is_final("pages-2.img", end).unwrap();
                directory.is_final("pages-3.img", end).unwrap();
            }
        }
        // Made anew: what was summed does not count.
        let mut others = directory.create("pages-3.img").unwrap();
        others.write_all(b"short").unwrap();
        directory.finish().unwrap();
        assert!(directory.has_much_to_sum());
        directory.complete().unwrap();
        assert!(!directory.has_much_to_sum());
        drop(directory);
        let manifest = Manifest::load(path.path()).unwrap().unwrap();
        assert!(manifest.files().all(|(_, record)| record.crc32.is_some()));
        let whole: Vec<u8> = (1..=5u8).flat_map(|part| vec![part; 3 << 20]).collect();
        assert_eq!(manifest.record("pages-2.img"), Some(Record::of(&whole)));
        assert_eq!(manifest.record("pages-3.img"), Some(Record::of(b"short")));
    }

    #[test]
    fn an_unfinished_dump_leaves_the_old_one() {
        let path = tempfile::tempdir().unwrap();
        let first = Directory::create(path.path(), Durability::Process).unwrap();
        dump(&first, "first");
        first.finish().unwrap();
        let second = Directory::create(path.path(), Durability::Process).unwrap();
        dump(&second, "second");
        drop(second);
        drop(first);
        assert_eq!(hidden(path.path()), 0);
        let read = Directory::open(path.path()).unwrap();
        let inventory = read
            .entry::<pb::InventoryEntry>(desc::INVENTORY, ())
            .unwrap();
        assert_eq!(inventory.dump_criu_run_id(), "first");
    }

    #[test]
    fn leftovers_of_the_dead_go_and_those_of_the_living_stay() {
        let path = tempfile::tempdir().unwrap();
        let dead = path.path().join(".criu-rs.partial-1-0");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("core-1.img"), "x").unwrap();
        let living = Directory::create(path.path(), Durability::Process).unwrap();
        assert!(!dead.exists());
        let _another = Directory::create(path.path(), Durability::Process).unwrap();
        living.create("core-1.img").unwrap();
        assert_eq!(hidden(path.path()), 2);
    }

    #[test]
    fn the_page_servers_files_do_not_take_away_the_inventory() {
        let path = tempfile::tempdir().unwrap();
        let dumper = Directory::create(path.path(), Durability::Process).unwrap();
        dump(&dumper, "a");
        dumper.finish().unwrap();
        let server = Directory::create(path.path(), Durability::Manifest).unwrap();
        server.create("pages-65536.img").unwrap();
        server.finish().unwrap();
        assert_eq!(server.names().unwrap().len(), 3);
    }

    #[test]
    fn odd_files_do_not_stop_a_reader() {
        let path = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(
            &path.path().join("core-1.img"),
            nix::sys::stat::Mode::S_IRWXU,
        )
        .unwrap();
        fs::create_dir(path.path().join("core-2.img")).unwrap();
        File::create(path.path().join("core-3.img"))
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        let directory = Directory::open(path.path()).unwrap();
        for name in ["core-1.img", "core-2.img", "core-3.img", "../core-1.img"] {
            assert!(directory.read(name).is_err(), "{name}");
        }
    }

    #[test]
    fn parents_are_many_but_end() {
        let path = tempfile::tempdir().unwrap();
        let at = |n: usize| path.path().join(n.to_string());
        fs::create_dir(at(0)).unwrap();
        for n in 1..=100 {
            fs::create_dir(at(n)).unwrap();
            std::os::unix::fs::symlink(format!("../{}", n - 1), at(n).join("parent")).unwrap();
        }
        let count = || {
            let mut store: Box<dyn Store> = Box::new(Directory::open(at(100)).unwrap());
            let mut count = 0;
            while let Some(next) = store.parent()? {
                store = next;
                count += 1;
            }
            Ok::<_, Error>(count)
        };
        assert_eq!(count().unwrap(), 100);
        std::os::unix::fs::symlink("../100", at(0).join("parent")).unwrap();
        let circle = count();
        assert!(matches!(
            circle,
            Err(Error::Corrupt {
                why: Why::Parents(_),
                ..
            })
        ));
    }
}
