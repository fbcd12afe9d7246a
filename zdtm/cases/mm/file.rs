//! Memory that has a file behind it: shared, private, and private with pages of its own.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;

use libc::{MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE};
use zdtm::{Case, Child, Mapping, PAGE, Result, check, check_eq, fill, verify};

pub(crate) const CASES: &[Case] = &[
    Case::new("file-shared", shared),
    Case::new("file-private", private),
    Case::new("file-private-read-only", read_only),
    Case::new("file-offsets", offsets),
    Case::new("file-beyond-end", beyond_end),
    Case::new("file-unlinked", unlinked),
    Case::new("file-unlinked-hardlink", hardlink).options(&["--link-remap"]),
    Case::new("file-mprotect-later", mprotect_later),
];

const READ_WRITE: i32 = PROT_READ | PROT_WRITE;

fn file(name: &str, pages: usize, seed: u64) -> Result<File> {
    let mut bytes = vec![0; pages * PAGE];
    fill(&mut bytes, seed);
    let path = zdtm::dir().join(name);
    fs::write(&path, bytes)?;
    Ok(OpenOptions::new().read(true).write(true).open(path)?)
}

fn map(file: &File, pages: usize, protection: i32, flags: i32, offset: usize) -> Result<Mapping> {
    Mapping::new(
        pages * PAGE,
        protection,
        flags,
        file.as_raw_fd(),
        i64::try_from(offset * PAGE)?,
    )
}

/// Two processes and the file see each other's writes, before and after.
fn shared() -> Result<()> {
    let mut file = file("shared", 8, 1)?;
    let area = map(&file, 8, READ_WRITE, MAP_SHARED, 0)?;
    fill(area.part(PAGE, PAGE).bytes(), 2);
    let child = Child::spawn("child", move || {
        Child::checkpoint();
        verify(area.part(PAGE, PAGE).bytes(), 2)?;
        fill(area.part(2 * PAGE, PAGE).bytes(), 3);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()?;
    verify(area.part(2 * PAGE, PAGE).bytes(), 3)?;
    let mut bytes = vec![0; PAGE];
    file.seek(SeekFrom::Start(2 * 4096))?;
    file.read_exact(&mut bytes)?;
    verify(&bytes, 3)
}

/// Own pages stay own; the others show what is in the file now.
fn private() -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = file("private", 8, 1)?;
    let area = map(&file, 8, READ_WRITE, MAP_PRIVATE, 0)?;
    fill(area.part(3 * PAGE, PAGE).bytes(), 2);
    zdtm::checkpoint()?;
    verify(area.part(3 * PAGE, PAGE).bytes(), 2)?;
    verify(area.part(0, 3 * PAGE).bytes(), 1)?;
    let mut bytes = vec![0; PAGE];
    fill(&mut bytes, 4);
    file.write_all_at(&bytes, 5 * 4096)?;
    verify(area.part(5 * PAGE, PAGE).bytes(), 4)?;
    let mut found = vec![0; 4 * PAGE];
    file.read_exact_at(&mut found, 0)?;
    let mut whole = vec![0; 8 * PAGE];
    fill(&mut whole, 1);
    check!(found == whole[..4 * PAGE], "the write went to the file");
    Ok(())
}

/// Written, then made read-only: still a page of its own.
fn read_only() -> Result<()> {
    let file = file("read-only", 4, 1)?;
    let area = map(&file, 4, READ_WRITE, MAP_PRIVATE, 0)?;
    fill(area.part(PAGE, PAGE).bytes(), 2);
    area.protect(PROT_READ)?;
    let dark = map(&file, 4, READ_WRITE, MAP_PRIVATE, 0)?;
    fill(dark.part(2 * PAGE, PAGE).bytes(), 3);
    dark.protect(libc::PROT_NONE)?;
    drop(file);
    zdtm::checkpoint()?;
    verify(area.part(0, PAGE).bytes(), 1)?;
    verify(area.part(PAGE, PAGE).bytes(), 2)?;
    dark.protect(PROT_READ)?;
    verify(dark.part(2 * PAGE, PAGE).bytes(), 3)
}

/// One file mapped twelve times, at various offsets, with and without own pages, descriptor closed.
fn offsets() -> Result<()> {
    let page = zdtm::page_size();
    let each = page / PAGE;
    let file = file("offsets", 12 * each, 1)?;
    let mut whole = vec![0; 12 * page];
    fill(&mut whole, 1);
    let mut areas = Vec::new();
    for offset in 0..12 {
        let flags = if offset % 2 == 0 {
            MAP_PRIVATE
        } else {
            MAP_SHARED
        };
        let area = map(
            &file,
            (12 - offset) * each,
            READ_WRITE,
            flags,
            offset * each,
        )?;
        if offset % 4 == 0 {
            fill(area.part(0, page).bytes(), 100 + offset as u64);
        }
        areas.push(area);
    }
    drop(file);
    zdtm::checkpoint()?;
    for (offset, area) in areas.iter().enumerate() {
        let own = usize::from(offset % 4 == 0);
        if own == 1 {
            verify(area.part(0, page).bytes(), 100 + offset as u64)?;
        }
        check!(
            area.bytes()[own * page..] == whole[(offset + own) * page..],
            "mapping at offset {offset}"
        );
    }
    Ok(())
}

/// A mapping longer than its file, and a file that ends inside of a page.
fn beyond_end() -> Result<()> {
    let file = file("short", 1, 1)?;
    file.set_len(100)?;
    let area = map(&file, 6, READ_WRITE, MAP_PRIVATE, 0)?;
    area.bytes()[200] = 7;
    zdtm::checkpoint()?;
    check_eq!(area.part(0, PAGE).bytes()[200], 7);
    check_eq!(file.metadata()?.len(), 100);
    file.set_len(3 * 4096)?;
    check_eq!(area.part(2 * PAGE, PAGE).bytes()[0], 0);
    Ok(())
}

/// The mapping is all that is left of the file.
fn unlinked() -> Result<()> {
    let file = file("unlinked", 8, 1)?;
    let shared = map(&file, 8, READ_WRITE, MAP_SHARED, 0)?;
    let private = map(&file, 8, READ_WRITE, MAP_PRIVATE, 0)?;
    fill(private.part(PAGE, PAGE).bytes(), 2);
    fs::remove_file(zdtm::dir().join("unlinked"))?;
    drop(file);
    let child = Child::spawn("child", move || {
        Child::checkpoint();
        fill(shared.part(5 * PAGE, PAGE).bytes(), 5);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    verify(private.part(PAGE, PAGE).bytes(), 2)?;
    verify(private.part(0, PAGE).bytes(), 1)?;
    verify(shared.part(0, PAGE).bytes(), 1)?;
    child.finish()?;
    verify(shared.part(5 * PAGE, PAGE).bytes(), 5)?;
    verify(private.part(5 * PAGE, PAGE).bytes(), 5)
}

/// The name it was opened by is gone, another is there.
fn hardlink() -> Result<()> {
    let file = file("name", 4, 1)?;
    let area = map(&file, 4, READ_WRITE, MAP_SHARED, 0)?;
    fs::hard_link(zdtm::dir().join("name"), zdtm::dir().join("other"))?;
    fs::remove_file(zdtm::dir().join("name"))?;
    drop(file);
    zdtm::checkpoint()?;
    verify(area.bytes(), 1)?;
    fill(area.bytes(), 2);
    verify(&fs::read(zdtm::dir().join("other"))?, 2)
}

/// Mapped read-only from a descriptor that can write: it may become writable later.
fn mprotect_later() -> Result<()> {
    let file = file("later", 2, 1)?;
    let writable = map(&file, 2, PROT_READ, MAP_SHARED, 0)?;
    let read_only = File::open(zdtm::dir().join("later"))?;
    let never = map(&read_only, 2, PROT_READ, MAP_SHARED, 0)?;
    drop((file, read_only));
    zdtm::checkpoint()?;
    writable.protect(READ_WRITE)?;
    fill(writable.bytes(), 2);
    verify(never.bytes(), 2)?;
    check!(
        never.protect(READ_WRITE).is_err(),
        "the file was opened for reading only"
    );
    Ok(())
}
