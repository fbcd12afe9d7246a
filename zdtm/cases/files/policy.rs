//! Files that changed between dump and restore: `--file-policy`.
//!
//! The change is made by the shell of a hook, so it comes when the task is dumped already.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};

use zdtm::{Case, Result, check_eq};

const HOOK: &[&str] = &["--action-script=../work/hook"];

pub(crate) const CASES: &[Case] = &[
    Case::new("policy-append", append)
        .dump_options(HOOK)
        .restore_options(&["--file-policy=*/log=append"])
        .changes(&["fd/0003"]),
    Case::new("policy-truncate", truncate).restore_options(&[
        "--file-policy=*/log=truncate",
        "--action-script=../work/hook",
    ]),
    Case::new("policy-ignore", ignore)
        .dump_options(HOOK)
        .restore_options(&["--file-policy=*/log=ignore"])
        .changes(&["fd/0003"]),
    Case::new("policy-replace", replace)
        .dump_options(HOOK)
        .restore_options(&["--config=../work/restore.conf"])
        .changes(&["fd/0003"]),
];

/// Lets this happen at that time.
fn hook(action: &str, command: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if !std::path::Path::new("/bin/sh").exists() {
        return zdtm::skip("no shell for the hook in a guest");
    }
    let path = zdtm::dir().join("hook");
    let work = zdtm::dir().display();
    let text = format!(
        "#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" = {action} ] || exit 0\ncd {work}\n{command}\ntouch done\n"
    );
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Whether it happened.
fn changed() -> bool {
    zdtm::dir().join("done").exists()
}

/// A file with some content, open in the middle.
fn open() -> Result<File> {
    let mut file = File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(zdtm::dir().join("log"))?;
    file.write_all(b"0123456789")?;
    file.seek(SeekFrom::Start(5))?;
    Ok(file)
}

fn rest(file: &mut File) -> Result<String> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

fn append() -> Result<()> {
    let mut file = open()?;
    hook("post-dump", "echo more >> log")?;
    zdtm::checkpoint()?;
    check_eq!(
        rest(&mut file)?,
        if changed() { "56789more\n" } else { "56789" }
    );
    Ok(())
}

fn truncate() -> Result<()> {
    let mut file = open()?;
    hook("pre-restore", "echo more >> log")?;
    zdtm::checkpoint()?;
    check_eq!(rest(&mut file)?, "56789");
    Ok(())
}

fn ignore() -> Result<()> {
    let mut file = open()?;
    hook("post-dump", "chmod 600 log; printf abc > log")?;
    zdtm::checkpoint()?;
    file.seek(SeekFrom::Start(0))?;
    check_eq!(
        rest(&mut file)?,
        if changed() { "abc" } else { "0123456789" }
    );
    Ok(())
}

fn replace() -> Result<()> {
    let mut file = open()?;
    fs::write(zdtm::dir().join("other"), "another file")?;
    let log = zdtm::dir().join("log");
    let other = zdtm::dir().join("other");
    let line = format!(
        "file-policy {}=replace:{}\n",
        log.display(),
        other.display()
    );
    fs::write(zdtm::dir().join("restore.conf"), line)?;
    hook("post-dump", "true")?;
    zdtm::checkpoint()?;
    let text = rest(&mut file)?;
    zdtm::check!(text == "er file" || text == "56789", "{text}");
    Ok(())
}
