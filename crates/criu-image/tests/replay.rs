//! What the fuzz targets check, on a stable compiler: every file that was ever of interest, once more.
#![allow(clippy::unwrap_used, reason = "a test: it may fail")]

#[path = "../../../fuzz/checks/image.rs"]
mod image;
#[path = "../../../fuzz/checks/pagemap.rs"]
mod pagemap;

use std::path::Path;

/// Every file of a corpus, and every start of it.
fn replay(corpus: &str, check: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(corpus);
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display()); // Shown if the check panics.
        let bytes = std::fs::read(path).unwrap();
        for end in 0..=bytes.len() {
            check(&bytes[..end]);
        }
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn image() {
    replay("image", image::run);
}

#[test]
fn pagemap() {
    replay("pagemap", pagemap::run);
}
