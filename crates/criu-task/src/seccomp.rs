//! Secure computing: seccomp(2).
//!
//! Filters of all threads are one table ([`crate::SeccompTable`] makes it at dump); here they are
//! installed again, oldest first. That needs `CAP_SYS_ADMIN` or no_new_privs, which decides when it is
//! done. Filters are not in force until the tracer lets go (`PTRACE_O_SUSPEND_SECCOMP`).
//!
//! Not preserved: listeners (their descriptors are refused), `SECCOMP_FILTER_FLAG_SPEC_ALLOW`.

use criu_image::pb;
use criu_kind::{Answer, Aspect, Error, Result, Saved, ThreadView};
use criu_tracee::Program;

use crate::entries;
use crate::words::{WORD, put};

const SECCOMP_SET_MODE_STRICT: u32 = 0;
const SECCOMP_SET_MODE_FILTER: u32 = 1;
pub(crate) const FLAG_TSYNC: u32 = 1;
const FLAG_LOG: u32 = 2;
/// Makes a thread that cannot follow an error instead of a result: Linux 5.7.
const FLAG_TSYNC_ESRCH: u32 = 16;

/// Bytes of a BPF instruction, and the most that a filter may have.
const INSTRUCTION: usize = 8;
const INSTRUCTIONS: usize = 4096;
/// The kernel allows 32768 instructions in a chain, with 4 more for each filter.
const CHAIN: usize = 32768 / 5;

const CAP_SYS_ADMIN: u32 = 21;

/// At dump it has no part; at restore it comes twice, and one of the two acts.
#[derive(Debug)]
pub(crate) struct Seccomp {
    pub(crate) before_creds: bool,
}

impl Aspect for Seccomp {
    fn name(&self) -> &'static str {
        "seccomp"
    }

    fn ask(&self, _: &ThreadView<'_>, _: &mut Program) -> Result<Answer> {
        Ok(Box::new(|_, _, _| Ok(())))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        let thread = entries::thread(saved)?;
        let early = thread.creds.as_ref().is_some_and(loses_the_right);
        match thread.seccomp_mode.map(pb::SeccompMode::try_from) {
            None | Some(Ok(pb::SeccompMode::Disabled)) => Ok(()),
            Some(Ok(pb::SeccompMode::Strict)) if self.before_creds => Ok(()),
            Some(Ok(pb::SeccompMode::Strict)) => {
                program.seccomp(SECCOMP_SET_MODE_STRICT, 0, 0);
                Ok(())
            }
            Some(Ok(pb::SeccompMode::Filter)) if self.before_creds != early => Ok(()),
            Some(Ok(pb::SeccompMode::Filter)) => {
                for filter in chain(saved.filters, thread.seccomp_filter.unwrap_or(0))? {
                    install(filter, program)?;
                }
                Ok(())
            }
            Some(Err(_)) => Err(corrupt("no such seccomp mode")),
        }
    }
}

fn corrupt(why: &str) -> Error {
    Error::corrupt("seccomp", why)
}

/// Whether somebody with these credentials may not install filters.
fn loses_the_right(creds: &pb::CredsEntry) -> bool {
    let admin = creds
        .cap_eff
        .first()
        .is_some_and(|caps| caps >> CAP_SYS_ADMIN & 1 == 1);
    !admin && creds.no_new_privs.unwrap_or(0) == 0
}

/// The filters from number `oldest` on. `prev` leads to the next newer one: it is the filter that was
/// *written* before.
fn chain(filters: &[pb::SeccompFilter], oldest: u32) -> Result<Vec<&pb::SeccompFilter>> {
    let mut chain = Vec::new();
    let mut next = Some(oldest);
    while let Some(index) = next {
        let filter = filters
            .get(index as usize)
            .ok_or_else(|| corrupt("no such filter"))?;
        chain.push(filter);
        next = filter.prev;
        if chain.len() > CHAIN {
            return Err(corrupt("a chain without an end"));
        }
    }
    Ok(chain)
}

fn install(filter: &pb::SeccompFilter, program: &mut Program) -> Result<()> {
    let count = filter.filter.len() / INSTRUCTION;
    if !filter.filter.len().is_multiple_of(INSTRUCTION) || count == 0 || count > INSTRUCTIONS {
        return Err(corrupt("a filter of impossible length"));
    }
    let saved = filter.flags.unwrap_or(0);
    if saved & !(FLAG_TSYNC | FLAG_LOG) != 0 {
        return Err(corrupt("a filter with unknown flags"));
    }
    let tsync = if saved & FLAG_TSYNC == 0 {
        0
    } else {
        FLAG_TSYNC_ESRCH
    };
    // struct sock_fprog: length, padding, pointer.
    let mut bytes = vec![0; 2 * WORD];
    put(&mut bytes, 0, 2, count as u64);
    let code = program.bytes(filter.filter.clone());
    let fprog = program.bytes(bytes);
    program.link(fprog, WORD, code);
    program.seccomp(SECCOMP_SET_MODE_FILTER, saved | tsync, fprog);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Thread, check_dress};
    use expect_test::expect;

    fn filter(byte: u8, prev: Option<u32>, flags: u32) -> pb::SeccompFilter {
        pb::SeccompFilter {
            filter: vec![byte; 8],
            prev,
            flags: Some(flags),
        }
    }

    fn filtered(no_new_privs: bool) -> Thread {
        let mut thread = Thread::new();
        thread.filters = vec![
            filter(1, None, 1),
            filter(9, None, 0),
            filter(2, Some(0), 2),
        ];
        let core = thread.core_thread();
        core.set_seccomp_mode(pb::SeccompMode::Filter);
        core.seccomp_filter = Some(2);
        core.creds.get_or_insert_default().no_new_privs = no_new_privs.then_some(1);
        thread
    }

    #[test]
    fn a_chain_is_installed_oldest_first() {
        check_dress(
            &Seccomp {
                before_creds: false,
            },
            &filtered(true),
            expect![[r#"
            $0 = seccomp(1, 2, <01000000000000000000000000000000>)
            $1 = seccomp(1, 17, <01000000000000000000000000000000>)
        "#]],
        );
        check_dress(
            &Seccomp { before_creds: true },
            &filtered(true),
            expect![[""]],
        );
    }

    #[test]
    fn who_will_have_no_right_gets_them_early() {
        check_dress(
            &Seccomp {
                before_creds: false,
            },
            &filtered(false),
            expect![[""]],
        );
        check_dress(
            &Seccomp { before_creds: true },
            &filtered(false),
            expect![[r#"
            $0 = seccomp(1, 2, <01000000000000000000000000000000>)
            $1 = seccomp(1, 17, <01000000000000000000000000000000>)
        "#]],
        );
    }

    #[test]
    fn strict_mode_comes_last() {
        let mut thread = filtered(false);
        thread
            .core_thread()
            .set_seccomp_mode(pb::SeccompMode::Strict);
        check_dress(&Seccomp { before_creds: true }, &thread, expect![[""]]);
        check_dress(
            &Seccomp {
                before_creds: false,
            },
            &thread,
            expect![[r#"
            $0 = seccomp(0, 0, 0)
        "#]],
        );
    }

    #[test]
    fn a_ring_of_filters_is_refused() {
        let mut thread = filtered(true);
        thread.filters[0].prev = Some(2);
        let dressed = Seccomp {
            before_creds: false,
        }
        .dress(&thread.saved(), &mut Program::new());
        assert_eq!(
            dressed.expect_err("a ring").to_string(),
            "seccomp: a chain without an end"
        );
    }
}
