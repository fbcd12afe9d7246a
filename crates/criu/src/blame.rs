//! Which thread a failed batch was of.

use criu_kind::{Error, Result, Within};
use criu_tracee::Program;

use crate::load::Model;

/// Image, where it is held, which thread, what it runs, and of what that is made.
pub(crate) type Dressing = (usize, usize, usize, Program, criu_task::Dressed);

/// Which thread a failed dressing was of: the program that has such a call there.
pub(crate) fn blame(error: criu_tracee::Error, programs: &[Dressing], model: &Model) -> Error {
    let criu_tracee::Error::Call(call) = &error else {
        return error.into();
    };
    let found = programs.iter().find(|(_, _, _, program, _)| {
        program
            .calls()
            .get(call.index)
            .is_some_and(|known| known.sysno == call.sysno)
    });
    match found {
        Some((image, _, _, _, dressed)) => {
            let blamed: Result<()> = Err(dressed.blame(error));
            blamed
                .within(|| model.tasks[*image].subject())
                .expect_err("it is an error from the start")
        }
        None => error.into(),
    }
}
