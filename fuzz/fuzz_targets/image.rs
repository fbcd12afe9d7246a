//! Feeds `checks/image.rs`.
#![no_main]

#[path = "../checks/image.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::run(data));
