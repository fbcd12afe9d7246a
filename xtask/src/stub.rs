//! `cargo xtask stub`: the committed bytes of each stub are what its source assembles to.
//!
//! Bytes are committed because MIPS inline assembly needs a nightly compiler, and so that every
//! architecture is built and tested on every host.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::shell;

/// Architecture, assembler, its options, object copier.
const STUBS: &[(&str, &str, &[&str], &str)] = &[
    ("x86_64", "as", &["--64"], "objcopy"),
    (
        "aarch64",
        "aarch64-linux-gnu-as",
        &[],
        "aarch64-linux-gnu-objcopy",
    ),
    (
        "armv7",
        "arm-linux-gnueabihf-as",
        &[],
        "arm-linux-gnueabihf-objcopy",
    ),
    (
        "mips64",
        "mips64el-linux-gnuabi64-as",
        &["-mabi=64", "-march=mips64r2"],
        "mips64el-linux-gnuabi64-objcopy",
    ),
];

/// Compares; `--write` puts the new bytes into `stub.rs`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let write = match arguments {
        [] => false,
        [one] if one == "--write" => true,
        _ => bail!("usage: stub [--write]"),
    };
    let root = shell::root()?;
    for (arch, assembler, options, copier) in STUBS {
        if !shell::has(assembler) || !shell::has(copier) {
            bail!("{assembler} and {copier} are missing: install their package of binutils");
        }
        let dir = root.join("arch").join(arch).join("src");
        let fresh = assemble(&dir, assembler, options, copier)?;
        let path = dir.join("stub.rs");
        let text = std::fs::read_to_string(&path)?;
        let (start, end) =
            bytes_of(&text).with_context(|| format!("no CODE in {}", path.display()))?;
        let committed: Vec<u8> = text[start..end]
            .split(',')
            .map(str::trim)
            .filter(|byte| !byte.is_empty())
            .map(|byte| u8::from_str_radix(byte.trim_start_matches("0x"), 16))
            .collect::<Result<_, _>>()?;
        if committed == fresh {
            continue;
        }
        ensure!(
            write,
            "{} is not what stub.S assembles to: cargo xtask stub --write",
            path.display()
        );
        let mut lines = String::from("\n");
        for line in fresh.chunks(16) {
            let line: Vec<String> = line.iter().map(|byte| format!("{byte:#04x},")).collect();
            lines.push_str(&format!("    {}\n", line.join(" ")));
        }
        std::fs::write(&path, format!("{}{lines}{}", &text[..start], &text[end..]))?;
    }
    Ok(())
}

fn bytes_of(text: &str) -> Option<(usize, usize)> {
    const HEAD: &str = "const CODE: &[u8] = &[";
    let start = text.find(HEAD)? + HEAD.len();
    Some((start, start + text[start..].find("];")?))
}

fn assemble(dir: &Path, assembler: &str, options: &[&str], copier: &str) -> Result<Vec<u8>> {
    let out = std::env::temp_dir().join(format!("criu-rs-stub-{}", std::process::id()));
    std::fs::create_dir_all(&out)?;
    let (object, flat) = (out.join("stub.o"), out.join("stub.bin"));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (source, object_name, flat_name) = (text(&dir.join("stub.S")), text(&object), text(&flat));
    let assembled = shell::run(
        assembler,
        &[options, &["-o", &object_name, &source]].concat(),
    );
    let copied = assembled.and_then(|()| {
        shell::run(
            copier,
            &["-O", "binary", "-j", ".text", &object_name, &flat_name],
        )
    });
    let bytes = copied.and_then(|()| Ok(std::fs::read(&flat)?));
    std::fs::remove_dir_all(&out)?;
    bytes
}
