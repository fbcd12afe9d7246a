//! Which crate may depend on which: the picture in `crates/README.md`, as a table that is checked.
//!
//! A new edge is a reviewed decision: it is made here.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::shell;

/// Crate, and what of ours it may use outside of tests. Down the picture only, never sideways.
const ALLOWED: &[(&str, &[&str])] = &[
    (
        "criu",
        &[
            "criu-cli",
            "criu-image",
            "criu-kind",
            "criu-probe",
            "criu-proc",
            "criu-tracee",
            "criu-task",
            "criu-mm",
            "criu-files",
            "criu-mnt",
            "criu-net",
            "criu-ipc",
            "criu-bpf",
            "criu-cgroup",
            "criu-ns",
        ],
    ),
    ("criu-cli", &[]),
    ("criu-probe", &["criu-tracee"]),
    ("criu-task", SUBSYSTEM),
    ("criu-mm", SUBSYSTEM),
    ("criu-files", SUBSYSTEM),
    ("criu-mnt", SUBSYSTEM),
    ("criu-net", SUBSYSTEM),
    ("criu-ipc", SUBSYSTEM),
    ("criu-bpf", SUBSYSTEM),
    ("criu-cgroup", SUBSYSTEM),
    ("criu-ns", SUBSYSTEM),
    ("criu-kind", &["criu-tracee", "criu-proc", "criu-image"]),
    (
        "criu-tracee",
        &[
            "criu-arch",
            "criu-arch-x86_64",
            "criu-arch-aarch64",
            "criu-arch-armv7",
            "criu-arch-mips64",
        ],
    ),
    ("criu-proc", &[]),
    ("criu-image", &[]),
    // Only under the feature "image".
    ("criu-arch", &["criu-image"]),
    ("criu-arch-x86_64", ARCH),
    ("criu-arch-aarch64", ARCH),
    ("criu-arch-armv7", ARCH),
    ("criu-arch-mips64", ARCH),
    ("zdtm", &[]),
    ("zdtm-cases", &["zdtm"]),
    ("zdtm-init", &[]),
    ("zdtm-runner", &[]),
    ("benches", &["zdtm", "criu-tracee"]),
    ("xtask", &["zdtm-runner", "criu-image"]),
];

/// What a subsystem may use: what is below all of them, and none of its siblings.
const SUBSYSTEM: &[&str] = &["criu-kind", "criu-tracee", "criu-proc", "criu-image"];

/// What an architecture may use; the images only under its feature `image`.
const ARCH: &[&str] = &["criu-arch", "criu-image"];

/// Every edge that is not in the table, as a complaint.
pub(crate) fn complaints() -> Result<Vec<String>> {
    let output =
        shell::cargo_output(&["metadata", "--format-version=1", "--no-deps", "--offline"])?;
    let metadata: Value = serde_json::from_slice(&output)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata without packages")?;
    let ours: BTreeSet<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    let mut complaints = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
            complaints.push(format!(
                "crate {name} is not in the table of xtask/src/edges.rs"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            // Tests may reach anywhere; "dev" is the only kind that is not built for users.
            if ours.contains(to) && dependency["kind"] != "dev" && !allowed.contains(&to) {
                complaints.push(format!(
                    "{name} depends on {to}, which xtask/src/edges.rs does not allow"
                ));
            }
        }
    }
    Ok(complaints)
}
