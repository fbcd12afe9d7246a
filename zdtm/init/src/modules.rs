//! Loads kernel modules with what they need, by `/lib/modules/RELEASE/index`: name, needs and aliases a line, between
//! tabs.

use std::fs::File;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::sys::utsname::uname;

/// Where those of the running kernel are.
pub(crate) fn dir() -> Result<String> {
    let release = uname()?.release().to_string_lossy().into_owned();
    Ok(format!("/lib/modules/{release}"))
}

/// Loads what answers to this name or alias. What is loaded already, or built in, is no error to the kernel's caller.
pub(crate) fn load(wanted: &str) -> Result<()> {
    let dir = dir()?;
    let index = std::fs::read_to_string(format!("{dir}/index"))?;
    let wanted = wanted.replace('-', "_");
    let names: Vec<&str> = index
        .lines()
        .filter_map(|line| {
            let mut columns = line.split('\t');
            let name = columns.next()?;
            let mut aliases = columns.nth(1)?.split(' ');
            (name == wanted || aliases.any(|alias| matches(alias, &wanted))).then_some(name)
        })
        .collect();
    if names.is_empty() {
        bail!("nothing answers to {wanted}");
    }
    names.iter().try_for_each(|name| insert(&dir, &index, name))
}

fn insert(dir: &str, index: &str, name: &str) -> Result<()> {
    let line = index
        .lines()
        .find(|line| line.split('\t').next() == Some(name));
    // Built into the kernel, or none of ours.
    let Some(line) = line else { return Ok(()) };
    let needs = line.split('\t').nth(1).unwrap_or_default();
    for need in needs.split_whitespace() {
        insert(dir, index, need)?;
    }
    let file = File::open(format!("{dir}/{name}.ko")).with_context(|| name.to_owned())?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("module {name}")),
    }
}

/// Shell patterns of which aliases only use the asterisk.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            (0..=text.len()).any(|at| text.is_char_boundary(at) && matches(rest, &text[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn an_asterisk_stands_for_anything() {
        assert!(matches("fs_ext4", "fs_ext4"));
        assert!(matches(
            "pci:v00001AF4d*sv*",
            "pci:v00001AF4d00001001sv00001AF4"
        ));
        assert!(!matches(
            "net_pf_16_proto_4_type_1",
            "net_pf_16_proto_4_type_10"
        ));
    }
}
