//! What a restore could leave behind besides tasks: names of files, mounts, objects of System V.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::room;

/// Where a killed restore could leave something.
#[derive(Debug, PartialEq)]
pub(crate) struct Surroundings {
    files: BTreeSet<PathBuf>,
    mounts: BTreeSet<String>,
    /// Of System V.
    objects: BTreeSet<String>,
}

impl Surroundings {
    pub(crate) fn new(images: &Path, target: &Path) -> Result<Self> {
        let mut files = BTreeSet::new();
        let memory = Path::new("/dev/shm");
        for dir in [
            images,
            target,
            memory,
            Path::new("/run"),
            Path::new(room::QUEUES),
        ] {
            for entry in std::fs::read_dir(dir)? {
                files.insert(entry?.path());
            }
        }
        for entry in std::fs::read_dir("/tmp")? {
            // Others work there as well; what is CRIU's has its name in it.
            let path = entry?.path();
            if path.to_string_lossy().contains("criu") {
                files.insert(path);
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let mounts = mounts.lines().map(str::to_owned).collect();
        let mut objects = BTreeSet::new();
        for kind in ["shm", "sem", "msg"] {
            let list = std::fs::read_to_string(format!("/proc/sysvipc/{kind}"))?;
            objects.extend(list.lines().skip(1).map(|line| format!("{kind} {line}")));
        }
        Ok(Self {
            files,
            mounts,
            objects,
        })
    }

    /// Takes away the files that came, so that they are lost once.
    pub(crate) fn clear(&self, after: &Self) -> Result<()> {
        for path in after.files.difference(&self.files) {
            match path.symlink_metadata()?.is_dir() {
                true => std::fs::remove_dir_all(path)?,
                false => std::fs::remove_file(path)?,
            }
        }
        Ok(())
    }

    pub(crate) fn compare(&self, after: &Self) -> Result<()> {
        let files: Vec<_> = after.files.symmetric_difference(&self.files).collect();
        ensure!(files.is_empty(), "files came or went: {files:?}");
        let mounts: Vec<_> = after.mounts.symmetric_difference(&self.mounts).collect();
        ensure!(mounts.is_empty(), "mounts came or went: {mounts:?}");
        let objects: Vec<_> = after.objects.symmetric_difference(&self.objects).collect();
        ensure!(objects.is_empty(), "objects came or went: {objects:?}");
        Ok(())
    }
}

/// The names that the dump has given to files, which restores take away.
pub(crate) fn given_names(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.to_string_lossy().contains("link_remap.") {
            names.push(path);
        }
    }
    Ok(names)
}

/// Takes away what a complete restore has made, or the dump has left, and gives the names that it has taken.
pub(crate) fn as_dumped(dir: &Path, given: &[PathBuf]) -> Result<()> {
    room::remove_objects()?;
    for dir in [dir, Path::new(room::QUEUES)] {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension() == Some("new".as_ref()) {
                std::fs::remove_file(path)?;
            }
        }
    }
    for name in given.iter().filter(|name| !name.exists()) {
        std::fs::hard_link(dir.join("other-name"), name)?;
    }
    Ok(())
}
