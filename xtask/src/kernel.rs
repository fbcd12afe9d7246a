//! The kernels of the guests: Debian's, unpacked into the cache.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::apt::Apt;
use crate::cache;
use crate::machine::Machine;

/// A kernel, and the directory with its modules.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// As it was asked for: `6.1`.
    pub(crate) series: String,
    pub(crate) image: PathBuf,
    pub(crate) modules: PathBuf,
}

/// The newest kernel of a series, `6.1` say; `6.12-16k` is the flavour with pages of that size.
pub(crate) fn get(machine: &Machine, series: &str) -> Result<Kernel> {
    let dir = cache::once(&format!("kernels/{}/{series}", machine.name), |dir| {
        fetch(machine, series, dir)
    })
    .with_context(|| format!("kernel {series} of {}", machine.name))?;
    Ok(Kernel {
        series: series.to_owned(),
        image: only(&dir.join("boot"), "vmlinu")?,
        modules: only(&dir.join("modules"), "")?,
    })
}

fn fetch(machine: &Machine, series: &str, dir: &Path) -> Result<()> {
    let apt = Apt::open(machine.debian)?;
    let (series, pages) = series
        .find('-')
        .map_or((series, ""), |at| series.split_at(at));
    let names = apt.names(&format!("linux-image-{series}."))?;
    let newest = machine.flavours.iter().find_map(|flavour| {
        let fits = |name: &&String| {
            let rest = name
                .strip_suffix(pages)
                .and_then(|rest| rest.strip_suffix(flavour))
                .and_then(|rest| rest.strip_suffix('-'));
            // Not a flavour that only ends in the same word.
            rest.is_some_and(|rest| rest.ends_with(|last: char| last.is_ascii_digit()))
        };
        names
            .iter()
            .filter(fits)
            .max_by_key(|name| numbers(name))
            .cloned()
    });
    let Some(newest) = newest else {
        bail!("there is none in the package lists; is the package mirror reachable?");
    };
    let whole = dir.join("whole");
    apt.unpack(&[newest], &whole)?;
    fs::rename(whole.join("boot"), dir.join("boot"))?;
    let modules = [whole.join("usr/lib/modules"), whole.join("lib/modules")];
    let modules = modules.iter().find(|path| path.exists());
    fs::rename(
        modules.context("no modules in the package")?,
        dir.join("modules"),
    )?;
    fs::remove_dir_all(whole)?;
    Ok(())
}

/// The numbers in a text, for comparing versions; "+deb12" and the like count last and little.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// The one entry that starts like this.
fn only(dir: &Path, start: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    entries
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(start))
        .map(|entry| entry.path())
        .with_context(|| format!("no {start}* in {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        let old = numbers("linux-image-6.1.0-9-amd64");
        assert!(old < numbers("linux-image-6.1.0-50-amd64"));
        assert!(
            numbers("linux-image-6.12.95+deb12-amd64")
                < numbers("linux-image-6.12.107+deb13-amd64")
        );
    }
}
