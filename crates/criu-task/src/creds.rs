//! Who a thread is and what it may: ids, groups, capabilities, securebits. credentials(7),
//! capabilities(7).
//!
//! Ids are those of the thread's own user namespace, so the thread is asked. The way back has to keep
//! the power to take each step until that step is done:
//! 1. with `SECBIT_NO_SETUID_FIXUP`, changing ids costs no capabilities;
//! 2. inheritable ones may be raised as long as the bounding set is whole;
//! 3. ambient ones may be raised as long as securebits allow it;
//! 4. securebits and the bounding set need `CAP_SETPCAP`, which may go
//! 5. with the permitted set, last.
//!
//! `security/commoncap.c`, `kernel/sys.c`. Not preserved: labels of security modules.

use criu_image::pb;
use criu_kind::{Answer, Aspect, Error, Result, Saved, ThreadView};
use criu_proc::Status;
use criu_tracee::{Program, Sysno};

use crate::entries;
use crate::words::{int, ints};

const PR_CAPBSET_DROP: i32 = 24;
const PR_GET_SECUREBITS: i32 = 27;
const PR_SET_SECUREBITS: i32 = 28;
const PR_CAP_AMBIENT: i32 = 47;
const PR_CAP_AMBIENT_RAISE: i32 = 2;
const PR_CAP_AMBIENT_CLEAR_ALL: i32 = 4;

const SECBIT_NO_SETUID_FIXUP: u32 = 1 << 2;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[derive(Debug)]
pub(crate) struct Creds;

impl Aspect for Creds {
    fn name(&self) -> &'static str {
        "creds"
    }

    fn ask(&self, view: &ThreadView<'_>, program: &mut Program) -> Result<Answer> {
        let (uids, gids) = (Ids::room(program), Ids::room(program));
        program.getresuid(uids.real, uids.effective, uids.saved);
        program.getresgid(gids.real, gids.effective, gids.saved);
        // An id that cannot be: nothing changes, and the present one is returned.
        let fsuid = program.setfsuid(u32::MAX);
        let fsgid = program.setfsgid(u32::MAX);
        let securebits = program.prctl(PR_GET_SECUREBITS, 0, 0, 0, 0);
        let count = view.status.groups.len();
        let groups = program.room(4 * count);
        if count > 0 {
            program.getgroups(count, groups);
        }
        Ok(Box::new(move |view, outcome, draft| {
            let id = |blob| int(outcome.bytes(blob), 0);
            let result = |ret| u32::try_from(outcome.word(ret)).unwrap_or(u32::MAX);
            let groups = outcome.bytes(groups);
            let status = view.status;
            let creds = entries::thread_of(draft).creds.get_or_insert_default();
            *creds = pb::CredsEntry {
                uid: id(uids.real),
                gid: id(gids.real),
                euid: id(uids.effective),
                egid: id(gids.effective),
                suid: id(uids.saved),
                sgid: id(gids.saved),
                fsuid: result(fsuid),
                fsgid: result(fsgid),
                cap_inh: halves(status.cap_inheritable),
                cap_prm: halves(status.cap_permitted),
                cap_eff: halves(status.cap_effective),
                cap_bnd: halves(status.cap_bounding),
                cap_amb: halves(status.cap_ambient.unwrap_or(0)),
                secbits: result(securebits),
                groups: (0..groups.len() / 4)
                    .map(|at| int(groups, 4 * at))
                    .collect(),
                no_new_privs: creds.no_new_privs,
                ..pb::CredsEntry::default()
            };
            Ok(())
        }))
    }

    fn dress(&self, saved: &Saved<'_>, program: &mut Program) -> Result<()> {
        let Some(creds) = &entries::thread(saved)?.creds else {
            return Ok(());
        };
        let caps = Caps::of(creds);
        let missing = caps.permitted & !saved.now.status.cap_permitted;
        if missing != 0 {
            let fact = format!(
                "capability {} is not ours to give",
                missing.trailing_zeros()
            );
            return Err(Error::unsupported(
                fact,
                "restore with all capabilities of the task",
            ));
        }
        let same_ids = same_ids(creds, &saved.now.status);
        if !same_ids {
            change_ids(creds, program);
        }
        let now = Caps::now(&saved.now.status);
        if caps != now {
            // Everything the thread has stays in force until the end.
            let all = Caps {
                effective: now.permitted,
                permitted: now.permitted,
                ..caps
            };
            set(&all, program);
            if now.ambient & !caps.ambient != 0 {
                program.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
            }
            for bit in bits(caps.ambient) {
                program.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, bit, 0, 0);
            }
        }
        if !same_ids || creds.secbits != 0 {
            program.prctl(PR_SET_SECUREBITS, creds.secbits, 0, 0, 0);
        }
        for bit in bits(now.bounding & !caps.bounding) {
            program.prctl(PR_CAPBSET_DROP, bit, 0, 0, 0);
        }
        if caps != now {
            set(&caps, program);
        }
        Ok(())
    }
}

fn change_ids(creds: &pb::CredsEntry, program: &mut Program) {
    let list = program.bytes(ints(&creds.groups));
    program.setgroups(creds.groups.len(), list);
    program.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0);
    program.setresgid(creds.gid, creds.egid, creds.sgid);
    program.setfsgid(creds.fsgid);
    program.setresuid(creds.uid, creds.euid, creds.suid);
    program.setfsuid(creds.fsuid);
}

/// Whether a thread built by us has the right ids as it is. Where the user namespaces differ, so do the
/// numbers, and all are set.
fn same_ids(creds: &pb::CredsEntry, now: &Status) -> bool {
    let (uid, gid) = (now.uid, now.gid);
    [creds.uid, creds.euid, creds.suid, creds.fsuid] == [uid.real, uid.effective, uid.saved, uid.fs]
        && [creds.gid, creds.egid, creds.sgid, creds.fsgid]
            == [gid.real, gid.effective, gid.saved, gid.fs]
        && creds.groups == now.groups
}

/// Room for three ids.
#[derive(Clone, Copy)]
struct Ids {
    real: criu_tracee::Blob,
    effective: criu_tracee::Blob,
    saved: criu_tracee::Blob,
}

impl Ids {
    fn room(program: &mut Program) -> Self {
        Self {
            real: program.room(4),
            effective: program.room(4),
            saved: program.room(4),
        }
    }
}

/// The five sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Caps {
    inheritable: u64,
    permitted: u64,
    effective: u64,
    bounding: u64,
    ambient: u64,
}

impl Caps {
    fn of(creds: &pb::CredsEntry) -> Self {
        Self {
            inheritable: joined(&creds.cap_inh),
            permitted: joined(&creds.cap_prm),
            effective: joined(&creds.cap_eff),
            bounding: joined(&creds.cap_bnd),
            ambient: joined(&creds.cap_amb),
        }
    }

    fn now(status: &Status) -> Self {
        Self {
            inheritable: status.cap_inheritable,
            permitted: status.cap_permitted,
            effective: status.cap_effective,
            bounding: status.cap_bounding,
            ambient: status.cap_ambient.unwrap_or(0),
        }
    }
}

/// `capset(2)` of the thread itself.
fn set(caps: &Caps, program: &mut Program) {
    let [effective, permitted, inheritable] =
        [caps.effective, caps.permitted, caps.inheritable].map(halves);
    let header = program.bytes(ints(&[CAPABILITY_VERSION_3, 0]));
    let low = [effective[0], permitted[0], inheritable[0]];
    let high = [effective[1], permitted[1], inheritable[1]];
    let data = program.bytes(ints(&[low, high].concat()));
    program.call(Sysno::capset, [header.into(), data.into()]);
}

fn halves(caps: u64) -> Vec<u32> {
    let [a, b, c, d, e, f, g, h] = caps.to_le_bytes();
    vec![
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}

fn joined(halves: &[u32]) -> u64 {
    halves
        .iter()
        .take(2)
        .rev()
        .fold(0, |all, half| all << 32 | u64::from(*half))
}

fn bits(caps: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |bit| caps >> bit & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Thread, check_dress};
    use expect_test::expect;

    const ALL: u64 = 0x1ff_feff_ffff;

    fn root() -> pb::CredsEntry {
        pb::CredsEntry {
            cap_inh: halves(0),
            cap_prm: halves(ALL),
            cap_eff: halves(ALL),
            cap_bnd: halves(ALL),
            cap_amb: halves(0),
            ..pb::CredsEntry::default()
        }
    }

    #[test]
    fn who_is_right_already_needs_nothing() {
        let mut thread = Thread::new();
        thread.core_thread().creds = Some(root());
        check_dress(&Creds, &thread, expect![[""]]);
    }

    #[test]
    fn a_user_with_one_ambient_capability() {
        let mut thread = Thread::new();
        let mut creds = root();
        (creds.uid, creds.euid, creds.suid, creds.fsuid) = (1000, 1000, 1000, 1001);
        (creds.gid, creds.egid, creds.sgid, creds.fsgid) = (100, 100, 100, 101);
        creds.groups = vec![4, 27];
        for set in [&mut creds.cap_inh, &mut creds.cap_prm, &mut creds.cap_eff] {
            *set = halves(1 << 10);
        }
        creds.cap_amb = halves(1 << 10);
        creds.cap_bnd = halves(ALL & !(1 << 21 | 1 << 39));
        creds.secbits = 0x40 | 0x80;
        thread.core_thread().creds = Some(creds);
        check_dress(
            &Creds,
            &thread,
            expect![[r#"
            $0 = setgroups(2, <040000001b000000>)
            $1 = prctl(28, 4, 0, 0, 0)
            $2 = setresgid(100, 100, 100)
            $3 = setfsgid(101)
            $4 = setresuid(1000, 1000, 1000)
            $5 = setfsuid(1001)
            $6 = capset(<2205082000000000>, <fffffffefffffffe00040000ff010000ff01000000000000>)
            $7 = prctl(47, 2, 10, 0, 0)
            $8 = prctl(28, 192, 0, 0, 0)
            $9 = prctl(24, 21, 0, 0, 0)
            $10 = prctl(24, 39, 0, 0, 0)
            $11 = capset(<2205082000000000>, <000400000004000000040000000000000000000000000000>)
        "#]],
        );
    }

    #[test]
    fn what_the_builder_lacks_is_refused() {
        let mut thread = Thread::new();
        let mut creds = root();
        creds.cap_prm = halves(ALL | 1 << 24);
        thread.core_thread().creds = Some(creds);
        let error = Creds
            .dress(&thread.saved(), &mut Program::new())
            .expect_err("CAP_SYS_RESOURCE");
        assert_eq!(error.to_string(), "capability 24 is not ours to give");
    }
}
