//! Files that stay outside and are given at restore: `--external file[..]`, `--inherit-fd`.
//!
//! What criu is to be told depends on numbers, so each case writes it into files for `--config`. The
//! one descriptor that every criu has is its standard input, which is `/dev/null`.

use std::fs::{self, File, read_link};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use zdtm::{Case, Result, check_eq};

/// Relative to where the case works, as the runner lays it out.
const DUMP: &[&str] = &["--config=../work/dump.conf"];
const RESTORE: &[&str] = &["--config=../work/restore.conf"];
/// The descriptor; and where files are numbered, one less comes before those that are mapped.
const FIRST: &[&str] = &["fd/0003", "maps"];

pub(crate) const CASES: &[Case] = &[
    Case::new("external-file", file)
        .dump_options(DUMP)
        .restore_options(RESTORE)
        .changes(FIRST),
    Case::new("inherit-file", path)
        .restore_options(RESTORE)
        .changes(FIRST),
    Case::new("inherit-memfd", memfd)
        .restore_options(RESTORE)
        .changes(FIRST),
    Case::new("inherit-pipe", pipe)
        .restore_options(RESTORE)
        .changes(FIRST),
    Case::new("external-device", device)
        .dump_options(DUMP)
        .restore_options(RESTORE)
        .changes(FIRST),
];

fn say(name: &str, text: &str) -> Result<()> {
    Ok(fs::write(zdtm::dir().join(name), text)?)
}

fn link(file: &impl AsRawFd) -> Result<PathBuf> {
    Ok(read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?)
}

/// What tells this process from one restored in its place: when it started, and, since Linux 6.9, the inode of
/// its pidfd.
fn identity() -> Result<(String, u64)> {
    let stat = zdtm::proc_text("self", "stat")?;
    let start = stat.rsplit(')').next().unwrap_or_default();
    let start = start.split_whitespace().nth(19).unwrap_or_default();
    // SAFETY: takes no address; the descriptor is new and ours.
    let pidfd = unsafe {
        let fd = zdtm::syscall(
            libc::SYS_pidfd_open,
            [std::process::id() as usize, 0, 0, 0, 0, 0],
        )?;
        File::from_raw_fd(i32::try_from(fd)?)
    };
    Ok((start.to_owned(), pidfd.metadata()?.ino()))
}

/// Lets everything happen, and checks that the file is the given one; or its old self if there was no restore.
fn given(file: &impl AsRawFd) -> Result<()> {
    let (before, was) = (identity()?, link(file)?);
    zdtm::checkpoint()?;
    let restored = identity()? != before;
    let wanted = if restored {
        PathBuf::from("/dev/null")
    } else {
        was
    };
    check_eq!(link(file)?, wanted);
    Ok(())
}

/// Nobody looks for it, and nobody looks at it.
fn file() -> Result<()> {
    let file = File::create(zdtm::dir().join("outside"))?;
    let info = zdtm::proc_text("self", &format!("fdinfo/{}", file.as_raw_fd()))?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    let mount: u32 = mount.unwrap_or_default().trim().parse()?;
    let key = format!("file[{mount:x}:{:x}]", file.metadata()?.ino());
    say("dump.conf", &format!("external {key}\n"))?;
    say("restore.conf", &format!("inherit-fd fd[0]:{key}\n"))?;
    given(&file)
}

/// The file is there, and another one is given for it.
fn path() -> Result<()> {
    let name = zdtm::dir().join("file");
    let file = File::create(&name)?;
    let text = format!("inherit-fd fd[0]:{}\n", name.display());
    say("restore.conf", &text)?;
    given(&file)
}

fn memfd() -> Result<()> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let mut file = File::from(memfd_create("given", MFdFlags::empty())?);
    file.write_all(b"content")?;
    say("restore.conf", "inherit-fd fd[0]:/memfd:given\n")?;
    given(&file)
}

/// The other end belongs to somebody else.
fn pipe() -> Result<()> {
    let (reader, writer) = std::io::pipe()?;
    let key = link(&reader)?;
    say(
        "restore.conf",
        &format!("inherit-fd fd[0]:{}\n", key.display()),
    )?;
    drop(writer);
    given(&reader)
}

/// A device of which nothing but the number is known; another one is given for it.
fn device() -> Result<()> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    // Nobody mounts anything through it here.
    let Ok(meta) = fs::metadata("/dev/fuse") else {
        return zdtm::skip("no such device here");
    };
    let number = meta.rdev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let name = zdtm::dir().join("device");
    if mknod(&name, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(major, minor)).is_err() {
        return zdtm::skip("no device nodes in this directory");
    }
    let file = match File::options().read(true).write(true).open(&name) {
        Ok(file) => file,
        Err(error) => return zdtm::skip(format!("devices cannot be opened here: {error}")),
    };
    say(
        "dump.conf",
        &format!("external dev[{major}/{minor}]:mine\n"),
    )?;
    say("restore.conf", "external dev[mine]:/dev/null\n")?;
    given(&file)
}
