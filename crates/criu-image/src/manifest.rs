//! The manifest: what every image of a dump was when it was written.
//!
//! CRIU does not have it and does not mind it. It comes in two steps, because a checksum costs a pass
//! over all pages: sizes, and checksums of what was in memory anyway, when the dump is committed; the
//! other checksums when the tasks are running again.
//! Tools that rewrite images (`crit encode`, deduplication) make it wrong; build it anew after them.
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::desc;
use crate::directory::{Directory, list};
use crate::error::{Error, Result, Why};
use crate::follow::{BUFFER, Prefix, Prefixes};
use crate::pb;
use crate::store::Store as _;

/// File name of the manifest.
pub const NAME: &str = "criu-rs-manifest.json";
/// The version this crate writes, and the only one it reads.
const VERSION: u32 = 1;

/// What every image of a dump was when it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    /// `dump_criu_run_id` of the inventory: CRIU may have dumped into the directory since.
    run_id: Option<String>,
    files: BTreeMap<String, Record>,
}

/// What one image was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its length in bytes.
    pub size: u64,
    /// CRC-32 (of IEEE 802.3) of its content; none until [`Manifest::complete`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crc32: Option<u32>,
}

/// What differs from the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// The file is not there.
    #[error("the file is gone")]
    Gone,
    /// The file has another length.
    #[error("{found} bytes long, was {expected}")]
    Size {
        /// At dump.
        expected: u64,
        /// Now.
        found: u64,
    },
    /// The file has another content.
    #[error("checksum {found:08x}, was {expected:08x}")]
    Checksum {
        /// At dump.
        expected: u32,
        /// Now.
        found: u32,
    },
}

/// How thoroughly to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Names and lengths. Costs next to nothing.
    Sizes,
    /// The images of pages, with their contents. For who compares the others as they are read.
    Pages,
    /// All contents, where the manifest has checksums.
    Contents,
}

impl Depth {
    pub(crate) fn includes(self, name: &str) -> bool {
        self != Self::Pages || name.starts_with("pages-")
    }
}

/// What a manifest was good for. A difference is an [`Error::Changed`] instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {
    /// There is none: CRIU wrote the images.
    None,
    /// It is of another dump than the inventory: CRIU dumped here later.
    Stale,
    /// All files are as they were, as far as compared: so many, of which so many by content.
    Same {
        /// Files in the manifest.
        files: usize,
        /// Files whose content was compared.
        contents: usize,
    },
}

impl Manifest {
    /// Reads all images of a directory for their checksums, and writes its manifest.
    pub fn build(directory: &Path) -> Result<Self> {
        let mut manifest = Self::of_known(directory, &BTreeMap::new())?;
        manifest.sum(directory, &Prefixes::new())?;
        manifest.save(directory, true)?;
        Ok(manifest)
    }

    /// Adds the checksums that a manifest has not got yet.
    pub fn complete(directory: &Path) -> Result<()> {
        let Some(mut manifest) = Self::load(directory)? else {
            return Self::build(directory).map(drop);
        };
        if manifest.sum(directory, &Prefixes::new())? {
            manifest.save(directory, true)?;
        }
        Ok(())
    }

    /// Reads images whose checksums are not known, from where those that are `begun` end; whether there
    /// were any.
    pub(crate) fn sum(&mut self, directory: &Path, begun: &Prefixes) -> Result<bool> {
        let unknown = self.files().filter(|(_, record)| record.crc32.is_none());
        let names: Vec<String> = unknown.map(|(name, _)| name.to_owned()).collect();
        let begun = |name: &String| begun.get(name).cloned().unwrap_or_default();
        let begun: Vec<Prefix> = names.iter().map(begun).collect();
        for (name, (size, crc32)) in names.iter().zip(checksums(directory, &names, begun)?) {
            let crc32 = Some(crc32);
            self.files.insert(name.clone(), Record { size, crc32 });
        }
        Ok(!names.is_empty())
    }

    /// Compares a directory with its manifest.
    pub fn verify(directory: &Path, depth: Depth) -> Result<Verified> {
        let Some(manifest) = Self::load(directory)? else {
            return Ok(Verified::None);
        };
        if manifest.is_stale(directory)? {
            return Ok(Verified::Stale);
        }
        Ok(Verified::Same {
            contents: manifest.compare(directory, depth)?,
            files: manifest.files.len(),
        })
    }

    /// Compares the images of a directory; gives how many contents it compared.
    pub(crate) fn compare(&self, directory: &Path, depth: Depth) -> Result<usize> {
        let mut names = Vec::new();
        for (name, record) in self.files().filter(|(name, _)| depth.includes(name)) {
            record.check_size(directory, name)?;
            if depth != Depth::Sizes && record.crc32.is_some() {
                names.push(name.to_owned());
            }
        }
        for (name, (_, found)) in names.iter().zip(checksums(directory, &names, Vec::new())?) {
            let expected = self.files[name].crc32.unwrap_or(found);
            if found != expected {
                return Err(Error::Changed {
                    image: name.clone(),
                    difference: Difference::Checksum { expected, found },
                });
            }
        }
        Ok(names.len())
    }

    /// Reads the manifest of a directory; `None` if it has none.
    pub fn load(directory: &Path) -> Result<Option<Self>> {
        let Some(bytes) = Directory::open(directory)?.read(NAME)? else {
            return Ok(None);
        };
        let bad = |why: String| Error::corrupt(NAME, 0, Why::Manifest(why));
        let manifest: Self =
            serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        match manifest.version {
            VERSION => Ok(Some(manifest)),
            other => Err(bad(format!("version {other}"))),
        }
    }

    /// Whether it is of another dump than the inventory of the directory.
    pub(crate) fn is_stale(&self, directory: &Path) -> Result<bool> {
        Ok(run_id(directory)? != self.run_id)
    }

    /// What it says of an image.
    pub(crate) fn record(&self, name: &str) -> Option<Record> {
        self.files.get(name).copied()
    }

    /// The images it is about.
    pub fn files(&self) -> impl Iterator<Item = (&str, Record)> {
        self.files
            .iter()
            .map(|(name, record)| (name.as_str(), *record))
    }

    /// What can be known without reading the images.
    pub(crate) fn of_known(directory: &Path, known: &BTreeMap<String, Record>) -> Result<Self> {
        let mut files = BTreeMap::new();
        // Logs and statistics go on changing after the dump; images do not.
        for name in list(directory)?
            .into_iter()
            .filter(|name| name.ends_with(".img"))
        {
            let record = match known.get(&name) {
                Some(record) => *record,
                None => Record {
                    size: fs::metadata(directory.join(&name))
                        .map_err(|error| Error::io(&name, "find", error))?
                        .len(),
                    crc32: None,
                },
            };
            files.insert(name, record);
        }
        Ok(Self {
            version: VERSION,
            run_id: run_id(directory)?,
            files,
        })
    }

    /// Writes it; the old one stays until the new one is complete, and on disk if `durable`.
    pub(crate) fn save(&self, directory: &Path, durable: bool) -> Result<()> {
        let failed = |error| Error::io(NAME, "write", error);
        let text = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        let unfinished = directory.join(format!(".{NAME}"));
        let mut file = File::create(&unfinished).map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        if durable {
            file.sync_all().map_err(failed)?;
        }
        fs::rename(unfinished, directory.join(NAME)).map_err(failed)
    }
}

impl Record {
    /// Of these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self {
            size: bytes.len() as u64,
            crc32: Some(crc32fast::hash(bytes)),
        }
    }

    /// Compares an image with these bytes.
    pub(crate) fn check(self, name: &str, bytes: &[u8]) -> Result<()> {
        let found = Self::of(bytes);
        self.check_length(name, found.size)?;
        match (self.crc32, found.crc32) {
            (Some(expected), Some(found)) if expected != found => {
                Err(changed(name, Difference::Checksum { expected, found }))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn check_length(self, name: &str, found: u64) -> Result<()> {
        let expected = self.size;
        if found == expected {
            return Ok(());
        }
        Err(changed(name, Difference::Size { expected, found }))
    }

    fn check_size(self, directory: &Path, name: &str) -> Result<()> {
        let path = directory.join(crate::store::plain(name)?);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(changed(name, Difference::Gone))
            }
            Err(error) => Err(Error::io(name, "find", error)),
            Ok(meta) => self.check_length(name, meta.len()),
        }
    }
}

pub(crate) fn changed(name: &str, difference: Difference) -> Error {
    Error::Changed {
        image: name.to_owned(),
        difference,
    }
}

/// What tells this dump from others in the same directory.
fn run_id(directory: &Path) -> Result<Option<String>> {
    let bytes = Directory::open(directory)?.read(&desc::INVENTORY.file_name(()))?;
    // A damaged inventory is not this function's to report: it leads to a difference or to an error
    // of whoever reads it.
    let message = bytes.as_deref().and_then(|bytes| bytes.get(8..));
    let inventory = message.and_then(|message| pb::InventoryEntry::decode(message).ok());
    Ok(inventory.and_then(|inventory| inventory.dump_criu_run_id))
}

/// A part of a file that one thread sums.
struct Part<'a> {
    file: usize,
    name: &'a str,
    at: u64,
    len: u64,
}

/// Bytes of a part, and of all files together below which no thread is worth its start.
const PART: u64 = 32 << 20;

/// Sizes and checksums of files, on all processors. The sums of the first are begun.
fn checksums(
    directory: &Path,
    names: &[String],
    mut begun: Vec<Prefix>,
) -> Result<Vec<(u64, u32)>> {
    begun.resize(names.len(), Prefix::default());
    let mut parts = Vec::new();
    let mut sizes = Vec::with_capacity(names.len());
    for (file, name) in names.iter().enumerate() {
        let meta = fs::metadata(directory.join(name));
        let size = meta.map_err(|error| Error::io(name, "find", error))?.len();
        if begun[file].len > size {
            // It was cut since.
            begun[file] = Prefix::default();
        }
        let starts = (begun[file].len..size).step_by(usize::try_from(PART).unwrap_or(usize::MAX));
        parts.extend(starts.map(|at| Part {
            file,
            name,
            at,
            len: PART.min(size - at),
        }));
        sizes.push(size);
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        let mut buffer = vec![0; BUFFER];
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let sum = sum_part(directory, part, &mut buffer);
            let sum = sum.map_err(|error| Error::io(part.name, "read", error))?;
            done.push((part.file, part.at, sum));
        }
        Ok(done)
    };
    let total: u64 = parts.iter().map(|part| part.len).sum();
    let threads = match total {
        ..=PART => 1,
        _ => std::thread::available_parallelism().map_or(1, |count| count.get().min(8)),
    };
    let mut sums = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut all: Vec<(usize, u64, crc32fast::Hasher)> = work()?;
        for other in others {
            all.extend(other.join().expect("summing does not panic")?);
        }
        Ok::<_, Error>(all)
    })?;
    sums.sort_by_key(|(file, at, _)| (*file, *at));
    let mut whole: Vec<_> = begun.into_iter().map(|prefix| prefix.sum).collect();
    for (file, _, sum) in &sums {
        whole[*file].combine(sum);
    }
    let whole = whole.into_iter().map(crc32fast::Hasher::finalize);
    Ok(sizes.into_iter().zip(whole).collect())
}

fn sum_part(directory: &Path, part: &Part<'_>, buffer: &mut [u8]) -> io::Result<crc32fast::Hasher> {
    let file = File::open(directory.join(part.name))?;
    Ok(sum_range(&file, part.at, part.len, buffer)?.0)
}

/// The sum of so many bytes of a file, and how many there were.
pub(crate) fn sum_range(
    file: &File,
    at: u64,
    len: u64,
    buffer: &mut [u8],
) -> io::Result<(crc32fast::Hasher, u64)> {
    use std::os::unix::fs::FileExt;
    let mut hasher = crc32fast::Hasher::new();
    let mut done = 0;
    while done < len {
        let want = usize::try_from(len - done).map_or(buffer.len(), |left| left.min(buffer.len()));
        let Some(room) = buffer.get_mut(..want) else {
            break;
        };
        match file.read_at(room, at + done) {
            Ok(0) => break,
            Ok(len) => {
                hasher.update(room.get(..len).unwrap_or_default());
                done += len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok((hasher, done))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Durability, StoreExt as _};

    /// A finished dump of one pages image.
    fn dumped() -> tempfile::TempDir {
        let path = tempfile::tempdir().unwrap();
        let store = Directory::create(path.path(), Durability::Process).unwrap();
        store
            .create("pages-1.img")
            .unwrap()
            .write_all(&[7; 8192])
            .unwrap();
        let inventory = inventory("ours");
        store.write_entry(desc::INVENTORY, (), &inventory).unwrap();
        store.finish().unwrap();
        path
    }

    fn inventory(run: &str) -> pb::InventoryEntry {
        pb::InventoryEntry {
            img_version: 2,
            dump_criu_run_id: Some(run.into()),
            ..Default::default()
        }
    }

    fn difference(path: &Path, depth: Depth) -> Option<Difference> {
        match Manifest::verify(path, depth) {
            Err(Error::Changed { image, difference }) => {
                assert_eq!(image, "pages-1.img");
                Some(difference)
            }
            Err(other) => panic!("{other}"),
            Ok(_) => None,
        }
    }

    #[test]
    fn sizes_come_with_the_dump_and_contents_after() {
        let dir = dumped();
        let verify = |depth| Manifest::verify(dir.path(), depth).unwrap();
        assert_eq!(
            verify(Depth::Contents),
            Verified::Same {
                files: 2,
                // The inventory, which was written in one go.
                contents: 1
            }
        );
        Manifest::complete(dir.path()).unwrap();
        let completed = Manifest::load(dir.path()).unwrap().unwrap();
        assert_eq!(Manifest::build(dir.path()).unwrap(), completed);
        assert_eq!(
            verify(Depth::Contents),
            Verified::Same {
                files: 2,
                contents: 2
            }
        );
        assert_eq!(
            verify(Depth::Sizes),
            Verified::Same {
                files: 2,
                contents: 0
            }
        );
    }

    #[test]
    fn a_difference_is_named() {
        let dir = dumped();
        Manifest::build(dir.path()).unwrap();
        let pages = dir.path().join("pages-1.img");
        fs::write(&pages, [8; 8192]).unwrap();
        assert_eq!(difference(dir.path(), Depth::Sizes), None);
        let other = difference(dir.path(), Depth::Contents);
        assert!(matches!(other, Some(Difference::Checksum { .. })));
        fs::write(&pages, [7; 4096]).unwrap();
        let size = Difference::Size {
            expected: 8192,
            found: 4096,
        };
        assert_eq!(difference(dir.path(), Depth::Sizes), Some(size));
        fs::remove_file(&pages).unwrap();
        assert_eq!(difference(dir.path(), Depth::Sizes), Some(Difference::Gone));
    }

    #[test]
    fn what_criu_wrote_needs_no_manifest() {
        let dir = dumped();
        let mut bytes = desc::INVENTORY.magic.to_le_bytes().to_vec();
        let message = inventory("theirs").encode_to_vec();
        bytes.extend(u32::try_from(message.len()).unwrap().to_le_bytes());
        bytes.extend(message);
        fs::write(dir.path().join("inventory.img"), bytes).unwrap();
        fs::write(dir.path().join("pages-1.img"), "new").unwrap();
        assert_eq!(
            Manifest::verify(dir.path(), Depth::Sizes).unwrap(),
            Verified::Stale
        );
        fs::remove_file(dir.path().join(NAME)).unwrap();
        assert_eq!(
            Manifest::verify(dir.path(), Depth::Sizes).unwrap(),
            Verified::None
        );
    }

    #[test]
    fn a_bad_manifest_is_refused() {
        let dir = dumped();
        for text in ["", "{}", r#"{"version":2,"run_id":null,"files":{}}"#] {
            fs::write(dir.path().join(NAME), text).unwrap();
            let result = Manifest::verify(dir.path(), Depth::Sizes);
            assert!(matches!(result, Err(Error::Corrupt { .. })), "{text}");
        }
        let text = r#"{"version":1,"run_id":"ours","files":{"../../etc/passwd":{"size":1}}}"#;
        fs::write(dir.path().join(NAME), text).unwrap();
        let result = Manifest::verify(dir.path(), Depth::Contents);
        assert!(matches!(result, Err(Error::Refused { .. })));
    }
}
