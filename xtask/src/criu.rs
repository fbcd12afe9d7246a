//! The criu commands that are tried: ours, and another to compare with.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{room, shell};

/// Builds the criu that is tried and measured, when outside: the alias is in the workspace's `.cargo/config.toml`.
pub(crate) fn ours() -> Result<PathBuf> {
    if !room::is_inside() {
        shell::cargo(&["--quiet", "static"]).context("criu does not build")?;
    }
    Ok(shell::target()?.join("release/criu"))
}

/// Builds another program of the workspace for speed, when outside; says where it is.
pub(crate) fn built(package: &str, program: &str) -> Result<PathBuf> {
    if !room::is_inside() {
        let words = ["build", "--release", "--quiet", "--package", package];
        shell::cargo(&[&words[..], &["--bin", program]].concat())?;
    }
    Ok(shell::target()?.join("release").join(program))
}

/// A criu command: ours, or another to compare with.
#[derive(Debug, Clone)]
pub(crate) struct Criu {
    pub(crate) words: Vec<OsString>,
}

impl Criu {
    /// A program; or the root of a Debian system, whose criu is run with the libraries of that system.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        let path = path
            .canonicalize()
            .with_context(|| path.display().to_string())?;
        if !path.is_dir() {
            return Ok(Self {
                words: vec![path.into()],
            });
        }
        let machine = format!("{}-linux-gnu", std::env::consts::ARCH);
        let mut libraries = OsString::new();
        for (index, dir) in ["lib", "usr/lib"].into_iter().enumerate() {
            libraries.push(if index == 0 { "" } else { ":" });
            libraries.push(path.join(dir).join(&machine));
        }
        let loader = std::fs::read_dir(path.join("lib64"))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|file| file.to_string_lossy().contains("/ld-linux"))
            .context("no loader in lib64")?;
        let words = [
            loader.into(),
            "--library-path".into(),
            libraries,
            path.join("usr/sbin/criu").into(),
        ];
        Ok(Self {
            words: words.to_vec(),
        })
    }

    /// `criu VERB -D IMAGES -o VERB.log …`.
    pub(crate) fn words(&self, verb: &str, images: &Path, more: &[&str]) -> Vec<OsString> {
        let mut words = self.words.clone();
        words.extend([verb.into(), "-D".into(), images.into(), "-o".into()]);
        words.push(format!("{verb}.log").into());
        words.extend(more.iter().map(OsString::from));
        words
    }
}

/// What a criu command says about its failure: the last error of its log, or of what it printed.
pub(crate) fn complaint(images: &Path, verb: &str, printed: &[u8]) -> String {
    let log = std::fs::read(images.join(format!("{verb}.log"))).unwrap_or_default();
    for text in [&log[..], printed] {
        let text = String::from_utf8_lossy(text);
        let mut errors = text.lines().filter(|line| line.contains("Error"));
        // The first says what went wrong, later ones what that was part of.
        if let Some(line) = errors.next() {
            return line.trim().to_owned();
        }
    }
    let printed = String::from_utf8_lossy(printed);
    printed
        .lines()
        .last()
        .unwrap_or("no reason given")
        .to_owned()
}
