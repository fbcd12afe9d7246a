//! A compiler for the machines that the installed one has no standard library for.
//!
//! It is Debian's, unpacked into the cache: compiler and libraries of one version are packaged there for three of the
//! four machines. For mips64 there is only the source, of which the library is made once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::apt::Apt;
use crate::machine::Machine;
use crate::{cache, shell};

/// The packages of the compiler, and of a standard library.
const COMPILER: &str = "rustc-web";
const LIBRARY: &str = "libstd-rust-web-dev";
const SOURCE: &str = "rust-web-src";

/// Where libraries are, below the root of the compiler.
const LIBRARIES: &str = "usr/lib/rustlib";

/// The compiler that has the standard library of this machine.
pub(crate) fn rustc(machine: &Machine) -> Result<PathBuf> {
    let host = host()?;
    let dir = cache::once("rust", |dir| compiler(dir, host)).context("a compiler from packages")?;
    let version = fs::read_to_string(dir.join("version"))?;
    let library = cache::once(&format!("std/{}-{version}", machine.name), |new| {
        if machine.name == "mips64" {
            build(machine, &dir, new)
        } else {
            unpack(machine, &version, new)
        }
    })
    .with_context(|| format!("standard library of {}", machine.name))?;
    // The compiler looks beside itself only.
    let place = dir.join(LIBRARIES).join(machine.target);
    if !place.exists() {
        let _turn = cache::turn("rust")?;
        if !place.exists() {
            std::os::unix::fs::symlink(&library, &place)?;
        }
    }
    Ok(dir.join("bin/rustc"))
}

/// Debian's name of the machine we run on.
fn host() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no compiler for other machines is known that runs on {other}"),
    }
}

/// The newest version that the host's own release has; the others follow it.
fn compiler(dir: &Path, host: &str) -> Result<()> {
    let apt = Apt::open(host)?;
    let mut packages = vec![SOURCE.to_owned(), COMPILER.to_owned()];
    let mut next = 0;
    while next < packages.len() {
        for name in apt.depends(&packages[next])? {
            let ours = name.starts_with("libstd-rust") || name.starts_with("libllvm");
            if ours && !packages.contains(&name) {
                packages.push(name);
            }
        }
        next += 1;
    }
    let version = apt.candidate(COMPILER)?;
    apt.unpack(&packages, dir)?;
    fs::write(dir.join("version"), upstream(&version))?;
    let bin = dir.join("bin");
    fs::create_dir(&bin)?;
    for name in ["rustc", "rustdoc"] {
        // Found by its own place, so that the cache can be moved.
        let script = format!(
            "#!/bin/sh\nhere=$(dirname \"$(dirname \"$(readlink -f \"$0\")\")\")\n\
             for libraries in \"$here\"/usr/lib/*-linux-gnu; do break; done\n\
             export LD_LIBRARY_PATH=\"$libraries${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\"\n\
             exec \"$here/usr/bin/{name}\" \"$@\"\n"
        );
        fs::write(bin.join(name), script)?;
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// The prebuilt library of exactly the compiler's version.
fn unpack(machine: &Machine, version: &str, dir: &Path) -> Result<()> {
    let apt = Apt::open(machine.debian)?;
    let versions = apt.versions(LIBRARY)?;
    let Some(same) = versions.iter().find(|found| upstream(found) == version) else {
        bail!(
            "{LIBRARY} has no version {version}, only {}",
            versions.join(", ")
        );
    };
    let whole = dir.join("whole");
    apt.unpack(&[format!("{LIBRARY}={same}")], &whole)?;
    fs::rename(
        whole.join(LIBRARIES).join(machine.target).join("lib"),
        dir.join("lib"),
    )?;
    fs::remove_dir_all(whole)?;
    Ok(())
}

/// Makes the library out of its source: a crate with nothing in it, built with the standard library.
fn build(machine: &Machine, compiler: &Path, dir: &Path) -> Result<()> {
    shell::need(machine.linking)?;
    let work = dir.join("build");
    fs::create_dir_all(work.join("src"))?;
    let manifest = "[package]\nname = \"empty\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n[lib]\n";
    fs::write(work.join("Cargo.toml"), manifest)?;
    fs::write(work.join("src/lib.rs"), "#![no_std]\n")?;
    // One crate has to be built for the panic strategy that it is; cargo has no way to say so.
    let wrapper = work.join("wrapper");
    fs::write(
        &wrapper,
        "#!/bin/sh\ncase \" $* \" in *\" --crate-name panic_abort \"*) exec \"$@\" -C panic=abort;; *) exec \"$@\";; esac\n",
    )?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    eprintln!("building the standard library of {} (once)", machine.name);
    let output = Command::new(shell::cargo_program())
        .args([
            "build",
            "--release",
            "-Zbuild-std=std,panic_abort,panic_unwind,test",
            "--target",
            machine.target,
        ])
        .current_dir(&work)
        .env("RUSTC", compiler.join("bin/rustc"))
        .env("RUSTC_WRAPPER", &wrapper)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Cembed-bitcode=yes")
        .env("CARGO_TARGET_DIR", work.join("target"))
        .env_remove("RUSTUP_TOOLCHAIN")
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::create_dir(dir.join("lib"))?;
    let built = work
        .join("target")
        .join(machine.target)
        .join("release/deps");
    for entry in fs::read_dir(built)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if name.ends_with(".rlib") && !name.starts_with("libempty") {
            fs::rename(&path, dir.join("lib").join(name))?;
        }
    }
    fs::remove_dir_all(work)?;
    Ok(())
}

/// `1.96.0+dfsg1` of `1.96.0+dfsg1-1~deb12u2`.
fn upstream(version: &str) -> &str {
    version
        .rsplit_once('-')
        .map_or(version, |(upstream, _)| upstream)
}
