//! BPF objects that have a name, or none.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

use nix::mount::{MsFlags, mount};
use zdtm::{Case, Result, check, check_eq, skip};

use super::call::{self, New, lookup, update};

pub(crate) const CASES: &[Case] = &[
    Case::new("map-pinned", map).stays(PINNED),
    Case::new("prog-pinned", program)
        .refused("CRIU has no programs")
        .stays(PINNED),
    Case::new("prog", unpinned).refused("programs cannot be read back"),
];

/// Why they may be refused elsewhere.
const PINNED: &str = "what is pinned goes with the kernel that has it";

/// A BPF file system in our directory, and a name in it.
fn name(last: &str) -> Result<CString> {
    let path = std::path::absolute("bpffs")?;
    std::fs::create_dir(&path)?;
    let bpf = Some("bpf");
    if mount(bpf, &path, bpf, MsFlags::empty(), None::<&str>).is_err() {
        return skip("no BPF file system for us");
    }
    Ok(CString::new(path.join(last).as_os_str().as_bytes())?)
}

/// It stays under its name while the task is away, and is the same afterwards.
fn map() -> Result<()> {
    let path = name("map")?;
    let map = New {
        kind: call::HASH,
        key: 4,
        value: 4,
        entries: 4,
        ..New::default()
    };
    let map = map.make()?;
    update(&map, &[1; 4], &[2; 4])?;
    call::pin(&map, &path)?;
    let before = call::id(&map)?;
    zdtm::checkpoint()?;
    check_eq!(lookup(&map, &[1; 4], 4)?, [2; 4]);
    check_eq!(call::id(&map)?, call::id(&call::open(&path)?)?);
    check_eq!(call::id(&map)?, before);
    Ok(())
}

/// A program is found by its name.
fn program() -> Result<()> {
    let path = name("program")?;
    let Ok(program) = call::program("zdtm_prog") else {
        return skip("no BPF program for us");
    };
    call::pin(&program, &path)?;
    let before = call::fdinfo(&program, "prog_id")?;
    zdtm::checkpoint()?;
    check_eq!(call::fdinfo(&program, "prog_id")?, before);
    Ok(())
}

/// A program without a name.
fn unpinned() -> Result<()> {
    let Ok(program) = call::program("zdtm_prog") else {
        return skip("no BPF program for us");
    };
    zdtm::checkpoint()?;
    check!(!call::fdinfo(&program, "prog_tag")?.is_empty());
    Ok(())
}
