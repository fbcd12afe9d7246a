//! A 32-bit program on a 64-bit kernel. It is `compat32.S`, which checks itself; `cargo xtask zdtm` assembles it.

use std::process::{Command, Stdio};

use nix::unistd::{Pid, pipe, write};
use zdtm::{Case, Result, exit_code, proc_text, skip};

pub(crate) const CASES: &[Case] = &[Case::new("compat32", run)];

fn run() -> Result<()> {
    let program = std::env::current_exe()?.with_file_name("zdtm-compat32");
    let (reader, writer) = pipe()?;
    let child = match Command::new(&program).stdin(Stdio::from(reader)).spawn() {
        Ok(child) => child,
        Err(error) => return skip(format!("{}: {error}", program.display())),
    };
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    // Number 3 is read(2), in the 32-bit table.
    while !proc_text(pid, "syscall")?.starts_with("3 0x0 ") {
        if zdtm::stat_field(pid, 3)? == "Z" {
            return skip("it does not run here");
        }
        std::thread::yield_now();
    }
    zdtm::checkpoint()?;
    write(&writer, b"x")?;
    exit_code(pid, 0)
}
