//! x86_64, native and compat.
#![forbid(unsafe_code)]
