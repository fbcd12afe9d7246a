//! One held task of this machine.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use criu_tracee::{Job, Program, Site, Sysno, Tracee, run_all};
use nix::unistd::Pid;

struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(
            Command::new("sleep")
                .arg("1000")
                .stdin(Stdio::null())
                .spawn()
                .expect("sleep runs"),
        )
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }

    fn maps(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/maps", self.pid())).expect("it lives")
    }

    /// Whether it comes to sleep again: it may need a moment to restart its call.
    fn sleeps(&self) -> bool {
        (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
            status
                .expect("it lives")
                .lines()
                .any(|line| line.starts_with("State:\tS"))
        })
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().expect("our child");
        self.0.wait().expect("our child");
    }
}

#[test]
fn a_visited_task_keeps_nothing_of_the_visit() {
    let sleeper = Sleeper::start();
    std::thread::sleep(std::time::Duration::from_millis(50));
    let before = sleeper.maps();
    for _ in 0..3 {
        let mut tracee = Tracee::seize(sleeper.pid()).expect("seize");
        let mut program = Program::new();
        let pid = program.getpid();
        let fd = program.eventfd2(0, 0);
        let value = program.bytes(7u64.to_ne_bytes());
        program.write(fd, value, 8);
        let back = program.room(8);
        program.read(fd, back, 8);
        program.close(fd);
        let outcome = tracee.run(&program).expect("run");
        assert_eq!(outcome.value(pid), i64::from(sleeper.pid().as_raw()));
        assert_eq!(outcome.bytes(back), 7u64.to_ne_bytes());
        tracee.release().expect("release");
        assert_eq!(sleeper.maps(), before);
        assert!(sleeper.sleeps());
    }
}

#[test]
fn the_first_failure_ends_a_program() {
    let sleeper = Sleeper::start();
    let mut tracee = Tracee::seize(sleeper.pid()).expect("seize");
    let mut program = Program::new();
    program.close(-1);
    program.exit_group(1);
    let error = tracee.run(&program).expect_err("EBADF");
    assert_eq!(error.errno(), Some(nix::errno::Errno::EBADF));
    drop(tracee);
    assert!(sleeper.sleeps());
}

#[test]
fn programs_larger_than_the_room_are_cut() {
    let sleeper = Sleeper::start();
    let mut tracee = Tracee::seize(sleeper.pid()).expect("seize");
    let mut program = Program::new();
    let fd = program.eventfd2(0, 0);
    let mut last = fd;
    for i in 0..5000u64 {
        let value = program.bytes(i.to_ne_bytes());
        last = program.write(fd, value, 8);
    }
    program.close(fd);
    let outcome = tracee.run(&program).expect("run");
    assert_eq!(outcome.value(last), 8);
}

#[test]
fn many_tasks_work_side_by_side() {
    let sleepers: Vec<Sleeper> = (0..8).map(|_| Sleeper::start()).collect();
    let pids: Vec<Pid> = sleepers.iter().map(Sleeper::pid).collect();
    let mut tracees = Tracee::seize_all(&pids, None).expect("seize");
    let mut program = Program::new();
    let pid = program.call(Sysno::getpid, []);
    let jobs: Vec<Job<'_>> = (0..8)
        .map(|tracee| Job {
            tracee,
            thread: 0,
            program: &program,
        })
        .collect();
    let outcomes = run_all(&mut tracees, &jobs).expect("run");
    for (outcome, tracee) in outcomes.iter().zip(&tracees) {
        assert_eq!(outcome.value(pid), i64::from(tracee.pid().as_raw()));
    }
}

/// The tracer is killed in the middle of a batch and between batches: the task goes on.
#[test]
fn a_task_whose_tracer_dies_heals_itself() {
    for held_in_batch in [false, true] {
        let mut child = Command::new(std::env::current_exe().expect("we run"))
            .args(["--exact", "--ignored", "--nocapture", "play_a_worker"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a second process");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut said = |word| lines.any(|line| line.expect("text").ends_with(word));
        assert!(said("ready"));
        let before = fds(child.id());
        let tracer = Command::new(std::env::current_exe().expect("we run"))
            .args(["--exact", "--ignored", "play_a_tracer_that_hangs"])
            .env("TRACEE", child.id().to_string())
            .env("IN_BATCH", if held_in_batch { "1" } else { "0" })
            .stdout(Stdio::null())
            .spawn();
        let mut tracer = tracer.expect("a second tracer");
        std::thread::sleep(std::time::Duration::from_millis(500));
        tracer.kill().expect("our child");
        tracer.wait().expect("our child");
        std::thread::sleep(std::time::Duration::from_millis(1300));
        assert_eq!(
            fds(child.id()),
            before,
            "a descriptor of ours stayed behind"
        );
        assert!(said("done"));
        assert!(child.wait().expect("our child").success());
    }
}

/// Not a test by itself: the task of the one above. It sleeps, and computes what must come out.
#[test]
#[ignore = "run by a_task_whose_tracer_dies_heals_itself"]
fn play_a_worker() {
    println!("ready");
    let (mut whole, mut real) = (0u64, 0f64);
    for round in 0..300u64 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        let begun = std::time::Instant::now();
        while begun.elapsed() < std::time::Duration::from_millis(5) {}
        whole = whole.wrapping_mul(6_364_136_223_846_793_005) ^ round;
        real = real * 0.5 + 1.0;
    }
    let again = (0..300u64).fold(0u64, |all, round| {
        all.wrapping_mul(6_364_136_223_846_793_005) ^ round
    });
    assert_eq!((whole, real.round()), (again, 2.0));
    println!("done");
}

fn fds(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("it lives")
        .count()
}

fn nap() -> Program {
    let mut program = Program::new();
    let second = program.bytes([1u64.to_ne_bytes(), 0u64.to_ne_bytes()].concat());
    program.call(Sysno::nanosleep, [second.into(), 0.into()]);
    program
}

/// Not a test by itself: the second process of the one above.
#[test]
#[ignore = "run by a_task_whose_tracer_dies_heals_itself"]
fn play_a_tracer_that_hangs() {
    let pid: i32 = std::env::var("TRACEE")
        .expect("set")
        .parse()
        .expect("a pid");
    let mut tracee = Tracee::seize(Pid::from_raw(pid)).expect("seize");
    let mut program = Program::new();
    program.getpid();
    let left_open = program.eventfd2(0, 0);
    let outcome = tracee.run(&program).expect("run");
    let mut undo = Program::new();
    undo.close(outcome.fd(left_open));
    tracee.set_undo(Some(&undo)).expect("set_undo");
    if std::env::var("IN_BATCH").expect("set") == "1" {
        tracee.run(&nap()).expect("run");
    }
    loop {
        std::thread::park();
    }
}
