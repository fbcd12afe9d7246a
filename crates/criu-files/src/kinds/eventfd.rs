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
        let flags = if semaphore { file.flags() & !O_ACCMODE | EFD_SEMAPHORE } else { file.flags() };
        Ok(pb::EventfdFileEntry { id: file.number(), flags, fown: file.owner, counter })
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let mut program = Program::new();
        let semaphore = if entry.flags & O_ACCMODE == EFD_SEMAPHORE { EFD_SEMAPHORE } else { 0 };
        let fd = program.eventfd2(0, semaphore | libc::O_NONBLOCK.cast_unsigned());
        if entry.counter != 0 {
            // The initial value is 32-bit; the counter is not.
            let counter = program.bytes(entry.counter.to_ne_bytes());
            program.write(fd, counter, 8);
        }
        Ok(Opened::Here(cx.here().run(&program)?.fd(fd)))
    }
}
