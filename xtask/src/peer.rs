//! Another criu in a guest, to dump for ours and restore from it: its programs and libraries, taken from the root of a
//! Debian system, at the places where they look for each other.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::machine::Machine;

/// For the runner, beside ours: it tries all combinations.
pub(crate) const WORDS: &[&str] = &[
    "--dump-with=/usr/sbin/criu",
    "--restore-with=/usr/sbin/criu",
];

/// What the names of programs begin with that it is or calls.
const PROGRAMS: &[&str] = &["criu", "iptables", "ip6tables", "xtables"];

/// A system that has it.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    root: PathBuf,
}

impl Peer {
    /// Fails if there is no criu for this machine in the system at `root`.
    pub(crate) fn at(root: &Path, machine: &Machine) -> Result<Self> {
        let peer = Self {
            root: root
                .canonicalize()
                .with_context(|| root.display().to_string())?,
        };
        let libraries = peer.root.join(libraries(machine));
        ensure!(
            libraries.is_dir() && peer.root.join("usr/sbin/criu").exists(),
            "{} is no Debian system for {} with criu in it",
            root.display(),
            machine.name
        );
        Ok(peer)
    }

    /// Copies it into the root of a guest.
    pub(crate) fn put(&self, machine: &Machine, guest: &Path) -> Result<()> {
        self.copy(&libraries(machine), guest)?;
        self.copy("usr/lib64", guest)?;
        std::os::unix::fs::symlink("usr/lib64", guest.join("lib64"))?;
        for dir in ["usr/sbin", "etc/alternatives"] {
            for entry in std::fs::read_dir(self.root.join(dir))? {
                let name = entry?.file_name();
                let name = name.to_string_lossy();
                if PROGRAMS.iter().any(|program| name.starts_with(program)) {
                    self.copy(&format!("{dir}/{name}"), guest)?;
                }
            }
        }
        Ok(())
    }

    /// Copies a file or a directory, links as they are.
    fn copy(&self, what: &str, guest: &Path) -> Result<()> {
        let (from, to) = (self.root.join(what), guest.join(what));
        let dir = to.parent().context("it is below the root")?;
        std::fs::create_dir_all(dir)?;
        let status = Command::new("cp").arg("-a").args([&from, &to]).status()?;
        ensure!(status.success(), "cp -a {}: {status}", from.display());
        Ok(())
    }
}

fn libraries(machine: &Machine) -> String {
    // Debian's name of the machine for its libraries is that of its compilers, which differs from ours for none but armv7.
    let machine = machine.linker.strip_suffix("-gcc");
    let machine = machine.unwrap_or("x86_64-linux-gnu");
    format!("usr/lib/{machine}")
}
