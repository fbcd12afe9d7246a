//! Reads every image of the directories given, and says whether it would be written the same.
//!
//! `cargo run -p criu-image --example check -- DIR...`
use std::path::Path;

use criu_image::{Desc, Directory, Result, Store as _, desc, pages::Pagemap, parse_any};

fn main() -> Result<()> {
    let mut changed = 0;
    for directory in std::env::args().skip(1) {
        changed += check(Path::new(&directory))?;
    }
    std::process::exit(i32::from(changed > 0))
}

/// How many images would change.
fn check(directory: &Path) -> Result<usize> {
    let store = Directory::open(directory)?;
    let mut changed = 0;
    for name in store.names()? {
        let Some((kind, id)) = Desc::of_file(&name) else {
            println!("{name}: not an image");
            continue;
        };
        if kind.is_raw() {
            continue;
        }
        let bytes = store.read(&name)?.unwrap_or_default();
        let parsed = parse_any(&name, &bytes)?;
        let same = parsed.encoded == bytes;
        changed += usize::from(!same);
        println!(
            "{name}: {} entries{}",
            parsed.entries.len(),
            if same { "" } else { ", CHANGED" }
        );
        if kind.stem == desc::PAGEMAP.stem
            && let Some(map) = Pagemap::read(&store, desc::PAGEMAP, id, 4096)?
        {
            let pages = desc::PAGES.file_name(map.pages_id());
            let len = store
                .open(&pages)?
                .and_then(|file| file.metadata().ok())
                .map_or(0, |m| m.len());
            map.check_pages_len(&pages, len)?;
            println!(
                "  {} bytes of pages in {pages}, which has {len}",
                map.pages_len()
            );
        }
    }
    Ok(changed)
}
