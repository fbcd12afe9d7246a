//! Where memory and files meet: mappings name files by id.

use std::ops::Range;

use criu_image::id::FileId;
use nix::unistd::Pid;

use crate::error::Result;

/// Takes in files that are mapped, at dump.
pub trait MappedFiles {
    /// The file behind a mapping, through `/proc/PID/map_files`. `writable`: the mapping is shared and
    /// may become writable, so the file must be opened for writing at restore.
    fn mapped(&mut self, pid: Pid, range: Range<u64>, writable: bool) -> Result<FileId>;

    /// Whether anonymous shared memory of this inode is kept as a file, for somebody has it open: then that is what its
    /// mappings are of. Known when all files of all processes are.
    fn keeps_as_file(&self, _ino: u64) -> bool {
        false
    }

    /// The file behind `/proc/PID/exe`.
    fn exe(&mut self, pid: Pid) -> Result<FileId>;
}

/// Open files at restore.
pub trait FileFds {
    /// The number of the descriptor under which every new task has inherited the file, open for
    /// mapping, until its own descriptors are put in place.
    fn fd(&self, id: FileId) -> Result<i32>;

    /// The same for a shared mapping, open for reading only or for writing too: images of CRIU have one
    /// entry for mappings of both kinds.
    fn fd_to_map(&self, id: FileId, writable: bool) -> Result<i32> {
        let _ = writable;
        self.fd(id)
    }
}
