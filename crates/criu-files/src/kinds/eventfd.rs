//! Event counters: eventfd(2).
//!
//! The state is one 64-bit counter. Waiters are not state: a blocked read restarts after restore.
//! Not preserved by CRIU: `EFD_SEMAPHORE`, for which its message has no field; here it travels in
//! the flags, as the bit eventfd2(2) takes.

use criu_image::pb;
use criu_kind::{DumpCx, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result};
use criu_tracee::Program;

/// `EFD_SEMAPHORE`: the same bit as `O_WRONLY`, which no eventfd has.
const EFD_SEMAPHORE: u32 = 1;
const O_ACCMODE: u32 = libc::O_ACCMODE.cast_unsigned();

/// An event counter.
#[derive(Debug)]
pub struct Eventfd;

impl FileKind for Eventfd {
    type Entry = pb::EventfdFileEntry;
    const NAME: &'static str = "eventfd";
    const SINCE: Kernel = Kernel::new(2, 6, 27);

    fn claims(&self, file: &OpenFile) -> bool {
        file.is_anon_inode("[eventfd]")
    }

    fn dump(&self, _: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        let counter = file.info.hex("eventfd-count")?;
        // Since Linux 6.5.
        let semaphore = file.info.value("eventfd-semaphore") == Some(b"1");
        let flags = if semaphore {
            file.flags() & !O_ACCMODE | EFD_SEMAPHORE
        } else {
            file.flags()
        };
        Ok(pb::EventfdFileEntry {
            id: file.number(),
            flags,
            fown: file.owner,
            counter,
        })
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let mut program = Program::new();
        let semaphore = if entry.flags & O_ACCMODE == EFD_SEMAPHORE {
            EFD_SEMAPHORE
        } else {
            0
        };
        // The initial value is 32-bit; the counter is not.
        let first = u32::try_from(entry.counter);
        let flags = semaphore | libc::O_NONBLOCK.cast_unsigned();
        let fd = program.eventfd2(first.unwrap_or(0), flags);
        if first.is_err() {
            let counter = program.bytes(entry.counter.to_ne_bytes());
            program.write(fd, counter, 8);
        }
        Ok(Opened::Here(cx.here().run(&program)?.fd(fd)))
    }
}

#[cfg(test)]
mod tests {
    use criu_kind::testing::{dumped, open_file, restored};
    use expect_test::expect;

    use super::*;

    const FDINFO: &str = "pos:\t0\nflags:\t04002\nmnt_id:\t15\nino:\t1063\n\
        eventfd-count:      10000000007\neventfd-id: 1\neventfd-semaphore: 0\n";

    #[test]
    fn a_counter_of_more_than_32_bits() {
        let entry =
            dumped(&Eventfd, &open_file("anon_inode:[eventfd]", 0o600, FDINFO)).expect("known");
        expect![[r#"
            EventfdFileEntry { id: 1, flags: 2050, fown: FownEntry { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 }, counter: 1099511627783 }"#]]
        .assert_eq(&format!("{entry:?}"));
        expect![[r#"
            $0 = eventfd2(0, 2048)
            $1 = write($0, <0700000000010000>, 8)
            is 100
        "#]]
        .assert_eq(&restored(&Eventfd, &entry).expect("a program"));
    }

    #[test]
    fn a_counter_of_32_bits() {
        let text = FDINFO.replace("10000000007", "       ffff");
        let entry =
            dumped(&Eventfd, &open_file("anon_inode:[eventfd]", 0o600, &text)).expect("known");
        expect![[r#"
            $0 = eventfd2(0xffff, 2048)
            is 100
        "#]]
        .assert_eq(&restored(&Eventfd, &entry).expect("a program"));
    }

    #[test]
    fn a_semaphore() {
        let text = FDINFO
            .replace("semaphore: 0", "semaphore: 1")
            .replace("10000000007", "0");
        let entry =
            dumped(&Eventfd, &open_file("anon_inode:[eventfd]", 0o600, &text)).expect("known");
        expect![[r#"
            $0 = eventfd2(0, 2049)
            is 100
        "#]]
        .assert_eq(&restored(&Eventfd, &entry).expect("a program"));
    }
}
