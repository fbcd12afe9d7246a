//! The initramfs of the guests, in the kernel's own archive format: newc cpio.
//!
//! It holds init and the modules without which the disk is out of reach; all else is on the disk.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::modules::Modules;

/// Loaded before there is a disk, in this order where they do not say one themselves.
pub(crate) const BOOT: &[&str] = &["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];

/// Writes it. The arguments are for init: a program of the disk and its words.
pub(crate) fn write(to: &Path, init: &Path, modules: &Modules, arguments: &[String]) -> Result<()> {
    let mut archive = Archive::default();
    let early = modules.closure(BOOT);
    let place = format!("lib/modules/{}", modules.release);
    for dir in [
        "dev",
        "lib",
        "lib/modules",
        &place,
        "proc",
        "root",
        "sbin",
        "sys",
    ] {
        archive.entry(dir, 0o040_755, &[])?;
    }
    archive.entry("init", 0o100_755, &fs::read(init)?)?;
    archive.entry("arguments", 0o100_644, arguments.join("\n").as_bytes())?;
    archive.entry("sbin/modprobe", 0o120_777, b"/init")?;
    archive.entry(
        &format!("{place}/index"),
        0o100_644,
        early.index().as_bytes(),
    )?;
    for (name, bytes) in early.files() {
        archive.entry(&format!("{place}/{name}.ko"), 0o100_644, bytes)?;
    }
    archive.entry("TRAILER!!!", 0, &[])?;
    fs::write(to, archive.bytes)?;
    Ok(())
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Header, name with its zero, content; name and content end on a multiple of four.
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.inode += 1;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        let size = u32::try_from(content.len())?;
        let length = u32::try_from(name.len() + 1)?;
        // inode, mode, uid, gid, links, time, size, device, device of a node, length of the name, checksum
        let fields = [
            self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, length, 0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_carry_their_sizes() {
        let mut archive = Archive::default();
        archive
            .entry("ab", 0o100_644, b"hello")
            .expect("it is small");
        let text = String::from_utf8_lossy(&archive.bytes).into_owned();
        assert!(text.starts_with("07070100000001000081A4"));
        assert_eq!(&text[54..62], "00000005");
        assert_eq!(&text[94..102], "00000003");
        // 110 bytes of header and 3 of name are 113, padded to 116.
        assert_eq!(&text[110..121], "ab\0\0\0\0hello");
        assert_eq!(text.len(), 124);
    }
}
