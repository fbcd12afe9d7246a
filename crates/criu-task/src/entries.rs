//! The messages that every aspect writes into or reads from.

use criu_image::pb;
use criu_kind::{Draft, Error, Result, Saved};

/// What each thread has for itself, of a draft.
pub(crate) fn thread_of(draft: &mut Draft) -> &mut pb::ThreadCoreEntry {
    draft.core.thread_core.get_or_insert_default()
}

/// What all threads share, of the draft of a leader.
pub(crate) fn task_of(draft: &mut Draft) -> &mut pb::TaskCoreEntry {
    draft.core.tc.get_or_insert_default()
}

/// What a saved thread has for itself.
pub(crate) fn thread<'a>(saved: &Saved<'a>) -> Result<&'a pb::ThreadCoreEntry> {
    saved
        .core
        .thread_core
        .as_ref()
        .ok_or_else(|| missing(saved.vtid, "thread_core"))
}

/// What all threads of a saved process share.
pub(crate) fn task<'a>(saved: &Saved<'a>) -> Result<&'a pb::TaskCoreEntry> {
    saved
        .leader_core
        .tc
        .as_ref()
        .ok_or_else(|| missing(saved.vpid, "tc"))
}

fn missing(id: i32, what: &str) -> Error {
    Error::corrupt(format!("core-{id}"), format!("no {what}"))
}
