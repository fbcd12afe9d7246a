//! A process that has some of everything is asked, a new one is dressed as it was, and asked too.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use criu_image::pb;
use criu_kind::{Draft, Now, Saved, ThreadView};
use criu_proc::{ProcDir, Stat, Status};
use criu_task::{
    Machine, SeccompTable, answer, birth, closing_signal, core, describe, dress, natural, push,
};
use criu_tracee::{Hold, Nursery, Program, Site, Tracee, fp_layout, spawn_root};
use nix::unistd::Pid;

/// Tests that hold tasks take turns: `fork` copies what the others have open.
static TURN: Mutex<()> = Mutex::new(());

struct Subject(Child);

impl Subject {
    fn start(settings: &[&str]) -> Self {
        let mut command = Command::new("python3");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dressed.py"));
        command.envs(settings.iter().map(|name| (name, "1")));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        output.read_line(&mut line).expect("text");
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.0.kill().expect("our child");
        self.0.wait().expect("our child");
    }
}

/// What a view borrows.
struct Seen {
    stat: Stat,
    status: Status,
}

fn see(process: &ProcDir, tid: Pid) -> Seen {
    let task = process.thread(tid).expect("it lives");
    let stat = Stat::parse(&task.read("stat").expect("it lives")).expect("a stat");
    let status = Status::parse(&task.read("status").expect("it lives")).expect("a status");
    Seen { stat, status }
}

fn view<'a>(
    process: &'a ProcDir,
    seen: &'a Seen,
    tracee: &'a Tracee,
    index: usize,
) -> ThreadView<'a> {
    ThreadView {
        process,
        stat: &seen.stat,
        status: &seen.status,
        thread: &tracee.threads()[index],
        online: "0-4095",
        leader: index == 0,
    }
}

/// Asks every thread of a held process everything.
fn ask(tracee: &mut Tracee) -> (Vec<Draft>, Vec<pb::SeccompFilter>) {
    let layout = fp_layout();
    let process = ProcDir::open(tracee.pid()).expect("it lives");
    let mut drafts = Vec::new();
    let mut all = Vec::new();
    for index in 0..tracee.threads().len() {
        let seen = see(&process, tracee.threads()[index].tid());
        let mut program = Program::new();
        let first = view(&process, &seen, tracee, index);
        let mut draft = core(&first, layout).expect("core");
        let answers = describe(&first, &mut program).expect("describe");
        let outcome = tracee.thread(index).run(&program).expect("the batch");
        let second = view(&process, &seen, tracee, index);
        answer(answers, &second, &outcome, &mut draft).expect("answers");
        drafts.push(draft);
        all.push(seen);
    }
    let mut table = SeccompTable::new();
    let mut threads: Vec<_> = all
        .iter()
        .zip(&mut drafts)
        .enumerate()
        .map(|(index, (seen, draft))| (view(&process, seen, tracee, index), draft))
        .collect();
    table.process(&mut threads).expect("filters");
    (drafts, table.into_entry().seccomp_filters)
}

fn suspend(tracee: &Tracee, hold: Hold) {
    for thread in tracee.threads() {
        thread
            .stopped()
            .expect("held")
            .suspend_seccomp(hold)
            .expect("we are root");
    }
}

fn dump(subject: &Subject) -> (Vec<Draft>, Vec<pb::SeccompFilter>) {
    let mut tracee = Tracee::seize(subject.pid()).expect("seize");
    suspend(&tracee, Hold::Dump);
    let asked = ask(&mut tracee);
    tracee.release().expect("release");
    asked
}

/// A new process of as many threads, dressed; the ids are those given.
fn restore(drafts: &[Draft], filters: &[pb::SeccompFilter], ids: &[i32]) -> Tracee {
    let nursery = Nursery::map(0x5000_0000_0000, ids.len()).expect("free");
    let mut tracee = spawn_root(&nursery, &ids[..1], 0).expect("spawn");
    let closing = closing_signal(drafts.iter().map(|draft| &draft.core)).expect("one is left");
    tracee.close_with(closing);
    let inherited = tracee.threads()[0]
        .stopped()
        .expect("held")
        .rseq()
        .expect("ptrace");
    let mut program = Program::new();
    if let Some(inherited) = inherited {
        criu_task::forget_rseq(&inherited, &mut program);
    }
    // CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, PTRACE.
    let flags = 0x100u64 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000 | 0x2000;
    for id in &ids[1..] {
        let set_tid = program.bytes(id.to_ne_bytes());
        let words = [flags, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
            .map(u64::to_ne_bytes)
            .concat();
        let args = program.bytes(words);
        program.link(args, 64, set_tid);
        program.clone3(args, 88);
    }
    tracee.run(&program).expect("threads");
    for id in &ids[1..] {
        tracee
            .adopt_thread(Pid::from_raw(*id), Pid::from_raw(*id))
            .expect("born traced");
    }
    suspend(&tracee, Hold::Restore);
    if drafts[0]
        .core
        .tc
        .as_ref()
        .is_some_and(|task| task.child_subreaper == Some(true))
    {
        birth::adopt_orphans(&mut tracee).expect("a batch");
    }

    let process = ProcDir::open(tracee.pid()).expect("it lives");
    let mm = pb::MmEntry {
        dumpable: drafts[0].dumpable,
        thp_disabled: drafts[0].thp_disabled,
        ..pb::MmEntry::default()
    };
    let machine = Machine::here().expect("newborn");
    for index in (0..ids.len()).rev() {
        let seen = see(&process, tracee.threads()[index].tid());
        let now = Now {
            status: seen.status,
            loginuid: None,
            processors: None,
        };
        let saved = Saved {
            core: &drafts[index].core,
            leader_core: &drafts[0].core,
            ext: Some(&drafts[index].ext),
            mm: &mm,
            filters,
            now: &now,
            leader: index == 0,
            vtid: ids[index],
            vpid: ids[0],
        };
        let mut program = Program::new();
        let dressed = dress(&saved, &mut program).expect("dress");
        let ran = tracee.thread(index).run(&program);
        ran.map_err(|error| dressed.blame(error))
            .expect("the batch");
        let new = natural(&saved, &machine).expect("registers");
        new.set(tracee.threads()[index].stopped().expect("held"), &[])
            .expect("ptrace");
        push(&saved, &process).expect("push");
    }
    tracee
}

/// The lines in which two drafts differ.
fn differences(before: &Draft, after: &Draft) -> Vec<String> {
    let (before, after) = (format!("{before:#?}"), format!("{after:#?}"));
    let pairs = before.lines().zip(after.lines()).enumerate();
    let differ = pairs.filter(|(_, (before, after))| before != after);
    differ
        .map(|(line, (before, after))| format!("{line}: {before} {after}"))
        .take(40)
        .collect()
}

/// What a test cannot give back: memory, and time that has passed.
fn comparable(draft: &Draft) -> Draft {
    let mut draft = draft.clone();
    let state = draft.core.thread_info.as_mut().expect("x86");
    state.gpregs = pb::UserX86RegsEntry::default();
    // A restored thread has x87 and SSE in use always.
    state.fpregs.xsave.as_mut().expect("any x86_64").xstate_bv |= 3;
    draft.ext.tid = 0;
    if let Some(task) = &mut draft.core.tc {
        (task.flags, task.blk_sigset) = (0, 0);
        let timers = task.timers.as_mut().expect("asked for");
        timers.real.vusec = 0;
        timers.real.vsec = timers.real.vsec.next_multiple_of(100);
        for timer in &mut timers.posix {
            timer.vsec = timer.vsec.next_multiple_of(100);
            timer.vnsec = 0;
        }
    }
    let thread = draft.core.thread_core.as_mut().expect("asked for");
    thread.blk_sigset = None;
    draft
}

fn check_round_trip(settings: &[&str], ids: &[i32]) -> (Vec<Draft>, Vec<pb::SeccompFilter>) {
    let _turn = TURN.lock().unwrap_or_else(|broken| broken.into_inner());
    let subject = Subject::start(settings);
    let (mut drafts, filters) = dump(&subject);
    assert_eq!(drafts.len(), 2);
    for draft in &mut drafts {
        // The areas are not in the memory of the new process.
        let thread = draft.core.thread_core.as_mut().expect("asked for");
        assert_ne!(
            thread.rseq_entry.expect("glibc has one").rseq_abi_pointer,
            0
        );
        thread.rseq_entry = Some(pb::RseqEntry::default());
    }
    let mut tracee = restore(&drafts, &filters, ids);
    let (again, filters_again) = ask(&mut tracee);
    for (before, after) in drafts.iter().zip(&again) {
        let (before, after) = (comparable(before), comparable(after));
        assert_eq!(differences(&before, &after), [""; 0]);
    }
    assert_eq!(filters, filters_again);
    tracee.kill().expect("it is ours");
    (drafts, filters)
}

#[test]
fn root() {
    let (drafts, filters) = check_round_trip(&[], &[29_001, 29_002]);
    assert_eq!(filters, []);
    let [leader, other] = &drafts[..] else {
        panic!("two threads");
    };
    let task = leader.core.tc.as_ref().expect("a leader");
    assert_eq!(
        (task.task_state, &task.comm[..]),
        (1, b"(dressed) ".as_slice())
    );
    assert_eq!(
        (task.personality, task.child_subreaper),
        (0x4_0000, Some(true))
    );
    assert_eq!(
        (task.membarrier_registration_mask, task.oom_score_adj),
        (Some(16), Some(0))
    );
    assert_eq!(task.blk_sigset, 1 << 11 | 1 << 41);
    assert_eq!(task.sigactions.len(), 62);
    // SIGTRAP is number 5; SIGUSR1 is 10, and behind SIGKILL.
    assert_eq!(task.sigactions[4].sigaction, 1);
    assert!(task.sigactions[8].sigaction > 1 && task.sigactions[8].restorer > 1);
    let queued = &task.signals_s.as_ref().expect("asked for").signals;
    let values: Vec<u8> = queued.iter().map(|entry| entry.siginfo[24]).collect();
    assert_eq!(values, [1, 2]);
    let timers = task.timers.as_ref().expect("asked for");
    assert_eq!((timers.real.isec, timers.real.vsec / 100), (3, 50));
    let posix: Vec<_> = timers
        .posix
        .iter()
        .map(|t| (t.it_id, t.si_signo, t.isec))
        .collect();
    assert_eq!(posix, [(0, 40, 0), (2, 40, 7)]);
    assert_eq!(
        (timers.posix[1].sival_ptr, timers.posix[1].vsec),
        (0x5eed, 5999)
    );
    let limits = &task.rlimits.as_ref().expect("asked for").rlimits;
    assert_eq!(
        (limits.len(), limits[4].cur, limits[4].max),
        (16, 4096, 8192)
    );
    assert_eq!(
        (leader.dumpable, leader.thp_disabled),
        (Some(1), Some(true))
    );
    assert_eq!(
        (&leader.ext.affinity[..], leader.ext.ioprio),
        ([1].as_slice(), Some(0x4006))
    );
    assert_eq!(leader.ext.timerslack_ns, Some(123_456));

    let own = leader.core.thread_core.as_ref().expect("a thread");
    assert_eq!(
        (own.pdeath_sig, own.sched_nice, own.sched_policy),
        (Some(9), Some(3), Some(0))
    );
    assert_eq!(own.sas.expect("asked for").ss_size, 65536);
    assert_eq!((own.futex_rla_len, own.blk_sigset), (24, None));
    assert!(own.futex_rla > 1);

    let own = other.core.thread_core.as_ref().expect("a thread");
    assert_eq!(own.comm.as_deref(), Some(b"other thread".as_slice()));
    let rr_reset = 2 | 0x4000_0000;
    assert_eq!(
        (own.sched_policy, own.sched_prio),
        (Some(rr_reset), Some(3))
    );
    assert_eq!(own.blk_sigset, Some(1 << 9 | 1 << 11 | 1 << 41));
    let queued = &own.signals_p.as_ref().expect("asked for").signals;
    assert_eq!((queued.len(), queued[0].siginfo[0]), (1, 10));
    // Threads of glibc wait for this word; the leader's has nobody.
    assert!(other.core.thread_info.as_ref().expect("x86").clear_tid_addr > 1);
}

#[test]
fn user_with_filters() {
    let settings = ["AS_USER", "FILTERED", "NO_NEW_PRIVS", "MANY_TIMERS"];
    let (drafts, filters) = check_round_trip(&settings, &[29_011, 29_012]);
    let own = drafts[0].core.thread_core.as_ref().expect("a thread");
    let creds = own.creds.as_ref().expect("asked for");
    assert_eq!(
        (creds.uid, creds.euid, creds.suid, creds.fsuid),
        (1000, 1001, 1002, 1001)
    );
    assert_eq!(
        (creds.gid, creds.egid, creds.sgid, creds.fsgid),
        (100, 101, 102, 101)
    );
    assert_eq!(
        (&creds.groups[..], creds.secbits),
        ([4, 27].as_slice(), 0x60)
    );
    let some = 1 << 13 | 1 << 8;
    assert_eq!(
        (creds.cap_prm[0], creds.cap_eff[0], creds.cap_inh[0]),
        (some, some, some)
    );
    assert_eq!((creds.cap_amb[0], creds.cap_bnd[0] >> 21 & 1), (1 << 13, 0));
    assert_eq!(creds.no_new_privs, Some(1));
    let task = drafts[0].core.tc.as_ref().expect("a leader");
    let posix = &task.timers.as_ref().expect("asked for").posix;
    assert_eq!((posix.len(), posix[2].it_id), (3, 1500));
    // Both filters are of all threads, so they are the leader's.
    let flags: Vec<_> = filters
        .iter()
        .map(|filter| (filter.prev, filter.flags))
        .collect();
    assert_eq!(flags, [(None, Some(1)), (Some(0), Some(3))]);
    assert_eq!(
        (own.seccomp_mode(), own.seccomp_filter),
        (pb::SeccompMode::Filter, Some(1))
    );
    assert_eq!(
        drafts[1]
            .core
            .thread_core
            .as_ref()
            .expect("a thread")
            .seccomp_mode,
        None
    );
}

/// As container engines do it: filters first, then the capability that it took goes.
#[test]
fn user_who_may_not_install_his_filters() {
    let (drafts, filters) = check_round_trip(&["AS_USER", "FILTERED"], &[29_021, 29_022]);
    let own = drafts[0].core.thread_core.as_ref().expect("a thread");
    assert_eq!(own.creds.as_ref().expect("asked for").no_new_privs, None);
    assert_eq!((filters.len(), own.seccomp_filter), (2, Some(1)));
}

#[test]
fn a_dump_leaves_no_trace() {
    let _turn = TURN.lock().unwrap_or_else(|broken| broken.into_inner());
    let subject = Subject::start(&["FILTERED"]);
    let (first, _) = dump(&subject);
    let (second, _) = dump(&subject);
    for (first, second) in first.iter().zip(&second) {
        let (first, second) = (comparable(first), comparable(second));
        assert_eq!(differences(&first, &second), [""; 0]);
    }
}
