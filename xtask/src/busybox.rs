//! The shell of a guest, for scripts that cases give to the driver: Debian's busybox, static.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::cache;
use crate::machine::Machine;

/// Names that it has in a guest.
pub(crate) const NAMES: &[&str] = &["sh", "[", "cat", "chmod", "echo", "printf", "touch", "true"];

/// The program.
pub(crate) fn get(machine: &Machine) -> Result<PathBuf> {
    let dir = cache::once(&format!("busybox/{}", machine.name), |dir| {
        let whole = dir.join("whole");
        Apt::open(machine.debian)?.unpack(&["busybox-static".to_owned()], &whole)?;
        let places = [whole.join("bin/busybox"), whole.join("usr/bin/busybox")];
        let place = places.iter().find(|path| path.exists());
        fs::rename(
            place.context("no busybox in the package")?,
            dir.join("busybox"),
        )?;
        Ok(fs::remove_dir_all(whole)?)
    })
    .with_context(|| format!("busybox of {}", machine.name))?;
    Ok(dir.join("busybox"))
}
