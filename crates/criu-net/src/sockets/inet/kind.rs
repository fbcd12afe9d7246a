//! Internet sockets: TCP, UDP, UDP-Lite, ping and raw ones, of IPv4 and IPv6.
//!
//! What TCP has agreed upon with the other end, and what is under way, is read and set in repair mode
//! (`sockets/tcp`). Datagrams that wait come back as packets from who had sent them.
//! Not preserved: connections that nobody has accepted, pending errors, what waits in raw and ping sockets.
//! Refused: MPTCP, SCTP, DCCP, urgent data, datagrams that are being gathered, kTLS.

use criu_image::pb;
use criu_kind::{DumpCx, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result};
use criu_tracee::Program;

use crate::sockets::inet::{build, dump};

/// An internet socket.
#[derive(Debug)]
pub struct Inet;

impl FileKind for Inet {
    type Entry = pb::InetSkEntry;
    const NAME: &'static str = "inet";
    const SINCE: Kernel = Kernel::new(4, 11, 0);
    const RELATES: bool = true;
    const LEAVES: bool = true;

    fn claims(&self, file: &OpenFile) -> bool {
        matches!(file.family, Some(libc::AF_INET | libc::AF_INET6))
    }

    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        dump::describe(cx, file)
    }

    /// The last moment before the tasks end: what is under way is read when no more can come.
    fn relations(
        &self,
        cx: &mut dyn DumpCx,
        file: &OpenFile,
        entry: &mut Self::Entry,
    ) -> Result<()> {
        dump::finish(cx, file, entry)
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        build::build(cx, entry)
    }

    fn last(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry, fd: i32) -> Result<Program> {
        build::last(cx, entry, fd)
    }
}
