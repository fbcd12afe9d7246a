//! Any bytes as a pagemap: what is accepted is in order, and every page is found where it is said to be.

use criu_image::pages::{PageFlags, Pagemap};
use criu_image::{Bytes, ImageReader, desc, pb};

const PAGE: u64 = 4096;

/// Tries the bytes.
pub(crate) fn run(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let Ok(mut reader) = ImageReader::new(desc::PAGEMAP, "pagemap-1.img", bytes) else {
        return;
    };
    let Ok(Some(head)) = reader.read::<pb::PagemapHead>() else {
        return;
    };
    let mut map = Pagemap::new(head.pages_id.into(), PAGE);
    while let Ok(Some(entry)) = reader.read::<pb::PagemapEntry>() {
        if let Err(why) = map.push(&entry) {
            let _ = why.to_string();
            break;
        }
    }
    check(&map);
}

fn check(map: &Pagemap) {
    let (mut end, mut offset) = (0, 0);
    for extent in map.extents() {
        let length = extent.len(PAGE);
        assert!(length > 0 && extent.vaddr.is_multiple_of(PAGE) && extent.vaddr >= end);
        end = extent
            .vaddr
            .checked_add(length)
            .expect("inside of the address space");
        assert_eq!(extent.offset, offset);
        if extent.flags.contains(PageFlags::PRESENT) {
            offset += length;
        }
        for page in [extent.vaddr, extent.vaddr + length / 2, end - 1] {
            assert_eq!(map.find(page), Some(extent));
        }
        assert_eq!(
            map.overlapping(extent.vaddr, end).collect::<Vec<_>>(),
            [extent]
        );
    }
    assert_eq!(map.find(end), None);
    assert_eq!(map.pages_len(), offset);
    assert!(map.check_pages_len("pages-1.img", offset).is_ok());
    assert_eq!(
        offset == 0,
        map.check_pages_len("pages-1.img", offset.saturating_sub(1))
            .is_ok()
    );
}
