//! Whether execve(2) may give privilege: `PR_SET_NO_NEW_PRIVS`. It is part of the credentials' message.

use criu_kind::{Answer, Aspect, Result, Saved, ThreadView};
use criu_tracee::Program;

use crate::entries;

const PR_SET_NO_NEW_PRIVS: i32 = 38;

#[derive(Debug)]
pub(crate) struct NoNewPrivs;

impl Aspect for NoNewPrivs {
    fn name(&self) -> &'static str {
        "no_new_privs"
    }

    fn ask(&self, _: &ThreadView<'_>, _: &mut Program) -> Result<Answer> {
        Ok(Box::new(|view, _, draft| {
            let set = view.status.no_new_privs.unwrap_or(false);
            let creds = entries::thread_of(draft).creds.get_or_insert_default();
            creds.no_new_privs = set.then_some(1);
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        let creds = entries::thread(saved)?.creds.as_ref();
        if creds.and_then(|creds| creds.no_new_privs).unwrap_or(0) != 0 {
            program.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        }
        Ok(())
    }
}
