//! Signals as a descriptor: signalfd(2).
//!
//! The state is the mask. Signals that wait belong to the task and come back with it.

use criu_image::pb;
use criu_kind::{DumpCx, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result};
use criu_tracee::Program;

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

    fn dump(&self, _: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        let sigmask = file.info.hex("sigmask")?;
        Ok(pb::SignalfdEntry {
            id: file.number(),
            flags: file.flags(),
            fown: file.owner,
            sigmask,
        })
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let mut program = Program::new();
        let mask = program.bytes(entry.sigmask.to_ne_bytes());
        let fd = program.signalfd4(-1, mask, 8, 0);
        Ok(Opened::Here(cx.here().run(&program)?.fd(fd)))
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
}
