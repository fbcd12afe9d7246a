//! What the user may choose, and what the driver knows.

use std::fs::File;
use std::path::PathBuf;

use criu_image::Store;
use criu_image::id::ShmId;
use criu_kind::Result;
use criu_proc::Dev;
use nix::unistd::Pid;

/// How `dump` treats files.
#[derive(Clone, Debug)]
pub struct DumpOptions {
    /// Bytes on disk of the largest unlinked file that goes into the images (`--ghost-limit`).
    pub ghost_limit: u64,
    /// Whether an open file whose name is gone while others exist may get another one (`--link-remap`).
    pub link_remap: bool,
    /// Whether locks are dumped (`--file-locks`); without it they are refused.
    pub file_locks: bool,
    /// Whether any device node of the same number will do (`--evasive-devices`).
    pub evasive_devices: bool,
    /// What is kept to know files again (`--file-validation`).
    pub validation: Validation,
    /// Whether paths say which mount they are on: only if the mounts are dumped too. Without them CRIU would look
    /// for the mount and not find it.
    pub mounts: bool,
    /// Where to look for watched files that have no path otherwise (`--irmap-scan-path`); `None`: nowhere.
    pub irmap: Option<Vec<PathBuf>>,
    /// Devices that are given at restore: type and number, and what they are called
    /// (`--external dev[MAJOR/MINOR]:NAME`).
    pub devices: Vec<(Dev, String)>,
    /// What is outside and stays there, in the words of `--external`: `file[1f:2a]`, `unix[*]`.
    pub external: Vec<String>,
    /// All processes and threads of the tree.
    pub tree: Vec<Pid>,
    /// The namespaces of the tree: kind, inode number, id.
    pub namespaces: Vec<(&'static str, u64, u32)>,
}

/// How `restore` treats files.
pub struct RestoreOptions {
    /// What is compared.
    pub validation: Validation,
    /// Whether permissions may have changed (`--skip-file-rwx-check`).
    pub skip_permissions: bool,
    /// Descriptors of ours that take the place of files: `pipe:[4711]`, `file[1f:2a]`, a path.
    pub inherited: Vec<(String, i32)>,
    /// Paths that take the place of devices, by name (`--external dev[NAME]:PATH`).
    pub devices: Vec<(String, PathBuf)>,
    /// What may have happened to the file of a path (`--file-policy`).
    pub policies: Policies,
    /// What may be outside: `unix[*]`.
    pub external: Vec<String>,
    /// A directory that paths start from (`--root`), by descriptor.
    pub root: Option<i32>,
    /// Brings the pages of memory that files hold into a new object of this size.
    pub memory: fn(&dyn Store, ShmId, &File, u64) -> Result<()>,
}

/// Tells the policy of a path.
pub type Policies = Box<dyn Fn(&[u8]) -> FilePolicy>;

impl std::fmt::Debug for RestoreOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestoreOptions")
            .field("validation", &self.validation)
            .field("inherited", &self.inherited)
            .finish_non_exhaustive()
    }
}

/// What may have happened to a file since it was dumped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilePolicy {
    /// Nothing.
    Strict,
    /// Anything.
    Ignore,
    /// It may have grown.
    Append,
    /// The same, and it is cut to the size it had.
    Truncate,
    /// Another one takes its place.
    Replace(Vec<u8>),
}

/// How a regular file is known again at restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// By its size.
    Size,
    /// By its size, and by its build-id if it is an ELF file that has one.
    BuildId,
}
