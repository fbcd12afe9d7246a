//! Pagemaps: which pages of an address space or shared memory object are in the images, and where.
//!
//! The pages image has no structure: it is the present pages in the order of the pagemap. A range may
//! instead be the parent's, to be looked up in the parent directory by the same rules. What is in no
//! range has never been touched: zeroes, or the file's own content.
use crate::desc::{Desc, ImageId};
use crate::error::{Error, ExtentProblem, Result, Why};
use crate::id::PagesId;
use crate::pb;
use crate::store::{Store, StoreExt as _};
use crate::write::ImageWriter;

/// Where the pages of a range are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageFlags(u32);

impl PageFlags {
    /// In the parent directory.
    pub const PARENT: Self = Self(1);
    /// May be brought when first touched; present too, as a rule.
    pub const LAZY: Self = Self(2);
    /// In the pages image.
    pub const PRESENT: Self = Self(4);

    /// The number to write in an image.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all flags of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for PageFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A range of pages that are all in the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Address of the first page; of shared memory, its offset.
    pub vaddr: u64,
    /// Number of pages.
    pub nr_pages: u64,
    /// Where they are.
    pub flags: PageFlags,
    /// If present: where the first page is in the pages image, in bytes.
    pub offset: u64,
}

/// A checked pagemap: ranges are aligned, in order, and do not overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pagemap {
    pages_id: PagesId,
    page_size: u64,
    extents: Vec<Extent>,
    len: u64,
}

impl Pagemap {
    /// Reads and checks a pagemap; `None` if there is no such image.
    ///
    /// The image does not say what a page is: 4096 bytes, except on machines with larger pages.
    pub fn read<S: Store + ?Sized>(
        store: &S,
        desc: &'static Desc,
        id: impl Into<ImageId>,
        page_size: u64,
    ) -> Result<Option<Self>> {
        let Some(mut reader) = store.reader(desc, id)? else {
            return Ok(None);
        };
        let name = reader.name().to_owned();
        let head = reader.read::<pb::PagemapHead>()?;
        let head = head.ok_or_else(|| Error::corrupt(&name, reader.offset(), Why::NotSingle(0)))?;
        let mut pagemap = Self::new(head.pages_id.into(), page_size);
        loop {
            let offset = reader.offset();
            let Some(entry) = reader.read::<pb::PagemapEntry>()? else {
                return Ok(Some(pagemap));
            };
            pagemap
                .push(&entry)
                .map_err(|why| Error::corrupt(&name, offset, why))?;
        }
    }

    /// A pagemap with no ranges yet.
    pub fn new(pages_id: PagesId, page_size: u64) -> Self {
        Self {
            pages_id,
            page_size,
            extents: Vec::new(),
            len: 0,
        }
    }

    /// Appends a range as an image has it, of any version of the format.
    pub fn push(&mut self, entry: &pb::PagemapEntry) -> std::result::Result<(), Why> {
        let vaddr = entry.vaddr;
        let nr_pages = entry.nr_pages.unwrap_or(entry.compat_nr_pages.into());
        let flags = match (entry.flags, entry.in_parent()) {
            (Some(bits), _) => PageFlags(bits),
            (None, true) => PageFlags::PARENT,
            (None, false) => PageFlags::PRESENT,
        };
        let bad = |problem| Why::Extent {
            vaddr,
            count: nr_pages,
            problem,
        };
        let len = nr_pages.checked_mul(self.page_size);
        let len = len.ok_or(bad(ExtentProblem::Overflow))?;
        vaddr.checked_add(len).ok_or(bad(ExtentProblem::Overflow))?;
        if nr_pages == 0 {
            return Err(bad(ExtentProblem::Empty));
        }
        if !vaddr.is_multiple_of(self.page_size) {
            return Err(bad(ExtentProblem::Misaligned));
        }
        if self
            .extents
            .last()
            .is_some_and(|last| vaddr < last.vaddr + last.len(self.page_size))
        {
            return Err(bad(ExtentProblem::Disorder));
        }
        if flags.contains(PageFlags::PARENT | PageFlags::PRESENT) {
            return Err(bad(ExtentProblem::Contradiction));
        }
        self.extents.push(Extent {
            vaddr,
            nr_pages,
            flags,
            offset: self.len,
        });
        if flags.contains(PageFlags::PRESENT) {
            self.len = self
                .len
                .checked_add(len)
                .ok_or(bad(ExtentProblem::Overflow))?;
        }
        Ok(())
    }

    /// The pages image it is about.
    pub fn pages_id(&self) -> PagesId {
        self.pages_id
    }

    /// Bytes in a page.
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// How many bytes the pages image has at least.
    pub fn pages_len(&self) -> u64 {
        self.len
    }

    /// All ranges in order of address.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The range an address is in.
    pub fn find(&self, vaddr: u64) -> Option<&Extent> {
        let after = self.extents.partition_point(|extent| extent.vaddr <= vaddr);
        let extent = self.extents.get(after.checked_sub(1)?)?;
        (vaddr - extent.vaddr < extent.len(self.page_size)).then_some(extent)
    }

    /// The ranges that have a page in `start..end`, whole.
    pub fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = &Extent> {
        let first = self
            .extents
            .partition_point(|e| e.vaddr + e.len(self.page_size) <= start);
        self.extents
            .iter()
            .skip(first)
            .take_while(move |extent| extent.vaddr < end)
    }

    /// Refuses a pages image that is too short.
    pub fn check_pages_len(&self, name: &str, found: u64) -> Result<()> {
        let beyond = |e: &&Extent| {
            e.flags.contains(PageFlags::PRESENT) && e.offset + e.len(self.page_size) > found
        };
        match self.extents.iter().find(beyond) {
            None => Ok(()),
            Some(extent) => {
                let Extent {
                    vaddr,
                    nr_pages: count,
                    offset,
                    ..
                } = *extent;
                let why = Why::Extent {
                    vaddr,
                    count,
                    problem: ExtentProblem::Beyond,
                };
                Err(Error::corrupt(name, offset, why))
            }
        }
    }
}

impl Extent {
    /// Its length in bytes.
    pub fn len(&self, page_size: u64) -> u64 {
        // Cannot overflow in a checked pagemap.
        self.nr_pages.saturating_mul(page_size)
    }
}

/// Writes a pagemap as CRIU 4.2 does, joining ranges that touch.
#[derive(Debug)]
#[must_use]
pub struct PagemapWriter {
    image: ImageWriter<Vec<u8>>,
    checked: Pagemap,
    pending: Option<(u64, u64, PageFlags)>,
}

impl PagemapWriter {
    /// Starts a pagemap for the pages image `pages_id`.
    pub fn new(
        desc: &'static Desc,
        id: impl Into<ImageId>,
        pages_id: PagesId,
        page_size: u64,
    ) -> Result<Self> {
        let mut image = ImageWriter::new(desc, desc.file_name(id), Vec::new())?;
        image.write(&pb::PagemapHead {
            pages_id: pages_id.get(),
        })?;
        Ok(Self {
            image,
            checked: Pagemap::new(pages_id, page_size),
            pending: None,
        })
    }

    /// Appends a range, which must come after all earlier ones.
    pub fn push(&mut self, vaddr: u64, nr_pages: u64, flags: PageFlags) -> Result<()> {
        if let Some((start, count, same)) = &mut self.pending
            && *same == flags
            && count
                .checked_mul(self.checked.page_size)
                .and_then(|len| start.checked_add(len))
                == Some(vaddr)
            && let Some(joined) = count.checked_add(nr_pages)
        {
            *count = joined;
            return Ok(());
        }
        self.flush()?;
        self.pending = Some((vaddr, nr_pages, flags));
        Ok(())
    }

    /// Puts the complete image into a store, and returns what a reader will see.
    pub fn finish<S: Store + ?Sized>(mut self, store: &S) -> Result<Pagemap> {
        self.flush()?;
        let name = self.image.name().to_owned();
        store.put(&name, &self.image.finish()?)?;
        Ok(self.checked)
    }

    fn flush(&mut self) -> Result<()> {
        let Some((vaddr, nr_pages, flags)) = self.pending.take() else {
            return Ok(());
        };
        let entry = pb::PagemapEntry {
            vaddr,
            // Required; no older reader can use a count that does not fit.
            compat_nr_pages: u32::try_from(nr_pages).unwrap_or(0),
            in_parent: None,
            flags: Some(flags.bits()),
            nr_pages: Some(nr_pages),
        };
        self.checked
            .push(&entry)
            .map_err(|why| Error::refused(self.image.name(), why))?;
        self.image.write(&entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Memory, desc};

    const PAGE: u64 = 4096;

    fn entry(vaddr: u64, compat: u32) -> pb::PagemapEntry {
        pb::PagemapEntry {
            vaddr,
            compat_nr_pages: compat,
            ..Default::default()
        }
    }

    fn problem(entries: &[pb::PagemapEntry]) -> Option<ExtentProblem> {
        let mut map = Pagemap::new(1.into(), PAGE);
        entries.iter().find_map(|entry| match map.push(entry) {
            Err(Why::Extent { problem, .. }) => Some(problem),
            Err(other) => panic!("{other}"),
            Ok(()) => None,
        })
    }

    #[test]
    fn old_entries_have_no_flags() {
        let mut map = Pagemap::new(1.into(), PAGE);
        map.push(&pb::PagemapEntry {
            in_parent: Some(true),
            ..entry(0, 2)
        })
        .unwrap();
        map.push(&entry(2 * PAGE, 3)).unwrap();
        map.push(&pb::PagemapEntry {
            nr_pages: Some(1),
            ..entry(9 * PAGE, 0)
        })
        .unwrap();
        let [parent, old, new] = map.extents() else {
            panic!("three ranges")
        };
        assert_eq!((parent.flags, parent.nr_pages), (PageFlags::PARENT, 2));
        assert_eq!(
            (old.flags, old.nr_pages, old.offset),
            (PageFlags::PRESENT, 3, 0)
        );
        assert_eq!((new.nr_pages, new.offset), (1, 3 * PAGE));
        assert_eq!(map.pages_len(), 4 * PAGE);
        assert!(map.check_pages_len("pages-1.img", 4 * PAGE).is_ok());
        assert!(map.check_pages_len("pages-1.img", 4 * PAGE - 1).is_err());
        assert_eq!(map.find(4 * PAGE), Some(old));
        assert_eq!(map.find(5 * PAGE), None);
        assert_eq!(map.overlapping(PAGE, 3 * PAGE).count(), 2);
    }

    #[test]
    fn impossible_ranges_are_refused() {
        let huge = pb::PagemapEntry {
            nr_pages: Some(u64::MAX),
            ..entry(0, 0)
        };
        let both = pb::PagemapEntry {
            flags: Some(5),
            ..entry(0, 1)
        };
        let last = pb::PagemapEntry {
            nr_pages: Some(2),
            ..entry(0u64.wrapping_sub(PAGE), 0)
        };
        assert_eq!(problem(&[huge]), Some(ExtentProblem::Overflow));
        assert_eq!(problem(&[last]), Some(ExtentProblem::Overflow));
        assert_eq!(problem(&[both]), Some(ExtentProblem::Contradiction));
        assert_eq!(problem(&[entry(1, 1)]), Some(ExtentProblem::Misaligned));
        assert_eq!(problem(&[entry(0, 0)]), Some(ExtentProblem::Empty));
        assert_eq!(
            problem(&[entry(0, 2), entry(PAGE, 1)]),
            Some(ExtentProblem::Disorder)
        );
        assert_eq!(problem(&[entry(0, 2), entry(2 * PAGE, 1)]), None);
    }

    #[test]
    fn the_writer_joins_and_counts_twice() {
        for page in [4 << 10, 16 << 10, 64 << 10] {
            joins_and_counts_twice(page);
        }
    }

    fn joins_and_counts_twice(page: u64) {
        let store = Memory::new();
        let mut writer = PagemapWriter::new(desc::PAGEMAP, 42u32, 3.into(), page).unwrap();
        writer.push(0, 1, PageFlags::PRESENT).unwrap();
        writer.push(page, 1, PageFlags::PRESENT).unwrap();
        writer.push(2 * page, 1 << 33, PageFlags::PARENT).unwrap();
        let written = writer.finish(&store).unwrap();
        store.finish().unwrap();
        let read = Pagemap::read(&store, desc::PAGEMAP, 42u32, page)
            .unwrap()
            .unwrap();
        assert_eq!(read, written);
        assert_eq!(read.extents().len(), 2);
        assert_eq!(read.pages_len(), 2 * page);
        let other = Pagemap::read(&store, desc::PAGEMAP, 42u32, 8 * page);
        assert!(
            other.is_err(),
            "a machine with larger pages cannot have them"
        );

        let mut reader = store.reader(desc::PAGEMAP, 42u32).unwrap().unwrap();
        reader.read::<pb::PagemapHead>().unwrap();
        let small = reader.read::<pb::PagemapEntry>().unwrap().unwrap();
        let large = reader.read::<pb::PagemapEntry>().unwrap().unwrap();
        assert_eq!((small.compat_nr_pages, small.nr_pages), (2, Some(2)));
        assert_eq!((large.compat_nr_pages, large.nr_pages), (0, Some(1 << 33)));
    }
}
