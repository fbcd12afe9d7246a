//! Descriptors of namespaces.

use std::fs::{File, read_link};
use std::os::fd::AsRawFd;

use zdtm::{Case, Result, check_eq};

pub(crate) const CASES: &[Case] = &[Case::new("ns-file", run)];

fn run() -> Result<()> {
    let names = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    let files = names
        .map(|name| File::open(format!("/proc/self/ns/{name}")))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    zdtm::checkpoint()?;
    for (name, file) in names.into_iter().zip(&files) {
        let held = read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        check_eq!(held, read_link(format!("/proc/self/ns/{name}"))?, "{name}");
    }
    Ok(())
}
