//! The disk of a guest: an ext4 image with everything it runs, made from a directory, and read again afterwards.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cross::Built;
use crate::machine::Machine;
use crate::modules::Modules;
use crate::peer::Peer;
use crate::{busybox, shell};

/// How large it is to the guest; here it is sparse.
const SIZE: u64 = 2 << 30;

/// Where the suite is, and where its runs leave what failed.
const SUITE: &str = "zdtm";
const OUT: &str = "/zdtm/out";

/// What is put onto it.
pub(crate) struct Load<'a> {
    pub(crate) built: &'a Built,
    pub(crate) busybox: &'a Path,
    /// Of every kernel that will use it.
    pub(crate) modules: &'a [Modules],
    pub(crate) known: Option<&'a Path>,
    pub(crate) peer: Option<(&'a Peer, &'a Machine)>,
}

/// Makes the image; `dir` is for it and for what it is made from.
pub(crate) fn make(dir: &Path, load: &Load<'_>) -> Result<PathBuf> {
    shell::need(&[("mke2fs", "e2fsprogs"), ("debugfs", "e2fsprogs")])?;
    let root = dir.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for name in [
        "bin",
        "dev",
        "etc",
        "lib/modules",
        "mnt",
        "proc",
        "root",
        "run",
        "sbin",
        "sys",
        "tmp",
        "var/tmp",
        SUITE,
    ] {
        fs::create_dir_all(root.join(name))?;
    }
    for name in ["tmp", "var/tmp"] {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o1777))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/sbin/init\nnobody:x:65534:65534::/:/sbin/init\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    fs::write(
        root.join("etc/hosts"),
        "127.0.0.1 localhost\n::1 localhost\n",
    )?;
    for program in load.built.programs() {
        let name = program.file_name().context("a program has a name")?;
        fs::copy(program, root.join(SUITE).join(name))
            .with_context(|| program.display().to_string())?;
    }
    fs::copy(&load.built.init, root.join("sbin/init"))?;
    symlink("init", root.join("sbin/modprobe"))?;
    fs::copy(load.busybox, root.join("bin/busybox"))
        .with_context(|| load.busybox.display().to_string())?;
    for name in busybox::NAMES {
        symlink("busybox", root.join("bin").join(name))?;
    }
    for modules in load.modules {
        let place = root.join("lib/modules").join(&modules.release);
        fs::create_dir_all(&place)?;
        fs::write(place.join("index"), modules.index())?;
        for (name, bytes) in modules.files() {
            fs::write(place.join(format!("{name}.ko")), bytes)?;
        }
    }
    if let Some((peer, machine)) = load.peer {
        peer.put(machine, &root)?;
    }
    if let Some(known) = load.known {
        fs::copy(known, root.join(SUITE).join("known"))
            .with_context(|| known.display().to_string())?;
    }
    let image = dir.join("disk");
    let _ = fs::remove_file(&image);
    File::create(&image)?.set_len(SIZE)?;
    // No journal: what is synced can be read without replaying one.
    let output = Command::new("mke2fs")
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-O",
            "^has_journal",
            "-E",
            "root_owner=0:0",
            "-d",
        ])
        .args([&root, &image])
        .output()?;
    ensure!(
        output.status.success(),
        "mke2fs: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(image)
}

/// Copies what the suite has left into `dir`, as `out`. Ownership and special files stay behind.
pub(crate) fn fetch(image: &Path, dir: &Path) -> Result<()> {
    let out = dir.join("out");
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| out.display().to_string())?;
    }
    let command = format!("rdump {OUT} {}", dir.display());
    let output = Command::new("debugfs")
        .args(["-R", &command])
        .arg(image)
        .output()?;
    ensure!(
        output.status.success(),
        "debugfs: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
