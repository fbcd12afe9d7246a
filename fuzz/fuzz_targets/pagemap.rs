//! Feeds `checks/pagemap.rs`.
#![no_main]

#[path = "../checks/pagemap.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::run(data));
