//! Working and root directories.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use nix::unistd::{chdir, chroot, fchdir};
use zdtm::{Case, Child, Result, Team, check, check_eq};

pub(crate) const CASES: &[Case] = &[
    Case::new("cwd", cwd),
    Case::new("cwd-removed", cwd_removed),
    Case::new("cwd-removed-and-open", cwd_removed_and_open),
    Case::new("cwd-proc", cwd_proc),
    Case::new("cwd-of-threads", cwd_of_threads),
    Case::new("directory-removed", directory_removed),
    Case::new("chroot", change_root),
    Case::new("chroot-file-outside", file_outside),
];

fn path(name: &str) -> PathBuf {
    zdtm::dir().join(name)
}

fn getcwd() -> Result<PathBuf> {
    Ok(fs::read_link("/proc/self/cwd")?)
}

fn cwd() -> Result<()> {
    fs::create_dir(path("here"))?;
    let child = Child::spawn("child", || {
        chdir("here")?;
        Child::checkpoint();
        check_eq!(getcwd()?, path("here"));
        fs::write("made", "")?;
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()?;
    check_eq!(getcwd()?, zdtm::dir());
    check!(path("here/made").exists());
    Ok(())
}

fn cwd_removed() -> Result<()> {
    let child = Child::spawn("child", || {
        fs::create_dir(path("gone"))?;
        chdir("gone")?;
        fs::remove_dir(path("gone"))?;
        Child::checkpoint();
        check_eq!(
            getcwd()?.to_string_lossy(),
            format!("{} (deleted)", path("gone").display())
        );
        check_eq!(fs::read_dir(".")?.count(), 0);
        check!(
            fs::write("made", "").is_err(),
            "nothing can be made in a removed directory"
        );
        Ok(())
    })?;
    zdtm::checkpoint()?;
    check!(!path("gone").exists(), "the directory came back");
    child.finish()
}

/// The working directory and a descriptor are one removed directory.
fn cwd_removed_and_open() -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let child = Child::spawn("child", || {
        fs::create_dir(path("gone"))?;
        let open = File::open("gone")?;
        chdir("gone")?;
        fs::remove_dir(path("gone"))?;
        Child::checkpoint();
        check_eq!(fs::metadata(".")?.ino(), open.metadata()?.ino());
        chdir("/")?;
        fchdir(&open)?;
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()
}

/// In /proc, in the directory of another process and in one of our own.
fn cwd_proc() -> Result<()> {
    let child = Child::spawn("child", || {
        chdir("/proc/self/fdinfo")?;
        let before = getcwd()?;
        Child::checkpoint();
        check_eq!(getcwd()?, before);
        check!(Path::new("0").exists());
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()
}

/// Threads share it: where one goes after the restore, all are.
fn cwd_of_threads() -> Result<()> {
    fs::create_dir(path("here"))?;
    let team = Team::start(2, |index, set_up| {
        set_up();
        zdtm::wait();
        if index == 1 {
            chdir("here")?;
        }
        Ok(())
    })?;
    zdtm::checkpoint()?;
    team.join()?;
    check_eq!(getcwd()?, path("here"));
    Ok(())
}

/// Removed directories that are open, one in the other.
fn directory_removed() -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    fs::create_dir_all(path("outer/inner"))?;
    let (outer, inner) = (File::open(path("outer"))?, File::open(path("outer/inner"))?);
    fs::remove_dir(path("outer/inner"))?;
    fs::remove_dir(path("outer"))?;
    zdtm::checkpoint()?;
    check!(!path("outer").exists(), "the directory came back");
    for file in [outer, inner] {
        check!(file.metadata()?.is_dir());
        check_eq!(file.metadata()?.nlink(), 0);
    }
    Ok(())
}

fn change_root() -> Result<()> {
    fs::create_dir_all(path("root/inside"))?;
    fs::write(path("root/inside/file"), "in the root")?;
    let child = Child::spawn("child", || {
        chroot("root")?;
        chdir("/inside")?;
        let mut open = File::open("/inside/file")?;
        Child::checkpoint();
        check_eq!(fs::read_to_string("/inside/file")?, "in the root");
        check_eq!(fs::read_to_string("file")?, "in the root");
        check_eq!(fs::read_dir("/")?.count(), 1);
        let mut text = String::new();
        open.read_to_string(&mut text)?;
        check_eq!(text, "in the root");
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()
}

/// Opened before the root changed, and out of its reach.
fn file_outside() -> Result<()> {
    fs::create_dir(path("root"))?;
    fs::write(path("outside"), "outside")?;
    let child = Child::spawn("child", || {
        let mut file = File::open(path("outside"))?;
        chroot("root")?;
        chdir("/")?;
        Child::checkpoint();
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        check_eq!(text, "outside");
        check_eq!(fs::read_dir("/")?.count(), 0);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()
}
