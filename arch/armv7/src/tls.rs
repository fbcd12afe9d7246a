//! Thread-local storage: the register that only the kernel writes.
//!
//! `ptrace` can read it but not set it: a thread sets its own.

use criu_arch::{SetArea, ThreadAreas};

/// `PTRACE_GET_THREAD_AREA`.
pub(crate) const AREA: ThreadAreas = ThreadAreas {
    get: 22,
    set: SetArea::Itself,
    slots: &[0],
    size: 4,
};

/// `__ARM_NR_set_tls`.
#[cfg(feature = "image")]
pub(crate) const SET_TLS: u32 = 0x000f_0005;
