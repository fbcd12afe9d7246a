//! Unix sockets: unix(7), of all three types.
//!
//! All of a dump are made at once, by the processes that are to be remembered for it (`SO_PEERCRED`): they refer to
//! each other in every direction. What waits is sent again; descriptors that wait can be sockets of the same
//! kind.
//! Not preserved: pending errors (`SO_ERROR`), security labels of what waits. Refused: bytes out of band, data
//! sent before the connection is accepted.

use criu_image::pb;
use criu_kind::{DumpCx, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result};

use crate::sockets::unix::{build, dump, name};

/// `uflags`: not of the tree; stands for a name to connect to.
pub(crate) const EXTERN: u32 = 1;
/// What is described once: sockets outside of the tree.
pub(crate) const OUTSIDE: &str = "unix outside";

/// A unix socket.
#[derive(Debug)]
pub struct Unix;

impl FileKind for Unix {
    type Entry = pb::UnixSkEntry;
    const NAME: &'static str = "unix";
    const SINCE: Kernel = Kernel::new(4, 13, 0);
    const RELATES: bool = true;
    const LATE: bool = true;

    fn claims(&self, file: &OpenFile) -> bool {
        file.family == Some(libc::AF_UNIX)
    }

    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        dump::describe(cx, file)
    }

    fn relations(
        &self,
        cx: &mut dyn DumpCx,
        file: &OpenFile,
        entry: &mut Self::Entry,
    ) -> Result<()> {
        dump::relate(cx, file, entry)
    }

    /// Also what was accepted has the name of where that was: a socket for the while may be needed there.
    fn is_named(&self, entry: &Self::Entry) -> bool {
        name::is_path(&entry.name)
    }

    /// All of them are twins.
    fn twins(&self, _: &Self::Entry) -> Option<u64> {
        Some(0)
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let mut all = self.open_twins(cx, &[entry])?;
        Ok(all.remove(0))
    }

    fn open_twins(&self, cx: &mut dyn RestoreCx, entries: &[&Self::Entry]) -> Result<Vec<Opened>> {
        build::build(cx, entries)
    }
}
