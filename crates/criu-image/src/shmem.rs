//! Anonymous shared memory as CRIU keeps it since 3.15: a memfd by the name that `/proc` shows for it.
//!
//! A real memfd may be called so too, but nobody can seal this one: `shmem_get_inode` of
//! `mm/shmem.c` makes objects with no seal but the one against seals, as memfd_create(2) does only on wish.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{FileId, ShmId};
use crate::{Desc, ImageId, Result, Store, StoreExt, desc, pb};

/// What `/proc/PID/maps` calls it.
const NAME: &[u8] = b"/dev/zero";
/// What it calls one of huge pages.
const HUGE_NAME: &[u8] = b"/anon_hugepage";
const F_SEAL_SEAL: u32 = 1;
/// A private mapping of a file: `VMA_FILE_PRIVATE` of the image format.
const FILE_PRIVATE: u32 = 1 << 6;

/// An object and its size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// The number of its pagemap.
    pub id: ShmId,
    /// Its size.
    pub size: u64,
}

/// The entries of `files.img` that are such memory, of objects that no task has as a descriptor or maps privately: then
/// only shared mappings name them.
pub fn anonymous<S: Store + ?Sized>(store: &S) -> Result<BTreeMap<FileId, Object>> {
    let inodes = store
        .entries::<pb::MemfdInodeEntry>(desc::MEMFD, ())?
        .unwrap_or_default();
    let inodes: BTreeMap<u64, Object> = inodes
        .into_iter()
        .map(|inode| inode.message)
        .filter(|inode| {
            let name = match inode.hugetlb_flag {
                Some(_) => HUGE_NAME,
                None => NAME,
            };
            *inode.name == *name && inode.seals == F_SEAL_SEAL
        })
        .map(|inode| {
            let (id, size) = (ShmId::new(inode.shmid.into()), inode.size);
            (inode.inode_id, Object { id, size })
        })
        .collect();
    if inodes.is_empty() {
        return Ok(BTreeMap::new());
    }
    let files = store
        .entries::<pb::FileEntry>(desc::FILES, ())?
        .unwrap_or_default();
    let found: BTreeMap<FileId, (u64, Object)> = files
        .into_iter()
        .filter_map(|file| {
            let memfd = file.message.memfd?;
            let inode = u64::from(memfd.inode_id);
            let object = inodes.get(&inode)?;
            Some((FileId::new(memfd.id), (inode, *object)))
        })
        .collect();
    let mut files: BTreeSet<u64> = BTreeSet::new();
    let mut is_file = |id: u32| {
        let object = found.get(&FileId::new(id));
        files.extend(object.map(|(inode, _)| *inode));
    };
    for name in store.names()? {
        let Some((kind, ImageId::Number(number))) = Desc::of_file(&name) else {
            continue;
        };
        let Ok(number) = u32::try_from(number) else {
            continue;
        };
        if kind.stem == desc::FDINFO.stem {
            let slots = store.entries::<pb::FdinfoEntry>(desc::FDINFO, number)?;
            let slots = slots.unwrap_or_default();
            slots.iter().for_each(|slot| is_file(slot.message.id));
        } else if kind.stem == desc::MM.stem && !found.is_empty() {
            let spaces = store.entries::<pb::MmEntry>(desc::MM, number)?;
            let spaces = spaces.unwrap_or_default();
            let vmas = spaces.iter().flat_map(|space| &space.message.vmas);
            for vma in vmas.filter(|vma| vma.status & FILE_PRIVATE != 0) {
                u32::try_from(vma.shmid).into_iter().for_each(&mut is_file);
            }
        }
    }
    let only_mapped = found.into_iter();
    let only_mapped = only_mapped.filter(|(_, (inode, _))| !files.contains(inode));
    Ok(only_mapped.map(|(id, (_, object))| (id, object)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;

    fn images(seals: u32, fd: u32) -> Memory {
        let store = Memory::new();
        let inode = pb::MemfdInodeEntry {
            name: NAME.into(),
            size: 8192,
            shmid: 77,
            seals,
            inode_id: 3,
            ..pb::MemfdInodeEntry::default()
        };
        let memfd = pb::MemfdFileEntry {
            id: 5,
            inode_id: 3,
            ..pb::MemfdFileEntry::default()
        };
        let file = pb::FileEntry {
            r#type: pb::FdTypes::Memfd.into(),
            id: 5,
            memfd: Some(memfd.into()),
            ..pb::FileEntry::default()
        };
        let slot = pb::FdinfoEntry {
            id: fd,
            ..pb::FdinfoEntry::default()
        };
        store.write_entry(desc::MEMFD, (), &inode).expect("written");
        store.write_entry(desc::FILES, (), &file).expect("written");
        store
            .write_entry(desc::FDINFO, 1_u32, &slot)
            .expect("written");
        store.finish().expect("finished");
        store
    }

    #[test]
    fn only_what_is_mapped_and_nothing_else() {
        let object = Object {
            id: ShmId::new(77),
            size: 8192,
        };
        let found = |seals, fd| anonymous(&images(seals, fd)).expect("readable");
        assert_eq!(found(1, 6), BTreeMap::from([(FileId::new(5), object)]));
        assert_eq!(found(1, 5), BTreeMap::new(), "a descriptor");
        assert_eq!(found(0, 6), BTreeMap::new(), "a memfd that can be sealed");
    }

    #[test]
    fn an_object_is_a_file_for_all_or_for_none() {
        let found = |with: &dyn Fn(&Memory)| {
            let store = Memory::new();
            let inode = pb::MemfdInodeEntry {
                name: NAME.into(),
                shmid: 77,
                seals: 1,
                inode_id: 3,
                ..pb::MemfdInodeEntry::default()
            };
            store.write_entry(desc::MEMFD, (), &inode).expect("written");
            let openings = [5, 6].map(|id| pb::FileEntry {
                r#type: pb::FdTypes::Memfd.into(),
                id,
                memfd: Some(Box::new(pb::MemfdFileEntry {
                    id,
                    inode_id: 3,
                    ..pb::MemfdFileEntry::default()
                })),
                ..pb::FileEntry::default()
            });
            let written = store.write_entries(desc::FILES, (), &openings);
            written.expect("written");
            with(&store);
            store.finish().expect("finished");
            let found = anonymous(&store).expect("readable");
            found.keys().map(|id| id.get()).collect::<Vec<u32>>()
        };
        let mapped = |status, store: &Memory| {
            let vma = pb::VmaEntry {
                shmid: 6,
                status,
                ..pb::VmaEntry::default()
            };
            let space = pb::MmEntry {
                vmas: vec![vma],
                ..pb::MmEntry::default()
            };
            let written = store.write_entry(desc::MM, 1_u32, &space);
            written.expect("written");
        };
        assert_eq!(found(&|store| mapped(1 << 7, store)), [5, 6]);
        assert_eq!(found(&|store| mapped(1 << 6, store)), [0; 0]);
        let opened = |store: &Memory| {
            let slot = pb::FdinfoEntry {
                id: 5,
                ..pb::FdinfoEntry::default()
            };
            let written = store.write_entry(desc::FDINFO, 1_u32, &slot);
            written.expect("written");
        };
        assert_eq!(found(&opened), [0; 0]);
    }
}
