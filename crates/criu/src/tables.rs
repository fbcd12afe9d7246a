//! The tables of the subsystems, joined.

use criu_kind::AnyFileKind;

/// Every kind of open file.
pub(crate) fn kinds() -> impl Iterator<Item = &'static dyn AnyFileKind> {
    let all = [criu_files::KINDS, criu_bpf::KINDS, criu_ipc::KINDS];
    all.into_iter().flatten().copied()
}
