//! Memory shared by processes: anonymous, memfd, and pages shared until written to.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use libc::{MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE};
use zdtm::{Case, Child, Mapping, PAGE, Result, check, check_eq, fill, ret, skip, verify};

pub(crate) const CASES: &[Case] = &[
    Case::new("shared-anon", anonymous),
    Case::new("shared-anon-part", part),
    Case::new("shared-anon-holes", holes),
    Case::new("shared-anon-opened", opened),
    Case::new("shared-anon-cut", cut),
    Case::new("shared-anon-private", privately),
    Case::new("memfd-mapped", memfd),
    Case::new("memfd-private", memfd_private),
    Case::new("cow", cow),
    Case::new("cow-broken", cow_broken),
];

const READ_WRITE: i32 = PROT_READ | PROT_WRITE;

/// Parent, child and grandchild see each other's writes.
fn anonymous() -> Result<()> {
    let area = Mapping::shared(16 * PAGE)?;
    fill(area.bytes(), 1);
    let child = Child::spawn("child", move || {
        fill(area.part(PAGE, PAGE).bytes(), 2);
        let grandchild = Child::spawn("grandchild", move || {
            Child::checkpoint();
            verify(area.part(PAGE, PAGE).bytes(), 2)?;
            fill(area.part(3 * PAGE, PAGE).bytes(), 3);
            Ok(())
        })?;
        Child::checkpoint();
        grandchild.finish()
    })?;
    zdtm::checkpoint()?;
    verify(area.part(PAGE, PAGE).bytes(), 2)?;
    verify(area.part(0, PAGE).bytes(), 1)?;
    child.finish()?;
    verify(area.part(3 * PAGE, PAGE).bytes(), 3)
}

/// The object behind a mapping, as a file: `/proc/PID/map_files`.
fn open(area: Mapping) -> Result<File> {
    let bytes = area.bytes().as_ptr_range();
    let (start, end) = (bytes.start.addr(), bytes.end.addr());
    let path = format!("/proc/self/map_files/{start:x}-{end:x}");
    match File::options().read(true).write(true).open(path) {
        Ok(file) => Ok(file),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            skip("it may not be opened through /proc/PID/map_files")
        }
        Err(error) => Err(error.into()),
    }
}

/// It is open as a file, too: what is written there is seen in the mappings, and the other way round.
fn opened() -> Result<()> {
    let area = Mapping::shared(8 * PAGE)?;
    fill(area.bytes(), 1);
    let file = open(area)?;
    let child = Child::spawn("child", move || {
        Child::checkpoint();
        verify(area.part(PAGE, PAGE).bytes(), 2)?;
        verify(area.part(0, PAGE).bytes(), 1)
    })?;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    zdtm::checkpoint()?;
    check_eq!(
        std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?,
        link
    );
    let mut page = [0; PAGE];
    fill(&mut page, 2);
    file.write_all_at(&page, PAGE as u64)?;
    child.finish()?;
    fill(area.part(2 * PAGE, PAGE).bytes(), 3);
    file.read_exact_at(&mut page, 2 * PAGE as u64)?;
    verify(&page, 3)
}

/// Nobody maps it any more, and it has a size that no mapping has.
fn cut() -> Result<()> {
    let area = Mapping::shared(zdtm::page_size())?;
    let mut file = open(area)?;
    file.set_len(0)?;
    area.unmap()?;
    file.write_all(b"hello")?;
    file.seek(SeekFrom::Start(3))?;
    zdtm::checkpoint()?;
    check_eq!(file.stream_position()?, 3);
    check_eq!(file.metadata()?.len(), 5);
    let mut text = [0; 5];
    file.read_exact_at(&mut text, 0)?;
    check_eq!(&text, b"hello");
    Ok(())
}

/// Another mapping of it is private, and the file is closed: what is not written there is the object's.
fn privately() -> Result<()> {
    let size = zdtm::page_size();
    let area = Mapping::shared(5 * size)?;
    for page in 0..5 {
        fill(area.part(page * size, size).bytes(), page as u64);
    }
    let file = open(area)?;
    let (own, other) = (
        Mapping::new(
            3 * size,
            READ_WRITE,
            MAP_PRIVATE,
            file.as_raw_fd(),
            size as i64,
        )?,
        Mapping::new(
            3 * size,
            READ_WRITE,
            MAP_SHARED,
            file.as_raw_fd(),
            2 * size as i64,
        )?,
    );
    drop(file);
    fill(own.part(size, size).bytes(), 22);
    zdtm::checkpoint()?;
    verify(own.part(size, size).bytes(), 22)?;
    verify(own.part(0, size).bytes(), 1)?;
    verify(other.part(0, size).bytes(), 2)?;
    fill(other.part(0, size).bytes(), 33);
    verify(area.part(2 * size, size).bytes(), 33)?;
    fill(area.part(3 * size, size).bytes(), 44);
    verify(own.part(2 * size, size).bytes(), 44)
}

/// The parent has unmapped the beginning, the child the end; the middle is shared.
fn part() -> Result<()> {
    let area = Mapping::shared(12 * PAGE)?;
    for page in 0..12 {
        fill(area.part(page * PAGE, PAGE).bytes(), page as u64);
    }
    let child = Child::spawn("child", move || {
        area.part(8 * PAGE, 4 * PAGE).unmap()?;
        Child::checkpoint();
        for page in 0..8 {
            verify(area.part(page * PAGE, PAGE).bytes(), page as u64)?;
        }
        fill(area.part(6 * PAGE, PAGE).bytes(), 66);
        Ok(())
    })?;
    area.part(0, 4 * PAGE).unmap()?;
    zdtm::checkpoint()?;
    for page in 4..12 {
        verify(area.part(page * PAGE, PAGE).bytes(), page as u64)?;
    }
    child.finish()?;
    verify(area.part(6 * PAGE, PAGE).bytes(), 66)
}

/// Pages nobody touched take no memory afterwards either.
fn holes() -> Result<()> {
    let area = Mapping::shared(256 << 20)?;
    fill(area.part(100 << 20, PAGE).bytes(), 1);
    let child = Child::spawn("child", move || {
        Child::checkpoint();
        verify(area.part(100 << 20, PAGE).bytes(), 1)
    })?;
    zdtm::checkpoint()?;
    verify(area.part(100 << 20, PAGE).bytes(), 1)?;
    child.finish()?;
    let shmem: u64 = zdtm::status_field("self", "RssShmem")?
        .trim_end_matches(" kB")
        .parse()?;
    check!(shmem < 1024, "{shmem} kB resident");
    Ok(())
}

fn new_memfd(name: &std::ffi::CStr, flags: u32) -> Result<File> {
    // SAFETY: the name is a C string.
    let fd = ret(unsafe { libc::memfd_create(name.as_ptr(), flags) })?;
    // SAFETY: the descriptor is new and ours.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Descriptor and mapping are one file, in two processes.
fn memfd() -> Result<()> {
    let file = new_memfd(c"some name", 0)?;
    file.set_len(8 * 4096)?;
    let area = Mapping::new(8 * PAGE, READ_WRITE, MAP_SHARED, file.as_raw_fd(), 0)?;
    fill(area.bytes(), 1);
    let child = Child::spawn("child", move || {
        Child::checkpoint();
        verify(area.bytes(), 1)?;
        fill(area.part(2 * PAGE, PAGE).bytes(), 2);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()?;
    let mut page = vec![0; PAGE];
    file.read_exact_at(&mut page, 2 * 4096)?;
    verify(&page, 2)
}

/// Mapped privately, and the descriptor closed.
fn memfd_private() -> Result<()> {
    let mut file = new_memfd(c"private", 0)?;
    let mut bytes = vec![0; 4 * PAGE];
    fill(&mut bytes, 1);
    file.write_all(&bytes)?;
    let area = Mapping::new(4 * PAGE, READ_WRITE, MAP_PRIVATE, file.as_raw_fd(), 0)?;
    fill(area.part(PAGE, PAGE).bytes(), 2);
    drop(file);
    zdtm::checkpoint()?;
    verify(area.part(0, PAGE).bytes(), 1)?;
    verify(area.part(PAGE, PAGE).bytes(), 2)
}

/// The physical page behind each page, in this process; zero for none.
fn frames(area: &Mapping) -> Result<Vec<u64>> {
    let pagemap = File::open("/proc/self/pagemap")?;
    (0..area.length() / PAGE)
        .map(|page| {
            let mut entry = [0; 8];
            pagemap.read_exact_at(&mut entry, ((area.address() / PAGE + page) * 8) as u64)?;
            Ok(u64::from_ne_bytes(entry) & ((1 << 55) - 1))
        })
        .collect()
}

/// Pages that parent and child have had in common since the fork are still one page each.
fn cow() -> Result<()> {
    let area = Mapping::anonymous(32 * PAGE)?;
    fill(area.bytes(), 1);
    if frames(&area)?.contains(&0) {
        return skip("no right to see physical addresses");
    }
    // The child tells its view by this; a shared page is shared in any case.
    let view = Mapping::shared(PAGE)?;
    let child = Child::spawn("child", move || {
        Child::checkpoint();
        verify(area.bytes(), 1)?;
        for (frame, slot) in frames(&area)?.iter().zip(view.bytes().chunks_mut(8)) {
            slot.copy_from_slice(&frame.to_ne_bytes());
        }
        Ok(())
    })?;
    zdtm::checkpoint()?;
    verify(area.bytes(), 1)?;
    child.finish()?;
    let childs: Vec<u8> = frames(&area)?
        .iter()
        .flat_map(|frame| frame.to_ne_bytes())
        .collect();
    check!(
        view.bytes()[..childs.len()] == childs[..],
        "the pages have been copied"
    );
    Ok(())
}

/// Pages that either has written to are not.
fn cow_broken() -> Result<()> {
    let area = Mapping::anonymous(4 * PAGE)?;
    fill(area.bytes(), 1);
    let child = Child::spawn("child", move || {
        fill(area.part(PAGE, PAGE).bytes(), 2);
        Child::checkpoint();
        verify(area.part(PAGE, PAGE).bytes(), 2)?;
        verify(area.part(0, PAGE).bytes(), 1)?;
        fill(area.part(3 * PAGE, PAGE).bytes(), 3);
        Ok(())
    })?;
    let mut whole = vec![0; 4 * PAGE];
    fill(&mut whole, 1);
    fill(area.part(2 * PAGE, PAGE).bytes(), 4);
    zdtm::checkpoint()?;
    child.finish()?;
    verify(area.part(2 * PAGE, PAGE).bytes(), 4)?;
    check_eq!(
        zdtm::checksum(area.part(PAGE, PAGE).bytes()),
        zdtm::checksum(&whole[PAGE..2 * PAGE])
    );
    check_eq!(
        zdtm::checksum(area.part(3 * PAGE, PAGE).bytes()),
        zdtm::checksum(&whole[3 * PAGE..])
    );
    Ok(())
}
