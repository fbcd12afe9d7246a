//! Files with no name left.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use zdtm::{Case, Child, Result, check, check_eq, fill, ret, skip, verify};

pub(crate) const CASES: &[Case] = &[
    Case::new("ghost", content),
    // The link of a file whose name is taken cannot be what it was.
    Case::new("ghost-name-reused", name_reused).changes(&["fd/0003"]),
    Case::new("ghost-attributes", attributes),
    Case::new("ghost-times", times),
    Case::new("ghost-xattr", xattr),
    Case::new("ghost-shared", shared),
    Case::new("ghost-reopened", reopened),
    Case::new("ghost-two-names", two_names),
    Case::new("ghost-tmpfile", tmpfile).changes(&["fd/0003"]),
    Case::new("ghost-sparse", sparse),
    Case::new("ghost-holes", holes),
    Case::new("ghost-too-large", too_large)
        .dump_options(&["--ghost-limit", "1M"])
        .refused("larger than --ghost-limit"),
    Case::new("ghost-in-removed-directory", removed_directory),
    Case::new("link-remap", link_remap).options(&["--link-remap"]),
    Case::new("link-remap-shared", link_remap_shared).options(&["--link-remap"]),
    Case::new("link-remap-not-asked", link_remap).refused("needs --link-remap"),
];

fn path(name: &str) -> PathBuf {
    zdtm::dir().join(name)
}

/// Open for both, with so many bytes of the pattern, and already unlinked.
fn ghost(name: &str, length: usize, seed: u64) -> Result<File> {
    let mut file = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .open(path(name))?;
    let mut bytes = vec![0; length];
    fill(&mut bytes, seed);
    file.write_all(&bytes)?;
    fs::remove_file(path(name))?;
    Ok(file)
}

fn check_content(file: &mut File, length: usize, seed: u64) -> Result<()> {
    let mut found = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut found)?;
    check_eq!(found.len(), length);
    verify(&found, seed)
}

fn content() -> Result<()> {
    let mut file = ghost("gone", 100_003, 11)?;
    file.seek(SeekFrom::Start(77))?;
    let empty = ghost("empty", 0, 0)?;
    zdtm::checkpoint()?;
    check_eq!(file.stream_position()?, 77);
    check_eq!(file.metadata()?.nlink(), 0);
    check_content(&mut file, 100_003, 11)?;
    check_eq!(empty.metadata()?.len(), 0);
    // Nothing is left in the directory, and the name is free.
    check!(
        fs::read_dir(zdtm::dir())?
            .all(|entry| entry.is_ok_and(|entry| entry.file_name() == "ready"))
    );
    File::create_new(path("gone"))?;
    Ok(())
}

/// Another file has the name now.
fn name_reused() -> Result<()> {
    let mut old = ghost("name", 5000, 1)?;
    let mut new = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .open(path("name"))?;
    new.write_all(b"the new one")?;
    zdtm::checkpoint()?;
    check_content(&mut old, 5000, 1)?;
    check_eq!(old.metadata()?.nlink(), 0);
    check_eq!(fs::read(path("name"))?, b"the new one");
    check_eq!(fs::metadata(path("name"))?.ino(), new.metadata()?.ino());
    Ok(())
}

fn attributes() -> Result<()> {
    let files = [
        (0o4711, 1000, 1001),
        (0o000, 0, 7),
        (0o1666, 4_000_000_000, 65_535),
    ]
    .into_iter()
    .enumerate()
    .map(|(index, (mode, user, group))| {
        let file = ghost(&format!("gone{index}"), 10, 1)?;
        std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
        file.set_permissions(Permissions::from_mode(mode))?;
        Ok((file, mode, user, group))
    })
    .collect::<Result<Vec<_>>>()?;
    zdtm::checkpoint()?;
    for (file, mode, user, group) in files {
        let meta = file.metadata()?;
        check_eq!(
            (meta.mode(), meta.uid(), meta.gid()),
            (libc::S_IFREG | mode, user, group)
        );
    }
    Ok(())
}

/// To the nanosecond.
fn times() -> Result<()> {
    let file = ghost("gone", 10, 1)?;
    let times = [
        libc::timespec {
            tv_sec: 1_000_000_000,
            tv_nsec: 123_456_789,
        },
        libc::timespec {
            tv_sec: 1_234_567_890,
            tv_nsec: 987_654_321,
        },
    ];
    // SAFETY: two times, as the call wants.
    ret(unsafe { libc::futimens(file.as_raw_fd(), times.as_ptr()) })?;
    zdtm::checkpoint()?;
    let meta = file.metadata()?;
    check_eq!(
        (meta.mtime(), meta.mtime_nsec() / 1000),
        (1_234_567_890, 987_654)
    );
    check_eq!(
        (meta.atime(), meta.atime_nsec() / 1000),
        (1_000_000_000, 123_456)
    );
    Ok(())
}

/// Extended attributes, an access control list among them.
fn xattr() -> Result<()> {
    let file = ghost("gone", 10, 1)?;
    // Version 2: user rw, user 1000 r, group none, mask r, others none.
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in [
        (1u16, 6u16, u32::MAX),
        (2, 4, 1000),
        (4, 0, u32::MAX),
        (16, 4, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(rights.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    let attributes = [
        (c"user.zdtm", b"some \0 bytes".to_vec()),
        (c"trusted.zdtm", b"more".to_vec()),
        (c"system.posix_acl_access", list),
    ];
    for (name, value) in &attributes {
        // SAFETY: name and value live through the call.
        let set = ret(unsafe {
            libc::fsetxattr(
                file.as_raw_fd(),
                name.as_ptr(),
                value.as_ptr().cast(),
                value.len(),
                0,
            )
        });
        if let Err(error) = set {
            return skip(format!("{name:?} on this file system: {error}"));
        }
    }
    zdtm::checkpoint()?;
    for (name, value) in &attributes {
        let mut found = [0u8; 256];
        // SAFETY: the buffer is as long as said.
        let length = unsafe {
            libc::fgetxattr(
                file.as_raw_fd(),
                name.as_ptr(),
                found.as_mut_ptr().cast(),
                found.len(),
            )
        };
        check!(length >= 0, "{name:?} is gone");
        check_eq!(
            &found[..usize::try_from(length)?],
            value.as_slice(),
            "{name:?}"
        );
    }
    Ok(())
}

/// One file, open twice in the parent and once in a child, unlinked: still one file.
fn shared() -> Result<()> {
    let name = path("gone");
    fs::write(&name, "abcdef")?;
    let mut first = File::options().read(true).write(true).open(&name)?;
    let second = File::open(&name)?;
    let childs = File::options().write(true).open(&name)?;
    fs::remove_file(&name)?;
    let child = Child::spawn("child", move || {
        Child::checkpoint();
        childs.write_all_at(b"CHILD", 1)?;
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()?;
    let mut text = String::new();
    first.read_to_string(&mut text)?;
    check_eq!(text, "aCHILD");
    check_eq!(first.metadata()?.ino(), second.metadata()?.ino());
    Ok(())
}

/// Opened again through /proc, with other flags.
fn reopened() -> Result<()> {
    let mut file = ghost("gone", 3000, 1)?;
    let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    zdtm::checkpoint()?;
    check_content(&mut file, 3000, 1)?;
    file.write_all_at(b"xyz", 0)?;
    let mut found = [0; 3];
    again.read_exact_at(&mut found, 0)?;
    check_eq!(&found, b"xyz");
    check!((&again).write(b"x").is_err(), "reopened for reading only");
    Ok(())
}

/// Two names, opened by both, both removed.
fn two_names() -> Result<()> {
    fs::write(path("one"), "text")?;
    fs::hard_link(path("one"), path("two"))?;
    let (one, two) = (File::open(path("one"))?, File::open(path("two"))?);
    fs::remove_file(path("one"))?;
    fs::remove_file(path("two"))?;
    zdtm::checkpoint()?;
    check_eq!(one.metadata()?.ino(), two.metadata()?.ino());
    check_eq!(one.metadata()?.nlink(), 0);
    Ok(())
}

/// Never had a name, and can get one.
fn tmpfile() -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(zdtm::dir());
    let Ok(mut file) = opened else {
        return skip("no O_TMPFILE on this file system");
    };
    file.write_all(b"without a name")?;
    zdtm::checkpoint()?;
    check_eq!(file.metadata()?.nlink(), 0);
    let mut text = String::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_string(&mut text)?;
    check_eq!(text, "without a name");
    Ok(())
}

/// A gigabyte long and a few pages heavy.
fn sparse() -> Result<()> {
    let file = ghost("sparse", 4096, 1)?;
    let mut page = [0; 4096];
    fill(&mut page, 2);
    file.write_all_at(&page, 700 << 20)?;
    file.set_len(1 << 30)?;
    zdtm::checkpoint()?;
    let meta = file.metadata()?;
    check_eq!(meta.len(), 1 << 30);
    check!(
        meta.blocks() * 512 < 1 << 20,
        "{} KiB on disk",
        meta.blocks() / 2
    );
    let mut found = [0; 4096];
    file.read_exact_at(&mut found, 0)?;
    verify(&found, 1)?;
    file.read_exact_at(&mut found, 700 << 20)?;
    verify(&found, 2)?;
    file.read_exact_at(&mut found, (1 << 30) - 4096)?;
    check_eq!(found, [0; 4096]);
    Ok(())
}

/// Every other page a hole.
fn holes() -> Result<()> {
    let file = ghost("holes", 0, 0)?;
    for index in 0..100u64 {
        let mut page = [0; 4096];
        fill(&mut page, index);
        file.write_all_at(&page, index * 8192)?;
    }
    file.set_len(100 * 8192)?;
    zdtm::checkpoint()?;
    check_eq!(file.metadata()?.len(), 100 * 8192);
    check!(
        file.metadata()?.blocks() <= 101 * 8,
        "holes are filled: {} blocks",
        file.metadata()?.blocks()
    );
    for index in 0..100u64 {
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, index * 8192)?;
        verify(&page, index)?;
        file.read_exact_at(&mut page, index * 8192 + 4096)?;
        check_eq!(page, [0; 4096]);
    }
    Ok(())
}

fn too_large() -> Result<()> {
    let mut file = ghost("large", 3 << 20, 1)?;
    zdtm::checkpoint()?;
    check_content(&mut file, 3 << 20, 1)
}

fn removed_directory() -> Result<()> {
    fs::create_dir_all(path("a/b"))?;
    let mut file = ghost("a/b/gone", 1000, 1)?;
    fs::remove_dir(path("a/b"))?;
    fs::remove_dir(path("a"))?;
    zdtm::checkpoint()?;
    check_content(&mut file, 1000, 1)?;
    check!(!path("a").exists(), "the directories came back");
    Ok(())
}

/// The name it was opened by is gone, another one is there: it has to stay that file.
fn link_remap() -> Result<()> {
    fs::write(path("name"), "text")?;
    let mut file = File::options().read(true).write(true).open(path("name"))?;
    fs::hard_link(path("name"), path("other"))?;
    fs::remove_file(path("name"))?;
    zdtm::checkpoint()?;
    check_eq!(file.metadata()?.ino(), fs::metadata(path("other"))?.ino());
    check_eq!(
        file.metadata()?.nlink(),
        1,
        "a helping name was left behind"
    );
    file.write_all(b"TEXT")?;
    check_eq!(fs::read(path("other"))?, b"TEXT");
    check!(!path("name").exists());
    Ok(())
}

fn link_remap_shared() -> Result<()> {
    fs::write(path("name"), "text")?;
    let file = File::open(path("name"))?;
    let childs = File::options().write(true).open(path("name"))?;
    fs::hard_link(path("name"), path("other"))?;
    fs::remove_file(path("name"))?;
    let child = Child::spawn("child", move || {
        Child::checkpoint();
        childs.write_all_at(b"X", 0)?;
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()?;
    let mut found = [0; 4];
    file.read_exact_at(&mut found, 0)?;
    check_eq!(&found, b"Xext");
    check_eq!(file.metadata()?.nlink(), 1);
    Ok(())
}
