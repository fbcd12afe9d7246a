//! Thread-local storage, on machines where only the thread itself can set it. Elsewhere it is a register,
//! or ptrace sets it (`state.rs`).

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::arch::CoreImage;
use criu_tracee::{Native, Program};

#[derive(Debug)]
pub(crate) struct Tls;

impl Aspect for Tls {
    fn name(&self) -> &'static str {
        "tls"
    }

    /// It is part of the processor's state.
    fn ask(&self, _: &ThreadView<'_>, _: &mut Program) -> Result<Answer> {
        Ok(Box::new(|_, _, _| Ok(())))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        if let Some((number, value)) = Native::tls_call(saved.core) {
            program.call_numbered(number, [value.into()]);
        }
        Ok(())
    }
}
