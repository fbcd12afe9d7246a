//! Groups that hear of events in file systems: fanotify(7).

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use nix::mount::{MsFlags, mount};
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use zdtm::{Case, Result, check, check_eq};

pub(crate) const CASES: &[Case] = &[
    Case::new("fanotify", file),
    Case::new("fanotify-directory", directory),
    Case::new("fanotify-ignored", ignored),
    Case::new("fanotify-mount", of_mount),
    Case::new("fanotify-filesystem", filesystem)
        .stays("its file system goes with the kernel that has it"),
    Case::new("fanotify-names", names),
    Case::new("fanotify-unlinked", unlinked).options(&["--link-remap"]),
    Case::new("fanotify-queued", queued),
    Case::new("fanotify-queued-names", queued_names),
    Case::new("fanotify-queued-unlimited", queued_unlimited)
        .refused("it is never told that some were lost"),
];

fn path(name: &str) -> PathBuf {
    zdtm::dir().join(name)
}

macro_rules! group {
    ($flags:expr) => {
        match Fanotify::init($flags | InitFlags::FAN_NONBLOCK, EventFFlags::O_RDONLY) {
            Ok(group) => group,
            Err(error) => return zdtm::skip(format!("no fanotify here: {error}")),
        }
    };
}

macro_rules! mark {
    ($group:expr, $flags:expr, $mask:expr, $path:expr) => {
        if let Err(error) = $group.mark(
            MarkFlags::FAN_MARK_ADD | $flags,
            $mask,
            nix::fcntl::AT_FDCWD,
            Some(&$path),
        ) {
            return zdtm::skip(format!("no such mark here: {error}"));
        }
    };
}

/// What happened: masks and names.
fn events(group: &Fanotify) -> Vec<(MaskFlags, Option<PathBuf>)> {
    let Ok(events) = group.read_events() else {
        return Vec::new();
    };
    let name = |event: &nix::sys::fanotify::FanotifyEvent| {
        let fd = event.fd()?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
        fs::read_link(format!("/proc/self/fd/{number}")).ok()
    };
    events
        .iter()
        .map(|event| (event.mask(), name(event)))
        .collect()
}

fn file() -> Result<()> {
    fs::write(path("file"), "")?;
    let group = group!(InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC);
    mark!(
        group,
        MarkFlags::empty(),
        MaskFlags::FAN_MODIFY | MaskFlags::FAN_OPEN,
        path("file")
    );
    zdtm::checkpoint()?;
    check_eq!(events(&group), []);
    let mut file = File::options().write(true).open(path("file"))?;
    file.write_all(b"x")?;
    check_eq!(
        events(&group),
        [(
            MaskFlags::FAN_OPEN | MaskFlags::FAN_MODIFY,
            Some(path("file"))
        )]
    );
    check_eq!(events(&group), []);
    Ok(())
}

fn directory() -> Result<()> {
    fs::create_dir(path("directory"))?;
    fs::write(path("directory/file"), "")?;
    let group = group!(InitFlags::FAN_CLASS_NOTIF);
    let mask = MaskFlags::FAN_CLOSE_WRITE | MaskFlags::FAN_EVENT_ON_CHILD;
    mark!(group, MarkFlags::empty(), mask, path("directory"));
    zdtm::checkpoint()?;
    check_eq!(events(&group), []);
    fs::write(path("directory/file"), "x")?;
    check_eq!(
        events(&group),
        [(MaskFlags::FAN_CLOSE_WRITE, Some(path("directory/file")))]
    );
    Ok(())
}

/// Opened is heard of, changed is not, even after a change.
fn ignored() -> Result<()> {
    fs::write(path("file"), "")?;
    let group = group!(InitFlags::FAN_CLASS_NOTIF);
    let heard = MaskFlags::FAN_OPEN | MaskFlags::FAN_MODIFY;
    mark!(group, MarkFlags::empty(), heard, path("file"));
    let flags = MarkFlags::FAN_MARK_IGNORED_MASK | MarkFlags::FAN_MARK_IGNORED_SURV_MODIFY;
    mark!(group, flags, MaskFlags::FAN_MODIFY, path("file"));
    zdtm::checkpoint()?;
    for _ in 0..2 {
        let mut file = File::options().write(true).open(path("file"))?;
        file.write_all(b"x")?;
        check_eq!(events(&group), [(MaskFlags::FAN_OPEN, Some(path("file")))]);
    }
    Ok(())
}

fn heard(group: &Fanotify, name: &str) -> Result<()> {
    let mask = MaskFlags::FAN_CLOSE_WRITE;
    fs::write(path(name), "x")?;
    let found = events(group);
    check!(found.contains(&(mask, Some(path(name)))), "{found:?}");
    Ok(())
}

/// All that is reached through one mount; others make noise there too.
fn of_mount() -> Result<()> {
    let group = group!(InitFlags::FAN_CLASS_NOTIF);
    let target = "/dev/shm".into();
    let _: &PathBuf = &target;
    mark!(
        group,
        MarkFlags::FAN_MARK_MOUNT,
        MaskFlags::FAN_CLOSE_WRITE,
        target
    );
    let name = format!("zdtm-fanotify-{}", std::process::id());
    let file = target.join(name);
    zdtm::checkpoint()?;
    fs::write(&file, "x")?;
    let found = events(&group);
    fs::remove_file(&file)?;
    check!(
        found.contains(&(MaskFlags::FAN_CLOSE_WRITE, Some(file))),
        "{found:?}"
    );
    Ok(())
}

fn filesystem() -> Result<()> {
    let group = group!(InitFlags::FAN_CLASS_NOTIF);
    // One that nobody else writes to.
    let target = std::path::absolute(path("own"))?;
    fs::create_dir(&target)?;
    let tmpfs = Some("tmpfs");
    if mount(tmpfs, &target, tmpfs, MsFlags::empty(), None::<&str>).is_err() {
        return zdtm::skip("no file system for us");
    }
    mark!(
        group,
        MarkFlags::FAN_MARK_FILESYSTEM,
        MaskFlags::FAN_CLOSE_WRITE,
        target
    );
    let file = target.join(format!("zdtm-fanotify-fs-{}", std::process::id()));
    zdtm::checkpoint()?;
    fs::write(&file, "x")?;
    let found = events(&group);
    fs::remove_file(&file)?;
    check!(
        found.contains(&(MaskFlags::FAN_CLOSE_WRITE, Some(file))),
        "{found:?}"
    );
    Ok(())
}

/// A group that is told handles and names, and no descriptors.
fn names() -> Result<()> {
    fs::create_dir(path("directory"))?;
    // FAN_REPORT_FID, FAN_REPORT_DIR_FID, FAN_REPORT_NAME.
    let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::from_bits_retain(0x200 | 0x400 | 0x800);
    let group = group!(flags);
    let mask = MaskFlags::FAN_CREATE | MaskFlags::FAN_ONDIR;
    mark!(group, MarkFlags::empty(), mask, path("directory"));
    zdtm::checkpoint()?;
    File::create(path("directory/new"))?;
    let mut buffer = [0u8; 4096];
    let length = nix::unistd::read(&group, &mut buffer)?;
    check!(length > 24);
    let text = String::from_utf8_lossy(&buffer[24..length]).into_owned();
    check!(text.contains("new"), "{text:?}");
    Ok(())
}

fn unlinked() -> Result<()> {
    fs::write(path("name"), "")?;
    let mut file = File::options().write(true).open(path("name"))?;
    let group = group!(InitFlags::FAN_CLASS_NOTIF);
    mark!(
        group,
        MarkFlags::empty(),
        MaskFlags::FAN_MODIFY,
        path("name")
    );
    fs::remove_file(path("name"))?;
    zdtm::checkpoint()?;
    file.write_all(b"x")?;
    let found = events(&group);
    check_eq!(found.len(), 1);
    check_eq!(found[0].0, MaskFlags::FAN_MODIFY);
    Ok(())
}

/// What has happened is told, or that something has.
fn queued() -> Result<()> {
    fs::write(path("file"), "")?;
    let group = group!(InitFlags::FAN_CLASS_NOTIF);
    mark!(
        group,
        MarkFlags::empty(),
        MaskFlags::FAN_CLOSE_WRITE,
        path("file")
    );
    fs::write(path("file"), "x")?;
    zdtm::checkpoint()?;
    let found = events(&group);
    let kept = (MaskFlags::FAN_CLOSE_WRITE, Some(path("file")));
    let lost = (MaskFlags::FAN_Q_OVERFLOW, None);
    check!(found == [kept] || found == [lost], "{found:?}");
    check_eq!(events(&group), []);
    heard(&group, "file")
}

/// The same of a group that is told names.
fn queued_names() -> Result<()> {
    fs::create_dir(path("directory"))?;
    let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::from_bits_retain(0x200 | 0x400 | 0x800);
    let group = group!(flags);
    let mask = MaskFlags::FAN_CREATE | MaskFlags::FAN_ONDIR;
    mark!(group, MarkFlags::empty(), mask, path("directory"));
    File::create(path("directory/old"))?;
    zdtm::checkpoint()?;
    let read = || -> Result<(u64, String)> {
        let mut buffer = [0u8; 4096];
        let length = nix::unistd::read(&group, &mut buffer)?;
        let mask = u64::from_ne_bytes(buffer[8..16].try_into()?);
        Ok((
            mask,
            String::from_utf8_lossy(&buffer[24..length]).into_owned(),
        ))
    };
    let (mask, name) = read()?;
    let lost = mask == MaskFlags::FAN_Q_OVERFLOW.bits();
    check!(lost || name.contains("old"), "{mask:#x} {name:?}");
    check!(read().is_err(), "no more");
    File::create(path("directory/new"))?;
    let (_, name) = read()?;
    check!(name.contains("new"), "{name:?}");
    Ok(())
}

/// A group that wants to hear of all, however much it is.
fn queued_unlimited() -> Result<()> {
    fs::write(path("file"), "")?;
    let group = group!(InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_UNLIMITED_QUEUE);
    mark!(
        group,
        MarkFlags::empty(),
        MaskFlags::FAN_CLOSE_WRITE,
        path("file")
    );
    fs::write(path("file"), "x")?;
    zdtm::checkpoint()?;
    check_eq!(
        events(&group),
        [(MaskFlags::FAN_CLOSE_WRITE, Some(path("file")))]
    );
    heard(&group, "file")
}
