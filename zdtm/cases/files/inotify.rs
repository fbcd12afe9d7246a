//! Watches on files and directories: inotify(7).

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use inotify::{EventMask, Inotify, WatchMask};
use zdtm::{Case, Result, check, check_eq};

pub(crate) const CASES: &[Case] = &[
    Case::new("inotify", watches),
    Case::new("inotify-numbers", numbers),
    Case::new("inotify-unlinked", || removed(false)).options(&["--link-remap"]),
    Case::new("inotify-hardlink", || removed(true)).options(&["--link-remap"]),
    Case::new("inotify-quiet", quiet),
    Case::new("inotify-queued", queued),
    Case::new("inotify-irmap", hidden).dump_options(&["--config=../work/dump.conf"]),
];

fn path(name: &str) -> PathBuf {
    zdtm::dir().join(name)
}

/// What has happened, as (watch, mask, name).
fn events(inotify: &mut Inotify) -> Vec<(i32, EventMask, String)> {
    let mut buffer = [0; 8192];
    let Ok(events) = inotify.read_events(&mut buffer) else {
        return Vec::new();
    };
    let text =
        |name: Option<&std::ffi::OsStr>| name.unwrap_or_default().to_string_lossy().into_owned();
    events
        .map(|event| {
            (
                event.wd.get_watch_descriptor_id(),
                event.mask,
                text(event.name),
            )
        })
        .collect()
}

fn watch(inotify: &Inotify, name: &str, mask: WatchMask) -> Result<i32> {
    Ok(inotify
        .watches()
        .add(path(name), mask)?
        .get_watch_descriptor_id())
}

fn watches() -> Result<()> {
    fs::create_dir(path("directory"))?;
    fs::write(path("file"), "")?;
    let mut inotify = Inotify::init()?;
    let directory = watch(&inotify, "directory", WatchMask::CREATE | WatchMask::DELETE)?;
    let file = watch(&inotify, "file", WatchMask::MODIFY)?;
    zdtm::checkpoint()?;
    check_eq!(events(&mut inotify), []);
    File::create(path("directory/new"))?;
    fs::write(path("file"), "more")?;
    fs::remove_file(path("directory/new"))?;
    let found = events(&mut inotify);
    for wanted in [
        (directory, EventMask::CREATE, "new".to_owned()),
        (directory, EventMask::DELETE, "new".to_owned()),
        (file, EventMask::MODIFY, String::new()),
    ] {
        check!(found.contains(&wanted), "{wanted:?} is not in {found:?}");
    }
    Ok(())
}

/// Numbers stay, with gaps, and the next one is new.
fn numbers() -> Result<()> {
    let mut inotify = Inotify::init()?;
    let mut kept = Vec::new();
    for index in 0..10 {
        fs::write(path(&index.to_string()), "")?;
        let added = inotify
            .watches()
            .add(path(&index.to_string()), WatchMask::ATTRIB)?;
        if [0, 3, 8].contains(&index) {
            inotify.watches().remove(added)?;
        } else {
            kept.push(added.get_watch_descriptor_id());
        }
    }
    events(&mut inotify);
    zdtm::checkpoint()?;
    check_eq!(
        watch(&inotify, "1", WatchMask::ATTRIB)?,
        kept[0],
        "it is watched already"
    );
    check!(!kept.contains(&watch(&inotify, "0", WatchMask::ATTRIB)?));
    Ok(())
}

/// The watched file has lost its name, or one of two.
fn removed(other_name: bool) -> Result<()> {
    fs::write(path("name"), "")?;
    if other_name {
        fs::hard_link(path("name"), path("other"))?;
    }
    let mut file = File::options().write(true).open(path("name"))?;
    let mut inotify = Inotify::init()?;
    let watch = watch(&inotify, "name", WatchMask::MODIFY)?;
    fs::remove_file(path("name"))?;
    zdtm::checkpoint()?;
    file.write_all(b"x")?;
    check_eq!(
        events(&mut inotify),
        [(watch, EventMask::MODIFY, String::new())]
    );
    Ok(())
}

/// The restore itself opens and looks at things; nobody must hear of that.
fn quiet() -> Result<()> {
    fs::create_dir(path("directory"))?;
    fs::write(path("directory/file"), "")?;
    let _open = File::open(path("directory/file"))?;
    let mut inotify = Inotify::init()?;
    watch(&inotify, "directory", WatchMask::ALL_EVENTS)?;
    watch(&inotify, "directory/file", WatchMask::ALL_EVENTS)?;
    zdtm::checkpoint()?;
    check_eq!(events(&mut inotify), []);
    Ok(())
}

/// Events that nobody has read are there, or one says that some were lost; then all goes on.
fn queued() -> Result<()> {
    fs::create_dir(path("directory"))?;
    let mut inotify = Inotify::init()?;
    let directory = watch(&inotify, "directory", WatchMask::CREATE)?;
    File::create(path("directory/before"))?;
    zdtm::checkpoint()?;
    File::create(path("directory/after"))?;
    let found = events(&mut inotify);
    let kept = (directory, EventMask::CREATE, "before".to_owned());
    let lost = (-1, EventMask::Q_OVERFLOW, String::new());
    check!(
        found.first() == Some(&kept) || found.first() == Some(&lost),
        "{found:?}"
    );
    check_eq!(
        found[1..],
        [(directory, EventMask::CREATE, "after".to_owned())]
    );
    Ok(())
}

/// A watched file under a name that the kernel does not remember: found by a search.
fn hidden() -> Result<()> {
    fs::create_dir_all(path("some/where"))?;
    fs::write(path("some/where/file"), "")?;
    fs::write(
        path("dump.conf"),
        format!("force-irmap\nirmap-scan-path {}\n", path("some").display()),
    )?;
    let mut inotify = Inotify::init()?;
    let file = watch(&inotify, "some/where/file", WatchMask::MODIFY)?;
    // Without the names that it remembers it has to open the file by its handle.
    fs::write("/proc/sys/vm/drop_caches", "2").ok();
    zdtm::checkpoint()?;
    fs::write(path("some/where/file"), "more")?;
    let found = events(&mut inotify);
    check!(
        found.contains(&(file, EventMask::MODIFY, String::new())),
        "{found:?}"
    );
    Ok(())
}
