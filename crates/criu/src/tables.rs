//! What there is, of all subsystems: only the driver knows more than one.

use criu_kind::AnyFileKind;

/// Every kind of open file.
pub(crate) fn kinds() -> impl Iterator<Item = &'static dyn AnyFileKind> {
    let all = [
        criu_bpf::KINDS,
        criu_files::KINDS,
        criu_ipc::KINDS,
        criu_net::KINDS,
    ];
    all.into_iter().flatten().copied()
}
