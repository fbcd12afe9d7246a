//! Resource limits: prlimit64(2).
//!
//! The process asks and sets its own: others may not without `CAP_SYS_RESOURCE`, and setting a hard limit
//! to what it is needs no privilege.

use criu_image::pb;
use criu_kind::{Answer, Aspect, Error, Result, Saved, ThreadView};
use criu_tracee::Program;

use crate::entries;
use crate::words::number;

/// `RLIM_NLIMITS`.
const LIMITS: u32 = 16;

#[derive(Debug)]
pub(crate) struct Rlimits;

impl Aspect for Rlimits {
    fn name(&self) -> &'static str {
        "rlimit"
    }

    fn ask(&self, view: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        if !view.leader {
            return Ok(Box::new(|_, _, _| Ok(())));
        }
        let mut limits = Vec::new();
        for resource in 0..LIMITS {
            let limit = program.room(16);
            program.prlimit64(0, resource, 0, limit);
            limits.push(limit);
        }
        Ok(Box::new(move |_, outcome, draft| {
            let rlimits = limits.into_iter().map(|limit| {
                let bytes = outcome.bytes(limit);
                pb::RlimitEntry {
                    cur: number(bytes, 0, 8),
                    max: number(bytes, 8, 8),
                }
            });
            entries::task_of(draft).rlimits = Some(pb::TaskRlimitsEntry {
                rlimits: rlimits.collect(),
            });
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        let Some(limits) = entries::task(saved)?
            .rlimits
            .as_ref()
            .filter(|_| saved.leader)
        else {
            return Ok(());
        };
        for (resource, limit) in (0u32..).zip(&limits.rlimits) {
            if limit.cur > limit.max {
                return Err(Error::corrupt(
                    "core",
                    format!("rlimit {resource} above its maximum"),
                ));
            }
            let limit = program.bytes([limit.cur.to_le_bytes(), limit.max.to_le_bytes()].concat());
            program.prlimit64(0, resource, limit, 0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Thread, check_dress};
    use expect_test::expect;

    #[test]
    fn limits_are_numbered_by_their_place() {
        let mut thread = Thread::new();
        let rlimits = vec![
            pb::RlimitEntry {
                cur: u64::MAX,
                max: u64::MAX,
            },
            pb::RlimitEntry {
                cur: 0,
                max: 0x1000,
            },
        ];
        thread.task().rlimits = Some(pb::TaskRlimitsEntry { rlimits });
        check_dress(
            &Rlimits,
            &thread,
            expect![[r#"
            $0 = prlimit64(0, 0, <ffffffffffffffffffffffffffffffff>, 0)
            $1 = prlimit64(0, 1, <00000000000000000010000000000000>, 0)
        "#]],
        );
    }
}
