//! Files that are not regular: directories, symlinks, O_PATH, devices, /proc and /sys.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use zdtm::{Case, Child, Result, check, check_eq, ret};

use crate::net::outsider::Outsider;

pub(crate) const CASES: &[Case] = &[
    Case::new("directory", directory),
    Case::new("o-path", o_path),
    Case::new("o-path-directory", o_path_directory),
    Case::new("symlink-o-path", symlink_o_path),
    Case::new("symlink-unlinked", symlink_unlinked),
    Case::new("memory-devices", devices),
    Case::new("proc-self", proc_self),
    Case::new("proc-self-directory", proc_self_directory),
    Case::new("proc-sys", proc_sys),
    Case::new("proc-other", proc_other),
    Case::new("proc-dead", proc_dead),
    Case::new("proc-outsider", proc_outsider),
    Case::new("sysfs", sysfs),
    Case::new("device-unlinked", device_unlinked),
];

fn dir(name: &str) -> PathBuf {
    zdtm::dir().join(name)
}

fn link_of(file: &impl AsRawFd) -> Result<PathBuf> {
    Ok(fs::read_link(format!(
        "/proc/self/fd/{}",
        file.as_raw_fd()
    ))?)
}

/// Names in a directory, read through the descriptor from where it is.
fn names(file: &File) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut buffer = vec![0u8; 1 << 15];
    loop {
        // SAFETY: the buffer is as long as said.
        let read = ret(unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                file.as_raw_fd(),
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        })?;
        let mut rest = &buffer[..usize::try_from(read)?];
        if rest.is_empty() {
            return Ok(names);
        }
        while let [
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            low,
            high,
            _,
            name @ ..,
        ] = rest
        {
            let length = usize::from(u16::from_ne_bytes([*low, *high]));
            let name: Vec<u8> = name.iter().copied().take_while(|byte| *byte != 0).collect();
            names.push(String::from_utf8(name)?);
            rest = &rest[length..];
        }
    }
}

/// A directory read halfway: the rest comes after, every name once.
fn directory() -> Result<()> {
    fs::create_dir(dir("many"))?;
    for index in 0..50 {
        File::create(dir(&format!("many/{index}")))?;
    }
    let fresh = File::open(dir("many"))?;
    let read = File::open(dir("many"))?;
    check_eq!(names(&read)?.len(), 52);
    zdtm::checkpoint()?;
    check_eq!(names(&fresh)?.len(), 52);
    check_eq!(names(&read)?, Vec::<String>::new(), "it was at its end");
    // Usable for what is relative to it.
    // SAFETY: the name is a C string.
    let found = unsafe { libc::faccessat(fresh.as_raw_fd(), c"17".as_ptr(), libc::F_OK, 0) };
    check_eq!(found, 0);
    Ok(())
}

fn open_path(path: &PathBuf, flags: i32) -> Result<File> {
    Ok(OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | flags)
        .open(path)?)
}

/// Descriptors that only name something.
fn o_path() -> Result<()> {
    fs::write(dir("file"), "content")?;
    let file = open_path(&dir("file"), 0)?;
    let device = open_path(&PathBuf::from("/dev/null"), 0)?;
    zdtm::checkpoint()?;
    check_eq!(link_of(&file)?, dir("file"));
    check_eq!(link_of(&device)?, PathBuf::from("/dev/null"));
    for file in [&file, &device] {
        check!(fcntl(file.as_fd(), FcntlArg::F_GETFL)? & libc::O_PATH != 0);
    }
    check_eq!(
        (&file)
            .read(&mut [0; 4])
            .map_err(|error| error.raw_os_error()),
        Err(Some(libc::EBADF))
    );
    Ok(())
}

/// O_DIRECTORY shows in the flags, beside O_PATH.
fn o_path_directory() -> Result<()> {
    fs::create_dir(dir("directory"))?;
    let directory = open_path(&dir("directory"), libc::O_DIRECTORY)?;
    let flags = fcntl(directory.as_fd(), FcntlArg::F_GETFL)?;
    zdtm::checkpoint()?;
    check_eq!(link_of(&directory)?, dir("directory"));
    check_eq!(fcntl(directory.as_fd(), FcntlArg::F_GETFL)?, flags);
    Ok(())
}

fn symlink_o_path() -> Result<()> {
    symlink("the target", dir("link"))?;
    let link = open_path(&dir("link"), libc::O_NOFOLLOW)?;
    zdtm::checkpoint()?;
    check_target(&link, "the target")
}

fn check_target(link: &File, wanted: &str) -> Result<()> {
    check!(link.metadata()?.is_symlink());
    let mut buffer = [0u8; 64];
    // SAFETY: the buffer is as long as said; an empty name means the descriptor itself.
    let length = ret(unsafe {
        libc::readlinkat(
            link.as_raw_fd(),
            c"".as_ptr(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
        )
    })?;
    check_eq!(&buffer[..usize::try_from(length)?], wanted.as_bytes());
    Ok(())
}

fn symlink_unlinked() -> Result<()> {
    symlink("the target", dir("link"))?;
    let link = open_path(&dir("link"), libc::O_NOFOLLOW)?;
    fs::remove_file(dir("link"))?;
    zdtm::checkpoint()?;
    check_target(&link, "the target")?;
    check_eq!(link.metadata()?.nlink(), 0);
    Ok(())
}

fn devices() -> Result<()> {
    let open = |name: &str| OpenOptions::new().read(true).write(true).open(name);
    let names = [
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/dev/random",
        "/dev/urandom",
    ];
    let mut files = names.map(|name| open(name).map(|file| (name, file)));
    zdtm::checkpoint()?;
    for entry in &mut files {
        let Ok((name, file)) = entry else {
            zdtm::bail!("a device is missing on this machine");
        };
        check!(file.metadata()?.file_type().is_char_device());
        let mut buffer = [7u8; 16];
        let read = file.read(&mut buffer)?;
        match *name {
            "/dev/null" => check_eq!(read, 0),
            "/dev/zero" | "/dev/full" => check_eq!(buffer, [0; 16]),
            _ => check!(buffer != [7; 16]),
        }
        match *name {
            "/dev/full" => check_eq!(
                file.write(b"x").map_err(|error| error.raw_os_error()),
                Err(Some(libc::ENOSPC))
            ),
            _ => check_eq!(file.write(b"x")?, 1),
        }
    }
    Ok(())
}

/// Files about ourselves. They are those of the new process with the same number.
fn proc_self() -> Result<()> {
    let mut status = File::open("/proc/self/status")?;
    let fds = File::open("/proc/self/fd")?;
    let namespace = File::open("/proc/self/ns/uts")?;
    let oom = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/proc/self/oom_score_adj")?;
    let before = [
        link_of(&status)?,
        link_of(&fds)?,
        link_of(&oom)?,
        link_of(&namespace)?,
    ];
    zdtm::checkpoint()?;
    check_eq!(
        [
            link_of(&status)?,
            link_of(&fds)?,
            link_of(&oom)?,
            link_of(&namespace)?
        ],
        before
    );
    let mut text = String::new();
    status.read_to_string(&mut text)?;
    check!(text.contains(&format!("Pid:\t{}\n", std::process::id())));
    check!(names(&fds)?.contains(&"3".to_owned()));
    (&oom).write_all(b"3")?;
    check_eq!(zdtm::proc_text("self", "oom_score_adj")?, "3\n");
    Ok(())
}

fn proc_self_directory() -> Result<()> {
    let directory = File::open("/proc/self")?;
    zdtm::checkpoint()?;
    check_eq!(
        link_of(&directory)?,
        PathBuf::from(format!("/proc/{}", std::process::id()))
    );
    check!(names(&directory)?.contains(&"status".to_owned()));
    Ok(())
}

fn proc_sys() -> Result<()> {
    let mut file = File::open("/proc/sys/kernel/ostype")?;
    let mut version = File::open("/proc/version")?;
    zdtm::checkpoint()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    check_eq!(text, "Linux\n");
    text.clear();
    version.read_to_string(&mut text)?;
    check!(text.starts_with("Linux version"));
    Ok(())
}

/// A file about another process of the tree, which is younger than its reader.
fn proc_other() -> Result<()> {
    let child = Child::spawn("child", || {
        Child::checkpoint();
        Ok(())
    })?;
    let mut file = File::open(format!("/proc/{}/stat", child.pid()))?;
    zdtm::checkpoint()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    check!(text.starts_with(&format!("{} (", child.pid())), "{text}");
    child.finish()
}

/// Descriptors into /proc of a process that is gone stay without an object.
fn proc_dead() -> Result<()> {
    let child = Child::spawn("child", || {
        Child::checkpoint();
        Ok(())
    })?;
    let directory = File::open(format!("/proc/{}", child.pid()))?;
    let mut file = File::open(format!("/proc/{}/status", child.pid()))?;
    child.finish()?;
    zdtm::checkpoint()?;
    check_eq!(
        file.read(&mut [0; 8]).map_err(|error| error.raw_os_error()),
        Err(Some(libc::ESRCH))
    );
    check!(names(&directory).is_err() || names(&directory)?.is_empty());
    Ok(())
}

/// The same of somebody outside of the tree, who ends when we are killed.
fn proc_outsider() -> Result<()> {
    let us = format!("/proc/{}/stat", std::process::id());
    let outsider = Outsider::start(|ready| {
        ready();
        while fs::read_to_string(&us).is_ok_and(|stat| !stat.contains(") Z ")) {
            std::thread::sleep(Duration::from_micros(200));
        }
    })?;
    let path = format!("/proc/{}/status", outsider.pid());
    let mut file = File::open(&path)?;
    zdtm::checkpoint()?;
    // It may have missed our death, or there was none.
    drop(outsider);
    while fs::exists(&path)? {
        std::thread::sleep(Duration::from_millis(1));
    }
    check_eq!(
        file.read(&mut [0; 8]).map_err(|error| error.raw_os_error()),
        Err(Some(libc::ESRCH))
    );
    Ok(())
}

fn sysfs() -> Result<()> {
    let Ok(mut file) = File::open("/sys/kernel/mm/transparent_hugepage/enabled")
        .or_else(|_| File::open("/sys/kernel/uevent_seqnum"))
    else {
        return zdtm::skip("no /sys");
    };
    let directory = File::open("/sys/kernel")?;
    let path = link_of(&file)?;
    zdtm::checkpoint()?;
    check_eq!(link_of(&file)?, path);
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    check!(!text.is_empty());
    check!(names(&directory)?.contains(&"mm".to_owned()));
    Ok(())
}

/// A device node that was removed while open.
fn device_unlinked() -> Result<()> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    if mknod(
        &dir("null"),
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o640),
        makedev(1, 3),
    )
    .is_err()
    {
        return zdtm::skip("no device nodes in this directory");
    }
    let mut file = match OpenOptions::new().read(true).write(true).open(dir("null")) {
        Ok(file) => file,
        Err(error) => return zdtm::skip(format!("devices cannot be opened here: {error}")),
    };
    fs::remove_file(dir("null"))?;
    zdtm::checkpoint()?;
    let meta = file.metadata()?;
    check_eq!(
        (meta.rdev(), meta.mode(), meta.nlink()),
        (makedev(1, 3), libc::S_IFCHR | 0o640, 0)
    );
    check_eq!(file.write(b"gone")?, 4);
    Ok(())
}
