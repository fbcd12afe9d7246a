//! The runner of the suite, or what else there is to run, as a child; its output on the console.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

const DIR: &str = "/zdtm";

/// Runs the first word, a program of the disk, with the others; says its exit code. Each failure is on the disk before
/// the next case begins to endanger it.
pub(crate) fn run<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<i32> {
    let program = words.next().context("nothing to run")?;
    let mut child = Command::new(format!("{DIR}/{program}"))
        .args(words)
        .current_dir(DIR)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| program.to_owned())?;
    let output = child.stdout.take().context("it was piped")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        if line.starts_with("FAIL") {
            nix::unistd::sync();
        }
    }
    let status = child.wait()?;
    save_messages();
    Ok(status.code().unwrap_or(-1))
}

/// The kernel's messages, for who looks at a failure.
fn save_messages() {
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::fs::OpenOptionsExt;
    let open = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open("/dev/kmsg");
    let (Ok(mut from), Ok(mut to)) = (open, std::fs::File::create(format!("{DIR}/out/kmsg")))
    else {
        return;
    };
    let mut record = [0; 8192];
    loop {
        match from.read(&mut record) {
            Ok(length) if length > 0 => {
                let _ = to.write_all(&record[..length]);
            }
            // Overwritten before it was read.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            _ => return,
        }
    }
}
