//! What there is, of all subsystems: only the driver knows more than one.

use criu_kind::AnyFileKind;

/// Every kind of open file.
pub(crate) fn kinds() -> impl Iterator<Item = &'static dyn AnyFileKind> {
    criu_files::KINDS
        .iter()
        .chain(criu_net::KINDS)
        .copied()
}
