//! The contract between the engine and a machine.
#![forbid(unsafe_code)]
