//! Feeds `checks/proc.rs`.
#![no_main]

#[path = "../checks/proc.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::run(data));
