//! What is fetched or made once and kept outside of the repository: kernels, a compiler, an emulator.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// `$XDG_CACHE_HOME/criu-rs`, or the same in `~/.cache`.
pub(crate) fn dir() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME").context("no HOME, no XDG_CACHE_HOME")?)
            .join(".cache"),
    };
    let dir = base.join("criu-rs");
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir)
}

/// The entry of this name, which `make` fills if it is not there. It appears whole or not at all, and once: another
/// process that wants it waits.
pub(crate) fn once(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let path = dir()?.join(name);
    if path.exists() {
        return Ok(path);
    }
    let _turn = turn(name)?;
    if path.exists() {
        return Ok(path);
    }
    let new = dir()?.join(format!("{name}.new"));
    if new.exists() {
        fs::remove_dir_all(&new).with_context(|| new.display().to_string())?;
    }
    fs::create_dir_all(&new).with_context(|| new.display().to_string())?;
    make(&new)?;
    fs::rename(&new, &path).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Waits until nobody else works on this; the lock goes with the file.
pub(crate) fn turn(name: &str) -> Result<File> {
    let path = dir()?.join(format!("{}.lock", name.replace('/', "-")));
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    if file.try_lock().is_err() {
        eprintln!("waiting for {}", path.display());
        file.lock()?;
    }
    Ok(file)
}
