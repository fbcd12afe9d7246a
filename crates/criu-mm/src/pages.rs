//! Where the pages of an address space or of an object are: in which file, at which offset.
//!
//! An incremental dump leaves pages in its parents; here all that is resolved.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use criu_image::pages::{Extent, PageFlags, Pagemap};
use criu_image::{Desc, ImageId, Store, desc};
use criu_kind::{Error, Result};

use crate::page_size;
use crate::shared::{huge_page, put};

/// A run of pages in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Which of the files.
    pub(crate) file: usize,
    /// Where in it `start` is.
    pub(crate) offset: u64,
}

/// All pages of an address space or of an object.
#[derive(Debug, Default)]
pub struct Pages {
    files: Vec<File>,
    runs: Vec<Stored>,
}

impl Pages {
    /// Reads and checks a pagemap and opens what it refers to; `None` if there is no such pagemap.
    pub fn load(
        store: &dyn Store,
        desc: &'static Desc,
        id: impl Into<ImageId>,
    ) -> Result<Option<Self>> {
        load(store, desc, id.into())
    }

    /// The files. Tasks read them by the same numbers as the driver, so they are open before the first
    /// task is born.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// All runs in order of address.
    pub(crate) fn runs(&self) -> &[Stored] {
        &self.runs
    }

    /// The number of a file's descriptor, here and in every task.
    pub(crate) fn fd(&self, file: usize) -> i32 {
        self.files[file].as_raw_fd()
    }

    /// The runs within `start..end`, cut to it.
    pub(crate) fn within(&self, start: u64, end: u64) -> impl Iterator<Item = Stored> {
        let first = self.runs.partition_point(|run| run.end <= start);
        let runs = self.runs[first..]
            .iter()
            .take_while(move |run| run.start < end);
        runs.map(move |run| run.cut(start, end))
    }

    /// Writes all of it into a new object of `size` bytes, at the same places.
    pub fn copy_to(&self, object: &File, size: u64) -> Result<()> {
        let huge = huge_page(object)?;
        let mut buffer = vec![0; 256 << 10];
        for run in &self.runs {
            let end = run.end.min(size);
            for at in (run.start..end).step_by(buffer.len()) {
                let length =
                    usize::try_from(end - at).map_or(buffer.len(), |n| n.min(buffer.len()));
                let part = &mut buffer[..length];
                self.read(at, part)?;
                put(object, huge, at, part)?;
            }
        }
        Ok(())
    }

    /// Reads the content at `at`; what is not there is zeroes.
    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        let mut done = 0;
        for run in self.within(at, at + bytes.len() as u64) {
            let from = usize::try_from(run.start - at).unwrap_or(0);
            let to = usize::try_from(run.end - at).unwrap_or(0);
            bytes[done..from].fill(0);
            self.files[run.file]
                .read_exact_at(&mut bytes[from..to], run.offset)
                .map_err(Error::io("pread(pages image)"))?;
            done = to;
        }
        bytes[done..].fill(0);
        Ok(())
    }
}

impl Stored {
    fn cut(&self, start: u64, end: u64) -> Self {
        let from = self.start.max(start);
        Self {
            start: from,
            end: self.end.min(end),
            file: self.file,
            offset: self.offset + (from - self.start),
        }
    }
}

fn load(store: &dyn Store, desc: &'static Desc, id: ImageId) -> Result<Option<Pages>> {
    let Some(pagemap) = Pagemap::read(store, desc, id.clone(), page_size())? else {
        return Ok(None);
    };
    let image = desc.file_name(id.clone());
    let mut pages = Pages::default();
    if pagemap.pages_len() > 0 {
        let name = desc::PAGES.file_name(pagemap.pages_id());
        let file = store
            .open(&name)?
            .ok_or_else(|| Error::corrupt(&image, format!("{name} is missing")))?;
        let length = file
            .metadata()
            .map_err(Error::io("fstat(pages image)"))?
            .len();
        pagemap.check_pages_len(&name, length)?;
        pages.files.push(file);
    }
    let mut parent: Option<Pages> = None;
    for extent in pagemap.extents() {
        if extent.flags.contains(PageFlags::PRESENT) {
            pages.push(Stored {
                start: extent.vaddr,
                end: extent.vaddr + extent.len(page_size()),
                file: 0,
                offset: extent.offset,
            });
        } else if extent.flags.contains(PageFlags::PARENT) {
            if parent.is_none() {
                let from = store
                    .parent()?
                    .map(|store| load(&*store, desc, id.clone()))
                    .transpose()?;
                parent = Some(from.flatten().unwrap_or_default());
            }
            if let Some(parent) = &parent {
                pages.take_from(parent, extent, &image)?;
            }
        } else {
            let why = format!(
                "the pages at {:#x} are lazy and not in the image",
                extent.vaddr
            );
            return Err(Error::corrupt(&image, why));
        }
    }
    if let Some(parent) = parent {
        pages.files.extend(parent.files);
    }
    Ok(Some(pages))
}

impl Pages {
    fn push(&mut self, run: Stored) {
        match self.runs.last_mut() {
            Some(last)
                if last.end == run.start
                    && last.file == run.file
                    && last.offset + (last.end - last.start) == run.offset =>
            {
                last.end = run.end;
            }
            _ => self.runs.push(run),
        }
    }

    /// Takes the runs of the parent, whose files will follow ours. A page that it has not got is one
    /// that never was: a parent that was read while it ran may have missed it, so CRIU refuses too.
    fn take_from(&mut self, parent: &Self, extent: &Extent, image: &str) -> Result<()> {
        let (start, end) = (extent.vaddr, extent.vaddr + extent.len(page_size()));
        let shift = self.own_files();
        let mut at = start;
        for run in parent.within(start, end) {
            if run.start != at {
                break;
            }
            at = run.end;
            self.push(Stored {
                file: run.file + shift,
                ..run
            });
        }
        if at < end {
            return Err(Error::corrupt(
                image,
                format!("the parent has no page at {at:#x}"),
            ));
        }
        Ok(())
    }

    fn own_files(&self) -> usize {
        self.files.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::tests::each_size;
    use criu_image::{Memory, pages::PagemapWriter};

    #[test]
    fn pages_of_a_parent() {
        each_size(|page| {
            let run = |start, end, file, offset| Stored {
                start: start * page,
                end: end * page,
                file,
                offset: offset * page,
            };
            let pages = Pages {
                files: Vec::new(),
                runs: vec![run(1, 4, 0, 8), run(6, 7, 1, 0)],
            };
            let extent = |at, nr_pages| Extent {
                vaddr: at * page,
                nr_pages,
                flags: PageFlags::PARENT,
                offset: 0,
            };
            let mut child = Pages::default();
            child.take_from(&pages, &extent(2, 2), "x").expect("there");
            assert_eq!(child.runs, [run(2, 4, 0, 9)]);
            child
                .take_from(&pages, &extent(6, 2), "x")
                .expect_err("not there");
        });
    }

    #[test]
    fn an_object_out_and_back() {
        let store = Memory::new();
        let object = || {
            File::from(
                nix::sys::memfd::memfd_create("x", nix::sys::memfd::MFdFlags::empty())
                    .expect("new"),
            )
        };
        let (one, other) = (object(), object());
        let size = 0x3123;
        one.set_len(size).expect("sized");
        one.write_all_at(b"first", 0x10).expect("write");
        one.write_all_at(b"last", size - 4).expect("write");
        let mut options = crate::DrainOptions {
            in_target: false,
            next_pages: 4,
        };
        let id = criu_image::id::ShmId::new(9);
        let stats = crate::drain_object(&one, size, id, &store, &mut options).expect("written");
        assert_eq!(
            (
                stats.shared_scanned,
                stats.shared_written,
                options.next_pages
            ),
            (4, 2, 5)
        );
        store.finish().expect("finish");
        let pages = Pages::load(&store, desc::SHMEM_PAGEMAP, id)
            .expect("good")
            .expect("there");
        other.set_len(size).expect("sized");
        pages.copy_to(&other, size).expect("copied");
        let (mut first, mut second) = (vec![0; 0x3123], vec![1; 0x3123]);
        one.read_exact_at(&mut first, 0).expect("read");
        other.read_exact_at(&mut second, 0).expect("read");
        assert!(first == second);
    }

    #[test]
    fn content_and_short_files() {
        each_size(|page| {
            let bytes = |pages: u64| usize::try_from(pages * page).expect("small");
            let store = Memory::new();
            let mut writer = PagemapWriter::new(desc::PAGEMAP, 7u32, 1.into(), page).expect("new");
            writer.push(16 * page, 1, PageFlags::PRESENT).expect("push");
            writer.push(19 * page, 1, PageFlags::PRESENT).expect("push");
            writer.finish(&store).expect("finish");
            store
                .create("pages-1.img")
                .expect("new")
                .write_all_at(&vec![7; bytes(2)], 0)
                .expect("write");
            store.finish().expect("finish");
            let pages = Pages::load(&store, desc::PAGEMAP, 7u32)
                .expect("good")
                .expect("there");
            let mut room = vec![1; bytes(4)];
            pages.read(16 * page, &mut room).expect("read");
            let all = |range: std::ops::Range<u64>, byte| {
                let range = bytes(range.start)..bytes(range.end);
                room[range].iter().all(|found| *found == byte)
            };
            assert!(all(0..1, 7) && all(1..3, 0) && all(3..4, 7));
            let short = vec![7; bytes(2) - 1];
            store.insert("pages-1.img", &short).expect("replaced");
            Pages::load(&store, desc::PAGEMAP, 7u32).expect_err("too short");
            let none = Pages::load(&store, desc::PAGEMAP, 8u32).expect("none");
            assert!(none.is_none());
        });
    }
}
