//! Everything this kernel prints about every process it runs is understood. Processes may come and go meanwhile, and
//! some files may be forbidden to us: only malformed text is a failure.

use criu_proc::*;
use nix::unistd::Pid;

fn check<T>(pid: Pid, what: Result<T, Error>) -> Option<T> {
    if let Err(Error::Malformed(error)) = &what {
        panic!("{pid}: {error}");
    }
    what.ok()
}

fn check_text<T>(pid: Pid, what: Result<T, ParseError>) -> T {
    what.unwrap_or_else(|error| panic!("{pid}: {error}"))
}

#[test]
fn every_process() {
    let names = std::fs::read_dir("/proc")
        .expect("proc is mounted")
        .flatten()
        .map(|entry| entry.file_name());
    let pids: Vec<i32> = names
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect();
    let mut seen = 0;
    for pid in pids.into_iter().map(Pid::from_raw) {
        let Some(task) = check(pid, ProcDir::open(pid)) else {
            continue;
        };
        seen += 1;
        check(pid, task.stat());
        check(pid, task.status());
        check(pid, task.mountinfo());
        check(pid, task.limits());
        check(pid, task.timers());
        check(pid, task.cgroups());
        check(pid, task.uid_map());
        check(pid, task.gid_map());
        check(pid, task.children());
        for kind in NsKind::ALL {
            assert!(check(pid, task.ns(kind.name())).is_none_or(|link| link.kind == kind));
        }
        for fd in check(pid, task.fds()).unwrap_or_default() {
            check(pid, task.fdinfo(fd));
        }
        for tid in check(pid, task.threads()).unwrap_or_default() {
            check(pid, task.thread(tid).and_then(|thread| thread.stat()));
        }
        if let Ok(maps) = task.read("maps") {
            Vmas::new(&maps).for_each(|vma| drop(check_text(pid, vma)));
        }
        if let Ok(smaps) = task.read("smaps") {
            for smap in Smaps::new(&smaps) {
                assert_eq!(
                    check_text(pid, smap).flags.unknown,
                    Vec::<[u8; 2]>::new(),
                    "{pid}: flags"
                );
            }
        }
        if let Ok(text) = task.read("syscall") {
            check_text(pid, syscall(&text));
        }
        if let Ok(text) = task.read("autogroup") {
            check_text(pid, autogroup(&text));
        }
        // Empty if the process has ended between the two.
        if let Ok(text) = task.read("timens_offsets")
            && !text.is_empty()
        {
            check_text(pid, timens_offsets(&text));
        }
        if let Ok(text) = task.read("oom_score_adj") {
            check_text(pid, dec::<i16>("oom_score_adj", &text));
        }
        if let Ok(text) = task.read("timerslack_ns") {
            check_text(pid, dec::<u64>("timerslack_ns", &text));
        }
        if let Ok(text) = task.read("personality") {
            check_text(pid, hex::<u32>("personality", &text));
        }
    }
    assert!(seen > 0);
    check_text(
        Pid::this(),
        locks(&std::fs::read("/proc/locks").expect("it is there")),
    );
}
