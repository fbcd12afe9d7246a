//! Signals as a descriptor: signalfd(2).
//!
//! The state is the mask. Signals that wait belong to the task and come back with it.

use std::collections::HashMap;

use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{DumpCx, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result};
use criu_proc::SignalMask;
use criu_tracee::arch::Arch;
use criu_tracee::{Native, Program};

/// A signalfd.
#[derive(Debug)]
pub struct Signalfd;

impl FileKind for Signalfd {
    type Entry = pb::SignalfdEntry;
    const NAME: &'static str = "signalfd";
    const SINCE: Kernel = Kernel::new(2, 6, 27);

    fn claims(&self, file: &OpenFile) -> bool {
        file.is_anon_inode("[signalfd]")
    }

    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        let mask = file.info.signals("sigmask")?;
        let [low, high] = halves(mask);
        if high != 0 {
            let signalfd = pb::SignalfdExtEntry {
                signalfd_id: file.number(),
                sigmask_extended: high,
            };
            let ext = pb::FilesExtEntry {
                signalfd: Some(signalfd),
                ..pb::FilesExtEntry::default()
            };
            cx.append(desc::FILES_EXT, (), &ext, &[])?;
        }
        Ok(pb::SignalfdEntry {
            id: file.number(),
            flags: file.flags(),
            fown: file.owner,
            sigmask: low,
        })
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let high = cx.cached(High::load)?.0.get(&entry.id).copied();
        let mut set = [entry.sigmask, high.unwrap_or(0)]
            .map(u64::to_le_bytes)
            .concat();
        set.truncate(Native::SIGSET);
        let mut program = Program::new();
        let mask = program.bytes(set);
        let fd = program.signalfd4(-1, mask, Native::SIGSET, 0);
        Ok(Opened::Here(cx.here().run(&program)?.fd(fd)))
    }
}

/// Signals 1 to 64, and those above.
fn halves(mask: SignalMask) -> [u64; 2] {
    [mask.0, mask.0 >> 64].map(|half| u64::try_from(half & u128::from(u64::MAX)).unwrap_or(0))
}

/// The signals above 64, by the id of the file.
struct High(HashMap<u32, u64>);

impl High {
    fn load(store: &dyn Store) -> Result<Self> {
        let entries = store
            .entries::<pb::FilesExtEntry>(desc::FILES_EXT, ())?
            .unwrap_or_default();
        let masks = entries
            .into_iter()
            .filter_map(|entry| entry.message.signalfd);
        Ok(Self(
            masks
                .map(|mask| (mask.signalfd_id, mask.sigmask_extended))
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
    fn a_mask() {
        let text = "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1063\nsigmask:\t0000000000000200\n";
        let entry =
            dumped(&Signalfd, &open_file("anon_inode:[signalfd]", 0o600, text)).expect("known");
        assert_eq!(entry.sigmask, 0x200);
        expect![[r#"
            $0 = signalfd4(-1, <0002000000000000>, 8, 0)
            is 100
        "#]]
        .assert_eq(&restored(&Signalfd, &entry).expect("a program"));
    }

    #[test]
    fn the_many_signals_of_mips() {
        let mask = SignalMask::parse(b"40000000000000000000000000000200").expect("digits");
        assert_eq!(halves(mask), [0x200, 1 << 62]);
    }
}
