//! PID 1 of a guest: gets the disk, makes it the root, runs the suite as a child with every privilege, says how it
//! ended, and switches off.
//!
//! What begins with `zdtm-init: ` on the console is for the host; everything else there is the suite's own output. The
//! same program is /sbin/modprobe, which the kernel starts for what it misses.

#![forbid(unsafe_code)]

mod modules;
mod root;
mod suite;

use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};

/// Whatever happens, no guest outlives this.
const LIFE: Duration = Duration::from_secs(3600);

fn main() {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    if name.ends_with("modprobe") {
        let wanted = arguments.next_back().unwrap_or_default();
        let code = i32::from(modules::load(&wanted).is_err());
        std::process::exit(code);
    }
    if std::process::id() != 1 {
        eprintln!("init is for process 1 of a guest");
        std::process::exit(2);
    }
    std::thread::spawn(|| {
        std::thread::sleep(LIFE);
        off();
    });
    if let Err(error) = live() {
        println!("zdtm-init: {error:#}");
    }
    off();
}

fn live() -> anyhow::Result<()> {
    let arguments = std::fs::read_to_string("/arguments")?;
    root::early()?;
    println!("zdtm-init: start");
    root::switch()?;
    let code = suite::run(arguments.lines())?;
    let taint = std::fs::read_to_string("/proc/sys/kernel/tainted")?;
    nix::unistd::sync();
    println!("zdtm-init: verdict {code} {}", taint.trim());
    Ok(())
}

fn off() {
    nix::unistd::sync();
    // The serial line is slower than we are.
    let _ = nix::sys::termios::tcdrain(std::io::stdout());
    let _ = reboot(RebootMode::RB_POWER_OFF);
}
