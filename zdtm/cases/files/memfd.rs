//! memfd_create(2): content, name, seals, and several openings of one.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use zdtm::{Case, Child, Result, check, check_eq, fill, ret, verify};

pub(crate) const CASES: &[Case] = &[
    Case::new("memfd", content),
    Case::new("memfd-sparse", sparse),
    Case::new("memfd-seals", seals),
    Case::new("memfd-reopened", reopened),
    Case::new("memfd-shared", shared),
    Case::new("memfd-no-exec", no_exec).stays("Linux 6.3 made this seal"),
    Case::new("memfd-executed", executed),
];

fn new(name: &std::ffi::CStr, flags: u32) -> Result<File> {
    // SAFETY: the name is a C string; the descriptor is new and ours.
    unsafe {
        Ok(File::from_raw_fd(ret(libc::memfd_create(
            name.as_ptr(),
            flags,
        ))?))
    }
}

fn link(file: &File) -> Result<String> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    Ok(link.to_string_lossy().into_owned())
}

/// A memfd that nobody has opened a second time is not open for writing as far as execve(2) cares.
fn executed() -> Result<()> {
    fn execute(file: &File) -> std::io::Error {
        let none: [*const libc::c_char; 1] = [std::ptr::null()];
        // SAFETY: the path and both lists are terminated; on success there is no way back.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                file.as_raw_fd(),
                c"".as_ptr(),
                none.as_ptr(),
                none.as_ptr(),
                libc::AT_EMPTY_PATH,
            )
        };
        std::io::Error::last_os_error()
    }
    let mut file = new(c"program", libc::MFD_CLOEXEC)?;
    file.write_all(b"no program for any machine")?;
    check_eq!(execute(&file).raw_os_error(), Some(libc::ENOEXEC));
    zdtm::checkpoint()?;
    check_eq!(execute(&file).raw_os_error(), Some(libc::ENOEXEC));
    let reopened = OpenOptions::new()
        .write(true)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    check_eq!(execute(&file).raw_os_error(), Some(libc::ETXTBSY));
    drop(reopened);
    Ok(())
}

fn content() -> Result<()> {
    let mut file = new(c"a name", libc::MFD_CLOEXEC)?;
    let mut bytes = vec![0; 123_457];
    fill(&mut bytes, 1);
    file.write_all(&bytes)?;
    file.seek(SeekFrom::Start(5))?;
    file.set_permissions(Permissions::from_mode(0o640))?;
    zdtm::checkpoint()?;
    check_eq!(link(&file)?, "/memfd:a name (deleted)");
    check_eq!(file.stream_position()?, 5);
    check_eq!(file.metadata()?.mode() & 0o7777, 0o640);
    check_eq!(file.metadata()?.len(), 123_457);
    let mut found = vec![0; 123_457];
    file.read_exact_at(&mut found, 0)?;
    verify(&found, 1)
}

fn sparse() -> Result<()> {
    let file = new(c"sparse", 0)?;
    file.set_len(1 << 30)?;
    let mut page = [0; 4096];
    fill(&mut page, 1);
    file.write_all_at(&page, 500 << 20)?;
    zdtm::checkpoint()?;
    check_eq!(file.metadata()?.len(), 1 << 30);
    check!(file.metadata()?.blocks() < 4096, "holes are filled");
    let mut found = [0; 4096];
    file.read_exact_at(&mut found, 500 << 20)?;
    verify(&found, 1)
}

const F_ADD_SEALS: i32 = 1033;
const F_GET_SEALS: i32 = 1034;

/// Kept, and enforced.
fn seals() -> Result<()> {
    // Seal, shrink, grow, write, future write.
    let wanted = [1, 2, 2 | 4, 1 | 2 | 4 | 8, 16, 0];
    let mut files = Vec::new();
    for seals in wanted {
        let mut file = new(c"sealed", libc::MFD_ALLOW_SEALING)?;
        file.write_all(b"content")?;
        // SAFETY: takes no address.
        ret(unsafe { libc::fcntl(file.as_raw_fd(), F_ADD_SEALS, seals) })?;
        files.push((file, seals));
    }
    let unsealable = new(c"never", 0)?;
    zdtm::checkpoint()?;
    for (file, seals) in &files {
        // SAFETY: takes no address.
        let found = ret(unsafe { libc::fcntl(file.as_raw_fd(), F_GET_SEALS) })?;
        check_eq!(found, *seals);
        check_eq!(
            file.set_len(3).is_err(),
            seals & 2 != 0,
            "shrinking with seals {seals:#x}"
        );
        check_eq!(
            file.set_len(3000).is_err(),
            seals & 4 != 0,
            "growing with seals {seals:#x}"
        );
        check_eq!(
            file.write_all_at(b"C", 0).is_err(),
            seals & (8 | 16) != 0,
            "writing with seals {seals:#x}"
        );
    }
    // SAFETY: takes no address.
    let refused = unsafe { libc::fcntl(unsealable.as_raw_fd(), F_ADD_SEALS, 2) };
    check_eq!(refused, -1);
    Ok(())
}

/// Opened a second time through /proc: another open file of the same object.
fn reopened() -> Result<()> {
    let mut file = new(c"again", 0)?;
    file.write_all(b"0123456789")?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut again = OpenOptions::new().read(true).open(path)?;
    again.seek(SeekFrom::Start(3))?;
    zdtm::checkpoint()?;
    check_eq!((file.stream_position()?, again.stream_position()?), (10, 3));
    check_eq!(file.metadata()?.ino(), again.metadata()?.ino());
    file.write_all_at(b"X", 0)?;
    let mut byte = [0];
    again.read_exact_at(&mut byte, 0)?;
    check_eq!(&byte, b"X");
    check!(again.write(b"x").is_err(), "opened for reading only");
    Ok(())
}

fn shared() -> Result<()> {
    let mut file = new(c"shared", 0)?;
    let mut childs = file.try_clone()?;
    let child = Child::spawn("child", move || {
        Child::checkpoint();
        childs.write_all(b"from the child")?;
        Ok(())
    })?;
    zdtm::checkpoint()?;
    child.finish()?;
    check_eq!(file.stream_position()?, 14);
    Ok(())
}

/// MFD_NOEXEC_SEAL: not executable, and sealed so.
fn no_exec() -> Result<()> {
    let Ok(file) = new(c"no exec", 8) else {
        return zdtm::skip("no MFD_NOEXEC_SEAL before Linux 6.3");
    };
    zdtm::checkpoint()?;
    check_eq!(file.metadata()?.mode() & 0o777, 0o666);
    check!(file.set_permissions(Permissions::from_mode(0o777)).is_err());
    Ok(())
}
