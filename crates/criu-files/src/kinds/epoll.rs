//! Sets of watched descriptors: epoll_create(2).
//!
//! The kernel knows a target by the pair of its struct file and the number it had when it was added. So the
//! set is refilled in a task where no number is taken yet: each target gets its number for a moment. Then
//! it does not matter in which process it was added, or what the number means by now.
//! Not preserved: which targets were found ready and not yet reported; the edge-triggered ones among
//! them report once more. A one-shot target that has fired hears of errors and hang-ups again.

use criu_image::id::FileId;
use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{DumpCx, Error, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result, Tie};
use criu_tracee::Program;
use std::collections::HashMap;

use crate::identity::is_epoll_target;

const EPOLL_CTL_ADD: i32 = 1;

/// An epoll set.
#[derive(Debug)]
pub struct Epoll;

impl FileKind for Epoll {
    type Entry = pb::EventpollFileEntry;
    const NAME: &'static str = "epoll";
    const SINCE: Kernel = Kernel::new(4, 13, 0);
    const RELATES: bool = true;

    fn claims(&self, file: &OpenFile) -> bool {
        file.is_anon_inode("[eventpoll]")
    }

    fn dump(&self, _: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        let tfd = file.info.lines_of("tfd").map(|line| {
            Ok(pb::EventpollTfdEntry {
                id: 0, // Of use only when targets had an image of their own.
                tfd: line.dec("tfd")?,
                events: line.hex("events")?,
                data: line.hex("data")?,
                // Since Linux 4.13.
                dev: line.hex("sdev").ok(),
                inode: line.hex("ino").ok(),
                pos: line.int::<i64>("pos").ok().map(i64::cast_unsigned),
            })
        });
        let tfd = tfd.collect::<Result<Vec<_>>>()?;
        Ok(pb::EventpollFileEntry {
            id: file.number(),
            flags: file.flags(),
            fown: file.owner,
            tfd,
        })
    }

    fn relations(
        &self,
        cx: &mut dyn DumpCx,
        file: &OpenFile,
        entry: &mut Self::Entry,
    ) -> Result<()> {
        let Some(epoll) = file.slot else {
            return Ok(());
        };
        let mut moved = Vec::new();
        for (index, target) in entry.tfd.iter().enumerate() {
            let number = target.tfd.cast_signed();
            let alike = entry.tfd[..index]
                .iter()
                .filter(|other| other.tfd == target.tfd)
                .count();
            let skip = u32::try_from(alike).unwrap_or(u32::MAX);
            let mut fits = |slot| is_epoll_target(slot, epoll, number, skip);
            let found = cx.find(epoll.pid, number, target.inode, &mut fits)?;
            let Some((id, slot)) = found else {
                return Err(Error::unsupported(
                    format!(
                        "it watches descriptor {number}, which only a process outside the dump has open"
                    ),
                    "dump that process too, or remove the descriptor from the set",
                ));
            };
            if slot.fd != number || slot.pid != epoll.pid {
                // CRIU watches what has the number in the entry, which therefore is the one of now.
                let known = slot.pid == epoll.pid;
                moved.extend(known.then_some((index, slot.fd.cast_unsigned())));
                let ext = pb::EpollExtEntry {
                    epoll_id: entry.id,
                    index: u32::try_from(index).unwrap_or(u32::MAX),
                    file_id: id.get(),
                    tfd: known.then_some(target.tfd),
                };
                let ext = pb::FilesExtEntry {
                    epoll: Some(ext),
                    ..pb::FilesExtEntry::default()
                };
                cx.append(desc::FILES_EXT, (), &ext, &[])?;
            }
        }
        for (index, number) in moved {
            entry.tfd[index].tfd = number;
        }
        Ok(())
    }

    fn numbers(&self, entry: &Self::Entry) -> Vec<i32> {
        entry
            .tfd
            .iter()
            .map(|target| target.tfd.cast_signed())
            .collect()
    }

    fn open(&self, cx: &mut dyn RestoreCx, _: &Self::Entry) -> Result<Opened> {
        let mut program = Program::new();
        let fd = program.epoll_create1(0);
        Ok(Opened::Here(cx.here().run(&program)?.fd(fd)))
    }

    fn ties(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Vec<Tie>> {
        let targets = targets(cx, entry)?.into_iter();
        let mut ties: Vec<Tie> = targets.map(|(file, number)| (file, Some(number))).collect();
        if !ties.is_empty() {
            ties.push((FileId::new(entry.id), None));
        }
        Ok(ties)
    }

    fn relate(
        &self,
        cx: &mut dyn RestoreCx,
        entry: &Self::Entry,
        program: &mut Program,
    ) -> Result<()> {
        let id = FileId::new(entry.id);
        let missing = |what: &str| Error::corrupt("files.img", format!("epoll set {id}: {what}"));
        let set = cx.file(id)?.ok_or_else(|| missing("it is not open"))?;
        for ((file, number), target) in targets(cx, entry)?.into_iter().zip(&entry.tfd) {
            let file = cx
                .file(file)?
                .ok_or_else(|| missing(&format!("its target {number} is not open yet")))?;
            if file != number {
                program.dup3(file, number, libc::O_CLOEXEC);
            }
            let event = program.bytes(event(target.events, target.data));
            program.epoll_ctl(set, EPOLL_CTL_ADD, number, event);
        }
        Ok(())
    }
}

/// The file of each target, and the number it was added under.
fn targets(cx: &mut dyn RestoreCx, entry: &pb::EventpollFileEntry) -> Result<Vec<(FileId, i32)>> {
    let ours = cx.cached(Elsewhere::load)?;
    let id = FileId::new(entry.id);
    let target = |(index, target): (usize, &pb::EventpollTfdEntry)| {
        let (file, number) = match ours.0.get(&(entry.id, index)) {
            Some((file, added)) => (Some(*file), added.unwrap_or(target.tfd)),
            None => (cx.beside(id, target.tfd.cast_signed()), target.tfd),
        };
        let number = number.cast_signed();
        let missing = || {
            let why = format!("epoll set {id}: nobody has its target {number} open");
            Error::corrupt("files.img", why)
        };
        Ok((file.ok_or_else(missing)?, number))
    };
    entry.tfd.iter().enumerate().map(target).collect()
}

/// `struct epoll_event`: packed on x86_64 only.
fn event(events: u32, data: u64) -> Vec<u8> {
    let packed = size_of::<libc::epoll_event>() == 12;
    let hole: &[u8] = if packed { &[] } else { &[0; 4] };
    [&events.to_ne_bytes()[..], hole, &data.to_ne_bytes()].concat()
}

/// Targets whose number is not theirs any more, by set and index: the file, and the number they were
/// added under unless their entry has it.
struct Elsewhere(HashMap<(u32, usize), (FileId, Option<u32>)>);

impl Elsewhere {
    fn load(store: &dyn Store) -> Result<Self> {
        let entries = store
            .entries::<pb::FilesExtEntry>(desc::FILES_EXT, ())?
            .unwrap_or_default();
        let epolls = entries.into_iter().filter_map(|entry| entry.message.epoll);
        Ok(Self(
            epolls
                .map(|epoll| {
                    (
                        (epoll.epoll_id, epoll.index as usize),
                        (FileId::new(epoll.file_id), epoll.tfd),
                    )
                })
                .collect(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use criu_kind::testing::{dumped, open_file, restored};
    use expect_test::expect;

    use super::*;

    #[test]
    fn each_target_has_its_number_for_a_moment() {
        let text = "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1063\n\
            tfd:        5 events:       19 data: 1122334455667788  pos:0 ino:43e9 sdev:e\n\
            tfd:        7 events: 80000001 data:                1  pos:0 ino:43ea sdev:e\n";
        let entry =
            dumped(&Epoll, &open_file("anon_inode:[eventpoll]", 0o600, text)).expect("known");
        assert_eq!(FileKind::numbers(&Epoll, &entry), [5, 7]);
        assert_eq!(
            (entry.tfd[0].inode, entry.tfd[0].dev, entry.tfd[0].pos),
            (Some(0x43e9), Some(14), Some(0))
        );
        let listing = restored(&Epoll, &entry).expect("a program");
        let expected = expect![[r#"
            $0 = epoll_create1(0)
            is 100
            later:
            $0 = dup3(1005, 5, 0x80000)
            $1 = epoll_ctl(1001, 1, 5, <190000008877665544332211>)
            $2 = dup3(1007, 7, 0x80000)
            $3 = epoll_ctl(1001, 1, 7, <010000800100000000000000>)
        "#]];
        // The structure is packed on one architecture only.
        if size_of::<libc::epoll_event>() == 12 && cfg!(target_endian = "little") {
            expected.assert_eq(&listing);
        }
    }
}
