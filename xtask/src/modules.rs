//! Kernel modules: what they need and what they answer to, read from the modules themselves, as depmod would.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection};

use crate::shell;

/// What a guest may ask for after it has its disk; the kernel asks for most of it by alias.
pub(crate) const LATER: &[&str] = &[
    // What tells about sockets.
    "unix_diag",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "mptcp_diag",
    "af_packet_diag",
    "netlink_diag",
    // Sockets and links.
    "af_packet",
    "ipv6",
    "tun",
    "veth",
    "bridge",
    "macvlan",
    "dummy",
    "sit",
    "ip_gre",
    // Filters.
    "nf_tables",
    "nft_ct",
    "nft_counter",
    "nft_compat",
    "nft_reject_inet",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nfnetlink",
    "ip_tables",
    "iptable_filter",
    "ip6_tables",
    "ip6table_filter",
    "ipt_REJECT",
    "ip6t_REJECT",
    "xt_mark",
    "xt_tcpudp",
    "xt_conntrack",
    // Filesystems.
    "overlay",
    "autofs4",
    "binfmt_misc",
    "fuse",
    "loop",
    "squashfs",
    "crc32c_generic",
];

#[derive(Clone, Debug)]
struct Module {
    bytes: Rc<[u8]>,
    depends: Vec<String>,
    aliases: Vec<String>,
}

/// Modules of one kernel, by name.
#[derive(Clone, Debug)]
pub(crate) struct Modules {
    /// What the kernel calls itself: they are in a directory of this name.
    pub(crate) release: String,
    all: BTreeMap<String, Module>,
}

impl Modules {
    /// The named modules and what they need, out of a kernel's directory. What is built in is not there.
    pub(crate) fn read(dir: &Path, names: &[&[&str]]) -> Result<Self> {
        let mut files = BTreeMap::new();
        find(dir, &mut files)?;
        let mut found = BTreeMap::new();
        let mut wanted: Vec<String> = names
            .iter()
            .flat_map(|names| names.iter())
            .map(|name| (*name).to_owned())
            .collect();
        while let Some(name) = wanted.pop() {
            if found.contains_key(&name) {
                continue;
            }
            let Some(file) = files.get(&name) else {
                continue;
            };
            let module = describe(file).with_context(|| file.display().to_string())?;
            wanted.extend(module.depends.iter().cloned());
            found.insert(name, module);
        }
        let release = dir.file_name().context("the directory has a name")?;
        Ok(Self {
            release: release.to_string_lossy().into_owned(),
            all: found,
        })
    }

    /// Some of them and what they need.
    pub(crate) fn closure(&self, names: &[&str]) -> Self {
        let mut some = BTreeMap::new();
        let mut wanted: Vec<&str> = names.to_vec();
        while let Some(name) = wanted.pop() {
            if let Some(module) = self.all.get(name)
                && some.insert(name.to_owned(), module.clone()).is_none()
            {
                wanted.extend(module.depends.iter().map(String::as_str));
            }
        }
        Self {
            release: self.release.clone(),
            all: some,
        }
    }

    /// What init reads: a module a line, with what it needs and its aliases, between tabs.
    pub(crate) fn index(&self) -> String {
        let line = |(name, module): (&String, &Module)| {
            format!(
                "{name}\t{}\t{}\n",
                module.depends.join(" "),
                module.aliases.join(" ")
            )
        };
        self.all.iter().map(line).collect()
    }

    /// The modules themselves, uncompressed.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.all
            .iter()
            .map(|(name, module)| (name.as_str(), &*module.bytes))
    }
}

fn find(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            find(&path, files)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && let Some(name) = name.strip_suffix(".xz").unwrap_or(name).strip_suffix(".ko")
        {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn content(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return Ok(fs::read(file)?);
    }
    shell::need(&[("xz", "xz-utils")])?;
    let output = Command::new("xz")
        .arg("-dc")
        .arg(file)
        .output()
        .context("xz")?;
    ensure!(
        output.status.success(),
        "xz -dc {}: {}",
        file.display(),
        output.status
    );
    Ok(output.stdout)
}

/// `.modinfo` is `key=value` texts, each with a zero behind it.
fn describe(file: &Path) -> Result<Module> {
    let bytes = content(file)?;
    let elf = object::File::parse(&*bytes)?;
    let info = elf
        .section_by_name(".modinfo")
        .context("no .modinfo")?
        .data()?;
    let texts: Vec<String> = info
        .split(|byte| *byte == 0)
        .map(|text| String::from_utf8_lossy(text).into_owned())
        .collect();
    let values = |key: &'static str| {
        texts
            .iter()
            .filter_map(move |text| text.strip_prefix(key)?.strip_prefix('='))
    };
    let mut depends: BTreeSet<String> = values("depends")
        .flat_map(|list| list.split(','))
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect();
    // The one soft dependency that is hard in practice: without it libcrc32c is ENOENT.
    if values("softdep").any(|text| text.contains("crc32c")) {
        depends.insert("crc32c_generic".to_owned());
    }
    let aliases: BTreeSet<String> = values("alias").map(|name| name.replace('-', "_")).collect();
    Ok(Module {
        depends: depends.into_iter().collect(),
        aliases: aliases.into_iter().collect(),
        bytes: bytes.into(),
    })
}
