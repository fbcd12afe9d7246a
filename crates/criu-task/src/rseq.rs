//! The restartable sequences area: rseq(2).
//!
//! A thread found in a critical section is stored at the abort handler: see [`criu_tracee::Rseq`].

use std::fs::File;
use std::os::unix::fs::FileExt;

use criu_image::pb;
use criu_kind::{Answer, Aspect, Error, Result, Saved, ThreadView};
use criu_proc::ProcDir;
use criu_tracee::{Program, RseqConfiguration};
use nix::fcntl::OFlag;

use crate::entries;

const RSEQ_FLAG_UNREGISTER: u32 = 1;

/// Offset of the pointer to the critical section in `struct rseq`.
const RSEQ_CS: u64 = 8;

#[derive(Debug)]
pub(crate) struct Rseq;

impl Aspect for Rseq {
    fn name(&self) -> &'static str {
        "rseq"
    }

    fn ask(&self, _: &ThreadView<'_>, _: &mut Program) -> Result<Answer> {
        Ok(Box::new(|view, _, draft| {
            // CRIU writes an entry for every thread, with zeros where nothing is registered.
            let rseq = view.thread.rseq();
            let conf = rseq.map_or_else(RseqConfiguration::default, |rseq| rseq.configuration);
            entries::thread_of(draft).rseq_entry = Some(pb::RseqEntry {
                rseq_abi_pointer: conf.rseq_abi_pointer,
                rseq_abi_size: conf.rseq_abi_size,
                signature: conf.signature,
                rseq_cs_pointer: rseq.and_then(|rseq| rseq.kept),
            });
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        let rseq = entries::thread(saved)?
            .rseq_entry
            .filter(|rseq| rseq.rseq_abi_pointer != 0);
        if let Some(rseq) = rseq {
            program.rseq(rseq.rseq_abi_pointer, rseq.rseq_abi_size, 0, rseq.signature);
        }
        Ok(())
    }

    /// A section that wants to go on: any call made in the thread would have made the kernel forget it.
    fn push(&self, saved: &Saved<'_>, process: &ProcDir) -> Result<()> {
        let rseq = entries::thread(saved)?.rseq_entry;
        let Some((rseq, section)) = rseq.and_then(|rseq| Some((rseq, rseq.rseq_cs_pointer?)))
        else {
            return Ok(());
        };
        let memory = File::from(process.open_file("mem", OFlag::O_RDWR)?);
        memory
            .write_all_at(&section.to_ne_bytes(), rseq.rseq_abi_pointer + RSEQ_CS)
            .map_err(Error::io("pwrite(/proc/PID/mem)"))
    }
}

/// Adds the call that unregisters the area a new thread has inherited from whoever cloned it, while
/// that memory is still there.
pub fn forget(inherited: &RseqConfiguration, program: &mut Program) {
    if inherited.rseq_abi_pointer != 0 {
        let (area, size) = (inherited.rseq_abi_pointer, inherited.rseq_abi_size);
        program.rseq(area, size, RSEQ_FLAG_UNREGISTER, inherited.signature);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Thread, check_dress};
    use expect_test::expect;

    #[test]
    fn an_area_of_glibc() {
        let mut thread = Thread::new();
        thread.core_thread().rseq_entry = Some(pb::RseqEntry {
            rseq_abi_pointer: 0x7f00_1000,
            rseq_abi_size: 32,
            signature: 0x5305_3053,
            rseq_cs_pointer: None,
        });
        check_dress(
            &Rseq,
            &thread,
            expect![[r#"
            $0 = rseq(0x7f001000, 32, 0, 0x53053053)
        "#]],
        );
    }

    #[test]
    fn none_is_none() {
        let mut thread = Thread::new();
        thread.core_thread().rseq_entry = Some(pb::RseqEntry::default());
        check_dress(&Rseq, &thread, expect![[""]]);
    }
}
