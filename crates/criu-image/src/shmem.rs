//! Anonymous shared memory as CRIU keeps it since 3.15: a memfd by the name that `/proc` shows for it.
//!
//! A real memfd may be called so too, but nobody can seal this one: `shmem_get_inode` of
//! `mm/shmem.c` makes objects with no seal but the one against seals, as memfd_create(2) does only on wish.

use std::collections::BTreeMap;

use crate::id::{FileId, ShmId};
use crate::{Desc, ImageId, Result, Store, StoreExt, desc, pb};

/// What `/proc/PID/maps` calls it.
const NAME: &[u8] = b"/dev/zero";
/// What it calls one of huge pages.
const HUGE_NAME: &[u8] = b"/anon_hugepage";
const F_SEAL_SEAL: u32 = 1;

/// An object and its size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// The number of its pagemap.
    pub id: ShmId,
    /// Its size.
    pub size: u64,
}

/// The entries of `files.img` that are such memory, of those that no task has as a descriptor: then
/// only mappings name them.
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
    let mut found: BTreeMap<FileId, Object> = files
        .into_iter()
        .filter_map(|file| {
            let memfd = file.message.memfd?;
            let inode = inodes.get(&memfd.inode_id.into())?;
            Some((FileId::new(memfd.id), *inode))
        })
        .collect();
    for name in store.names()? {
        let Some((kind, ImageId::Number(number))) = Desc::of_file(&name) else {
            continue;
        };
        let table = u32::try_from(number).ok();
        let Some(table) = table.filter(|_| kind.stem == desc::FDINFO.stem) else {
            continue;
        };
        let slots = store.entries::<pb::FdinfoEntry>(desc::FDINFO, table)?;
        for slot in slots.unwrap_or_default() {
            found.remove(&FileId::new(slot.id));
        }
    }
    Ok(found)
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
}
