//! The mounts of a task: `/proc/PID/mountinfo`, proc_pid_mountinfo(5).

use crate::escape;
use crate::text::{Line, lines, split_at_byte, unsigned};
use crate::{Dev, ParseError};

/// A mount's number, unique among the living of all namespaces; reused later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MountId(pub i32);

/// The optional fields: `Documentation/filesystems/sharedsubtree.rst`, mount_namespaces(7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Propagation {
    /// `shared:`, the peer group.
    pub shared: Option<i32>,
    /// `master:`, the peer group it receives from.
    pub master: Option<i32>,
    /// `propagate_from:`, the nearest group above the master that the reader can see.
    pub propagate_from: Option<i32>,
    /// `unbindable`.
    pub unbindable: bool,
}

/// One mount. Names are unescaped; here the kernel escapes the backslash too, so they are exact.
///
/// `show_mountinfo` in `fs/proc_namespace.c`. Mounts outside the task's root are not listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number.
    pub id: MountId,
    /// What it is mounted on. The top of the tree has a parent that is not listed, or itself.
    pub parent: MountId,
    /// The superblock.
    pub dev: Dev,
    /// The directory of the superblock that is mounted.
    pub root: Vec<u8>,
    /// That directory was deleted: the kernel appended `//deleted`, here removed.
    pub root_deleted: bool,
    /// Where, from the task's root.
    pub mountpoint: Vec<u8>,
    /// `ro`, `nosuid`, `relatime`…, of this mount alone.
    pub options: Vec<Vec<u8>>,
    /// Peers and masters.
    pub propagation: Propagation,
    /// The type, with the subtype after a dot: `fuse.sshfs`.
    pub fstype: Vec<u8>,
    /// The device, or any text; may be empty.
    pub source: Vec<u8>,
    /// The superblock's options, still escaped: see [`super_options`](Self::super_options).
    pub super_options_raw: Vec<u8>,
}

impl Mount {
    /// The superblock's options, unescaped one by one (overlayfs escapes the commas in its paths).
    pub fn super_options(&self) -> impl Iterator<Item = Vec<u8>> {
        self.super_options_raw
            .split(|&byte| byte == b',')
            .map(escape::octal)
    }

    fn parse(mut line: Line<'_>) -> Result<Self, ParseError> {
        let id = MountId(line.int("a mount id")?);
        let parent = MountId(line.int("the parent's mount id")?);
        line.skip_blanks();
        let before = line.clone();
        let dev =
            dev(line.until(b' ', "a device")?).ok_or_else(|| before.error("a device like 8:1"))?;
        let root = escape::octal(line.until(b' ', "the root")?);
        let (root, root_deleted) = match root.strip_suffix(b"//deleted") {
            Some(root) => (root.to_vec(), true),
            None => (root, false),
        };
        let mountpoint = escape::octal(line.until(b' ', "the mount point")?);
        let options = line
            .until(b' ', "options")?
            .split(|&byte| byte == b',')
            .map(escape::octal)
            .collect();
        let propagation = propagation(&mut line)?;
        // From here fields are apart by exactly one space: an empty source is printed as nothing.
        let fstype = escape::octal(line.until(b' ', "a filesystem type")?);
        let source = escape::octal(line.until(b' ', "a source")?);
        let super_options_raw = line.rest().to_vec();
        Ok(Self {
            id,
            parent,
            dev,
            root,
            root_deleted,
            mountpoint,
            options,
            propagation,
            fstype,
            source,
            super_options_raw,
        })
    }
}

/// All the mounts, in the kernel's order: of two on the same place the later is on top.
pub fn mountinfo(mountinfo: &[u8]) -> Result<Vec<Mount>, ParseError> {
    lines("mountinfo", mountinfo).map(Mount::parse).collect()
}

/// A decimal `major:minor`.
fn dev(word: &[u8]) -> Option<Dev> {
    let number = |digits| unsigned(digits, 10).and_then(|number| u32::try_from(number).ok());
    let (major, minor) = split_at_byte(word, b':')?;
    Some(Dev {
        major: number(major)?,
        minor: number(minor)?,
    })
}

fn propagation(line: &mut Line<'_>) -> Result<Propagation, ParseError> {
    let mut propagation = Propagation::default();
    loop {
        let before = line.clone();
        let field = line.until(b' ', "- after the optional fields")?;
        let (name, group) = split_at_byte(field, b':').unwrap_or((field, b""));
        let group = || {
            let group = unsigned(group, 10).and_then(|group| i32::try_from(group).ok());
            group.ok_or_else(|| before.error("a peer group's number"))
        };
        match name {
            b"-" => return Ok(propagation),
            b"shared" => propagation.shared = Some(group()?),
            b"master" => propagation.master = Some(group()?),
            b"propagate_from" => propagation.propagate_from = Some(group()?),
            b"unbindable" => propagation.unbindable = true,
            _ => return Err(before.error("shared, master, propagate_from, unbindable or -")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_namespace() {
        let mounts = mountinfo(include_bytes!("../fixtures/mountinfo")).expect("a real file");
        let root = mounts
            .iter()
            .find(|mount| mount.mountpoint == b"/")
            .expect("a root");
        assert_eq!(
            (root.id, root.parent, root.dev),
            (
                MountId(27),
                MountId(1),
                Dev {
                    major: 254,
                    minor: 0
                }
            )
        );
        assert_eq!(
            (&*root.fstype, &*root.source),
            (b"ext4".as_slice(), b"/dev/vda".as_slice())
        );
        assert_eq!(root.super_options().next(), Some(b"rw".to_vec()));
        let odd = mounts.last().expect("not empty");
        assert_eq!(
            (&*odd.mountpoint, &*odd.source),
            (b"/tmp/m t\n\\#".as_slice(), b"src # \\x".as_slice())
        );
        assert_eq!((odd.propagation.shared, odd.options.len()), (Some(1), 2));
    }

    #[test]
    fn rare_fields() {
        let text = b"9 8 0:5 /a//deleted /b rw shared:7 master:3 propagate_from:2 unbindable - fuse.x  rw,d=a\\054b,c\n";
        let mount = mountinfo(text).expect("well formed").remove(0);
        assert_eq!((&*mount.root, mount.root_deleted), (b"/a".as_slice(), true));
        assert_eq!(mount.propagation.propagate_from, Some(2));
        assert!(mount.propagation.unbindable && mount.source.is_empty());
        assert_eq!(mount.super_options().nth(1), Some(b"d=a,b".to_vec()));
    }

    #[test]
    fn refusals() {
        let error = mountinfo(b"9 8 0:5 / /b rw cloned:1 - x y z").expect_err("no such field");
        assert!(
            error
                .to_string()
                .starts_with("mountinfo:1: expected shared, master,")
        );
        mountinfo(b"9 8 0:5 / /b rw").expect_err("cut short");
    }
}
