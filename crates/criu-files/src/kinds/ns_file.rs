//! Descriptors of namespaces: `/proc/PID/ns/X`, opened.
//!
//! Only of those that the tree itself is in, which are the restorer's own: he opens his. But the tree may have its clocks
//! for itself, then or now, so a task opens its time namespace.

use criu_image::id::VPid;
use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{DumpCx, Error, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result};
use criu_tracee::{Program, Ret};

/// Names as links have them, and the flags of clone(2).
const KINDS: &[(&str, u32)] = &[
    ("cgroup", 0x0200_0000),
    ("ipc", 0x0800_0000),
    ("mnt", 0x0002_0000),
    ("net", 0x4000_0000),
    ("pid", 0x2000_0000),
    ("time", 0x0000_0080),
    ("user", 0x1000_0000),
    ("uts", 0x0400_0000),
];
/// The kind that a restored tree may have of its own.
const TIME: &str = "time";
const O_ACCMODE: u32 = libc::O_ACCMODE.cast_unsigned();
const O_PATH: u32 = libc::O_PATH.cast_unsigned();

/// A namespace.
#[derive(Debug)]
pub struct NsFile;

/// `net:[4026531833]`.
fn parse(link: &[u8]) -> Option<(&'static str, u32, u64)> {
    let text = std::str::from_utf8(link).ok()?;
    let (name, rest) = text.split_once(":[")?;
    let inode = rest.strip_suffix(']')?.parse().ok()?;
    let (name, flag) = KINDS.iter().find(|(known, _)| *known == name)?;
    Some((name, *flag, inode))
}

impl FileKind for NsFile {
    type Entry = pb::NsFileEntry;
    const NAME: &'static str = "ns_file";
    const SINCE: Kernel = Kernel::new(3, 8, 0);

    fn claims(&self, file: &OpenFile) -> bool {
        parse(&file.link).is_some()
    }

    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        let foreign = || {
            Error::unsupported(
                format!("{}, a namespace that the tree is not in", file.link_text()),
                "let the task close it before the dump",
            )
        };
        let (name, ns_cflag, inode) = parse(&file.link).ok_or_else(foreign)?;
        let ns_id = cx.namespace(name, inode).ok_or_else(foreign)?;
        Ok(pb::NsFileEntry {
            id: file.number(),
            ns_id,
            ns_cflag,
            flags: file.flags(),
        })
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let known = KINDS.iter().find(|(_, flag)| *flag == entry.ns_cflag);
        let own = cx.cached(Own::load)?;
        let Some((name, _)) = known else {
            let why = format!("a namespace of unknown kind {:#x}", entry.ns_cflag);
            return Err(Error::corrupt("files.img", why));
        };
        if *name == TIME && own.tree_time == Some(entry.ns_id) {
            return Ok(Opened::There);
        }
        if own.id(name).is_some_and(|id| id != entry.ns_id) {
            return Err(Error::unsupported(
                format!("a descriptor of another {name} namespace than the restorer's"),
                "restore these images with the program that wrote them",
            ));
        }
        let mut program = Program::new();
        let fd = open(name, entry.flags, &mut program);
        Ok(Opened::Here(cx.here().run(&program)?.fd(fd)))
    }

    fn open_there(&self, entry: &Self::Entry, program: &mut Program) -> Result<Ret> {
        Ok(open(TIME, entry.flags, program))
    }
}

/// Opens one of the namespaces of whoever runs the program.
fn open(name: &str, flags: u32, program: &mut Program) -> Ret {
    let path = program.cstr(format!("/proc/self/ns/{name}"));
    // O_LARGEFILE matters on 32-bit machines only, and cannot be set later.
    let kept = O_ACCMODE | O_PATH | libc::O_LARGEFILE.cast_unsigned();
    let flags = flags & kept | libc::O_CLOEXEC.cast_unsigned();
    program.openat(libc::AT_FDCWD, path, flags, 0)
}

/// Namespaces by their ids in the images.
struct Own {
    /// Those of whoever dumped.
    ids: Option<pb::TaskKobjIdsEntry>,
    /// The time namespace of the tree.
    tree_time: Option<u32>,
}

impl Own {
    fn load(store: &dyn Store) -> Result<Self> {
        let entries = store.entries::<pb::InventoryEntry>(desc::INVENTORY, ())?;
        let inventory = entries.unwrap_or_default().into_iter().next();
        let pstree = store.entries::<pb::PstreeEntry>(desc::PSTREE, ())?;
        let root = pstree.unwrap_or_default().into_iter().next();
        let root = root.map(|entry| VPid::new(entry.message.pid));
        let ids = match root {
            Some(root) => store.entries::<pb::TaskKobjIdsEntry>(desc::IDS, root)?,
            None => None,
        };
        let ids = ids.unwrap_or_default().into_iter().next();
        Ok(Self {
            ids: inventory.and_then(|entry| entry.message.root_ids),
            tree_time: ids.and_then(|entry| entry.message.time_ns_id),
        })
    }

    fn id(&self, name: &str) -> Option<u32> {
        let ids = self.ids.as_ref()?;
        match name {
            "cgroup" => ids.cgroup_ns_id,
            "ipc" => ids.ipc_ns_id,
            "mnt" => ids.mnt_ns_id,
            "net" => ids.net_ns_id,
            "pid" => ids.pid_ns_id,
            "time" => ids.time_ns_id,
            "user" => ids.user_ns_id,
            "uts" => ids.uts_ns_id,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use criu_image::Memory;
    use criu_kind::testing::{Paper, dumped, open_file, restored, restored_with};
    use expect_test::expect;

    use super::*;

    const INFO: &str = "pos:\t0\nflags:\t0100000\nmnt_id:\t4\nino:\t77\n";

    #[test]
    fn a_namespace_of_the_tree() {
        let entry = dumped(&NsFile, &open_file("net:[77]", 0o100_444, INFO)).expect("known");
        assert_eq!((entry.ns_id, entry.ns_cflag), (77, 0x4000_0000));
        expect![[r#"
            $0 = openat(-100, "/proc/self/ns/net", 0x80000, 0)
            is 100
        "#]]
        .assert_eq(&restored(&NsFile, &entry).expect("a program"));
    }

    #[test]
    fn a_task_opens_its_clocks() {
        let images = Memory::new();
        let pstree = pb::PstreeEntry {
            pid: 42,
            ..pb::PstreeEntry::default()
        };
        let ids = pb::TaskKobjIdsEntry {
            time_ns_id: Some(8),
            ..pb::TaskKobjIdsEntry::default()
        };
        let written = [
            images.write_entry(desc::PSTREE, (), &pstree),
            images.write_entry(desc::IDS, VPid::new(42), &ids),
            images.finish(),
        ];
        written.into_iter().for_each(|done| done.expect("memory"));
        let entry = pb::NsFileEntry {
            ns_id: 8,
            ns_cflag: 0x80,
            ..pb::NsFileEntry::default()
        };
        let mut paper = Paper::default();
        paper.images = images;
        expect![[r#"
            there:
            $0 = openat(-100, "/proc/self/ns/time", 0x80000, 0)
            is Ret(0)
        "#]]
        .assert_eq(&restored_with(&NsFile, &[&entry], paper).expect("a program"));
    }

    #[test]
    fn others_are_refused() {
        let foreign = open_file("net:[4711]", 0o100_444, INFO);
        let refusal = dumped(&NsFile, &foreign).expect_err("refused");
        assert!(refusal.to_string().contains("net:[4711]"), "{refusal}");
        assert!(!FileKind::claims(
            &NsFile,
            &open_file("pipe:[77]", 0o010_600, INFO)
        ));
        let images = Memory::new();
        let ids = pb::TaskKobjIdsEntry {
            net_ns_id: Some(5),
            ..pb::TaskKobjIdsEntry::default()
        };
        let inventory = pb::InventoryEntry {
            root_ids: Some(ids),
            ..pb::InventoryEntry::default()
        };
        images
            .write_entry(desc::INVENTORY, (), &inventory)
            .expect("memory");
        images.finish().expect("memory");
        let entry = pb::NsFileEntry {
            ns_id: 6,
            ns_cflag: 0x4000_0000,
            ..pb::NsFileEntry::default()
        };
        let mut paper = Paper::default();
        paper.images = images;
        restored_with(&NsFile, &[&entry], paper).expect_err("another namespace");
    }
}
