//! Batches of syscalls as data.
