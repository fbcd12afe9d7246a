//! What the fuzz target checks, on a stable compiler: every file that was ever of interest, once more.
#![allow(clippy::unwrap_used, reason = "a test: it may fail")]

#[path = "../../../fuzz/checks/proc.rs"]
mod proc;

use std::path::Path;

/// Every file of the corpus and of the fixtures, and every start of it.
#[test]
fn proc() {
    for dir in ["../../fuzz/corpus/proc", "fixtures"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
        let mut count = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display()); // Shown if the check panics.
            let bytes = std::fs::read(path).unwrap();
            for end in 0..=bytes.len() {
                proc::run(&bytes[..end]);
            }
            count += 1;
        }
        assert!(count > 0);
    }
}
