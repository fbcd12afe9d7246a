//! `cargo xtask stub`: the committed bytes of each stub are what its source assembles to.
//!
//! Bytes are committed because MIPS inline assembly needs a nightly compiler, and so that every
//! architecture is built and tested on every host.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::shell;

/// Of one architecture.
struct Stub {
    arch: &'static str,
    /// What the names of its assembler and object copier begin with.
    prefix: &'static str,
    /// The Debian package they come in.
    package: &'static str,
    options: &'static [&'static str],
}

const STUBS: &[Stub] = &[
    Stub {
        arch: "x86_64",
        prefix: "x86_64-linux-gnu-",
        package: "binutils-x86-64-linux-gnu",
        options: &["--64"],
    },
    Stub {
        arch: "aarch64",
        prefix: "aarch64-linux-gnu-",
        package: "binutils-aarch64-linux-gnu",
        options: &[],
    },
    Stub {
        arch: "armv7",
        prefix: "arm-linux-gnueabihf-",
        package: "binutils-arm-linux-gnueabihf",
        options: &[],
    },
    Stub {
        arch: "mips64",
        prefix: "mips64el-linux-gnuabi64-",
        package: "binutils-mips64el-linux-gnuabi64",
        options: &["-mabi=64", "-march=mips64r2"],
    },
];

/// Compares; `--write` puts the new bytes into `stub.rs`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let write = match arguments {
        [] => false,
        [one] if one == "--write" => true,
        _ => bail!("usage: stub [--write]"),
    };
    let root = shell::root()?;
    let tools = STUBS.iter().flat_map(|stub| {
        ["as", "objcopy"].map(|tool| (format!("{}{tool}", stub.prefix), stub.package))
    });
    let tools: Vec<(String, &str)> = tools.collect();
    let tools: Vec<(&str, &str)> = tools
        .iter()
        .map(|(tool, of)| (tool.as_str(), *of))
        .collect();
    shell::need(&tools)?;
    for stub in STUBS {
        let dir = root.join("arch").join(stub.arch).join("src");
        let fresh = assemble(&dir, stub)?;
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

fn assemble(dir: &Path, stub: &Stub) -> Result<Vec<u8>> {
    let out = std::env::temp_dir().join(format!("criu-rs-stub-{}", std::process::id()));
    std::fs::create_dir_all(&out)?;
    let (object, flat) = (out.join("stub.o"), out.join("stub.bin"));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (source, object_name, flat_name) = (text(&dir.join("stub.S")), text(&object), text(&flat));
    let tool = |name: &str, words: &[&str]| shell::run(&format!("{}{name}", stub.prefix), words);
    let copying = ["-O", "binary", "-j", ".text", &object_name, &flat_name];
    let assembled = tool(
        "as",
        &[stub.options, &["-o", &object_name, &source]].concat(),
    );
    let copied = assembled.and_then(|()| tool("objcopy", &copying));
    let bytes = copied.and_then(|()| Ok(std::fs::read(&flat)?));
    std::fs::remove_dir_all(&out)?;
    bytes
}
