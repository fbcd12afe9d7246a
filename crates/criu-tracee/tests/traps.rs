//! The traps of driving somebody else's task, each provoked. The numbers are those of the design notes.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use criu_tracee::{Job, Program, Site, Sysno, Tracee, run_all};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PRELUDE: &str = r#"
import ctypes, errno, os, select, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def call(nr, *args):
    got = libc.syscall(nr, *[a if not isinstance(a, int) else ctypes.c_long(a) for a in args])
    return got if got >= 0 else -ctypes.get_errno()
def timespec(seconds):
    return ctypes.create_string_buffer(struct.pack('qq', int(seconds), int(seconds % 1 * 1e9)))
def gone(rmid):
    "Runs rmid when this process is gone."
    r, w = os.pipe()
    if os.fork() == 0:
        os.close(w); os.close(1); os.read(r, 1); rmid(); os._exit(0)
    os.close(r)
def bits(*signals):
    return ctypes.create_string_buffer(struct.pack('Q', sum(1 << s - 1 for s in signals)))
"#;

/// A Python program that prints "ready" when it has set the trap.
struct Prey {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Prey {
    fn start(script: &str) -> Self {
        let mut child = Command::new("python3")
            .args(["-uc", &format!("{PRELUDE}\n{script}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut prey = Self { child, lines };
        assert_eq!(prey.line(), "ready");
        prey
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("a line").expect("text")
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.pid())).expect("it lives")
    }

    fn status(&self, name: &str) -> String {
        let status = self.file("status");
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.expect("such a line")
            .trim_start_matches(':')
            .trim()
            .to_owned()
    }

    /// The call it sleeps in, once it sleeps.
    fn call(&self) -> Option<u64> {
        for _ in 0..400 {
            let text = self.file("syscall");
            let nr = text.split_ascii_whitespace().next();
            match nr.and_then(|nr| nr.parse().ok()) {
                Some(nr) if self.status("State").starts_with('S') => return Some(nr),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        None
    }

    /// Whether it comes into such a state.
    fn becomes(&self, state: &str) -> bool {
        (0..400).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            self.status("State").starts_with(state)
        })
    }

    /// Seizes it, has every thread make a call, and lets it go.
    fn visit(&self) {
        let mut tracees = vec![Tracee::seize(self.pid()).expect("seize")];
        let mut program = Program::new();
        program.call(Sysno::getpid, []);
        let jobs: Vec<Job<'_>> = (0..tracees[0].threads().len())
            .map(|thread| Job {
                tracee: 0,
                thread,
                program: &program,
            })
            .collect();
        run_all(&mut tracees, &jobs).expect("run");
        tracees.remove(0).release().expect("release");
    }
}

impl Drop for Prey {
    fn drop(&mut self) {
        self.child.kill().ok();
        // Its tracer may have taken its status: that is us, too.
        self.child.wait().ok();
    }
}

#[test]
fn trap_2_sigtrap_stays_ignored_blocked_and_handled() {
    for set in [
        "signal.signal(signal.SIGTRAP, signal.SIG_IGN)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTRAP])",
        "signal.signal(signal.SIGTRAP, lambda *_: 0)",
    ] {
        let prey = Prey::start(&format!("{set}\nprint('ready')\ntime.sleep(100)"));
        let of = |prey: &Prey| ["SigBlk", "SigIgn", "SigCgt"].map(|set| prey.status(set));
        let before = of(&prey);
        prey.visit();
        assert_eq!(of(&prey), before, "{set}");
    }
}

#[test]
fn trap_3_a_sigstop_in_the_middle_of_a_batch_comes_afterwards() {
    let prey = Prey::start("print('ready')\ntime.sleep(100)");
    let pid = prey.pid();
    let mut tracee = Tracee::seize(pid).expect("seize");
    let mut program = Program::new();
    let length = program.bytes([0u64, 300_000_000].map(u64::to_ne_bytes).concat());
    program.call(Sysno::nanosleep, [length.into()]);
    let last = program.call(Sysno::getpid, []);
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        kill(pid, Signal::SIGSTOP).expect("kill");
    });
    // It is interrupted by the stop and may be told so; the batch is not lost.
    program.tolerate();
    let outcome = tracee.run(&program);
    stopper.join().expect("no panic");
    if let Ok(outcome) = outcome {
        assert_eq!(outcome.value(last), i64::from(pid.as_raw()));
    }
    tracee.release().expect("release");
    assert!(prey.becomes("T"), "{}", prey.status("State"));
    kill(pid, Signal::SIGCONT).expect("kill");
    assert!(prey.becomes("S"));
}

/// Name, number, and how to get into the call.
const RESTARTABLE: &[(&str, u64, &str)] = &[
    (
        "futex",
        202,
        "w = ctypes.c_int(0); call(202, ctypes.byref(w), 128, 0, 0)",
    ),
    (
        "futex with a timeout",
        202,
        "w = ctypes.c_int(0); call(202, ctypes.byref(w), 128, 0, timespec(100))",
    ),
    (
        "read",
        0,
        "r, w = os.pipe(); b = ctypes.create_string_buffer(1); call(0, r, b, 1)",
    ),
    (
        "accept",
        43,
        "s = socket.socket(socket.AF_UNIX); s.bind('\\0' + str(os.getpid())); s.listen(); call(43, s.fileno(), 0, 0)",
    ),
    (
        "flock",
        73,
        "f = os.memfd_create('a'); g = os.open(f'/proc/self/fd/{f}', os.O_RDWR); call(73, f, 2); call(73, g, 2)",
    ),
    ("pause", 34, "call(34)"),
    (
        "clock_nanosleep, absolute",
        230,
        "call(230, 1, 1, timespec(time.monotonic() + 100), 0)",
    ),
    ("clock_nanosleep", 230, "call(230, 1, 0, timespec(100), 0)"),
    ("nanosleep", 35, "call(35, timespec(100), 0)"),
    ("ppoll", 271, "call(271, 0, 0, timespec(100), 0, 8)"),
    ("poll", 7, "call(7, 0, 0, 100000)"),
    ("poll for ever", 7, "call(7, 0, 0, -1)"),
    ("select", 23, "call(23, 0, 0, 0, 0, 0)"),
    ("rt_sigsuspend", 130, "call(130, bits(10), 8)"),
    (
        "msgrcv",
        70,
        "q = call(68, 0, 0o600); gone(lambda: call(71, q, 0, 0)); b = ctypes.create_string_buffer(64); call(70, q, b, 8, 0, 0)",
    ),
    (
        "wait4",
        61,
        "p = os.fork()\nif p == 0: time.sleep(3); os._exit(0)\ncall(61, p, 0, 0, 0)",
    ),
    (
        "epoll_wait",
        232,
        "e = select.epoll(); b = ctypes.create_string_buffer(12); call(232, e.fileno(), b, 1, -1)",
    ),
    (
        "epoll_pwait with a timeout",
        281,
        "e = select.epoll(); b = ctypes.create_string_buffer(12); call(281, e.fileno(), b, 1, 100000, bits(10), 8)",
    ),
    (
        "rt_sigtimedwait",
        128,
        "call(128, bits(10), 0, timespec(100), 8)",
    ),
    (
        "rt_sigtimedwait for ever",
        128,
        "call(128, bits(10), 0, 0, 8)",
    ),
    (
        "semop",
        65,
        "s = call(64, 0, 1, 0o600); gone(lambda: call(66, s, 0, 0, 0)); call(65, s, ctypes.create_string_buffer(struct.pack('HhH', 0, -1, 0)), 1)",
    ),
    (
        "recv with SO_RCVTIMEO",
        45,
        "a, c = socket.socketpair(); a.setsockopt(1, 20, struct.pack('qq', 100, 0)); b = ctypes.create_string_buffer(1); call(45, a.fileno(), b, 1, 0, 0, 0)",
    ),
];

#[test]
fn trap_4_every_interrupted_call_goes_on() {
    const RESTART_SYSCALL: u64 = 219;
    for (name, number, enter) in RESTARTABLE {
        let mut prey = Prey::start(&format!("print('ready')\n{enter}\nprint('over')"));
        assert_eq!(prey.call(), Some(*number), "{name}");
        for _ in 0..3 {
            prey.visit();
            let now = prey.call();
            assert!(
                now == Some(*number) || now == Some(RESTART_SYSCALL),
                "{name}: {now:?}"
            );
        }
        // What it made of System V is removed by a child that waits for its end.
        if *name == "wait4" {
            assert_eq!(prey.line(), "over");
        }
    }
}

#[test]
fn trap_4_a_timeout_is_not_started_anew() {
    for enter in [
        "e = select.epoll(); b = ctypes.create_string_buffer(12); r = call(232, e.fileno(), b, 1, 800)",
        "call(128, bits(10), 0, timespec(0.8), 8)",
        "call(7, 0, 0, 800)",
        "call(35, timespec(0.8), 0)",
    ] {
        let script = format!(
            "print('ready')\nt = time.monotonic()\n{enter}\nprint(int(1000 * (time.monotonic() - t)))"
        );
        let mut prey = Prey::start(&script);
        prey.call();
        let begun = Instant::now();
        std::thread::sleep(Duration::from_millis(600));
        prey.visit();
        prey.visit();
        let left = u64::try_from(begun.elapsed().as_millis()).expect("no ages");
        let took: u64 = prey.line().parse().expect("milliseconds");
        assert!(took >= 799, "{enter}: {took} ms");
        // Started anew it would take 800 from then on.
        assert!(
            took < left + 700,
            "{enter}: {took} ms, left after {left} ms"
        );
    }
}

#[test]
fn trap_4_a_handler_that_runs_ends_the_call() {
    let mut prey = Prey::start(
        "signal.signal(10, lambda *_: None)\n\
         e = select.epoll(); b = ctypes.create_string_buffer(12)\n\
         print('ready')\nprint(call(232, e.fileno(), b, 1, -1))",
    );
    assert_eq!(prey.call(), Some(232));
    let mut tracee = Tracee::seize(prey.pid()).expect("seize");
    let mut program = Program::new();
    program.call(Sysno::getpid, []);
    tracee.run(&program).expect("run");
    kill(prey.pid(), Signal::SIGUSR1).expect("kill");
    tracee.release().expect("release");
    assert_eq!(prey.line(), "-4");
}

#[test]
fn trap_5_threads_go_on_in_their_own_registers() {
    let mut prey = Prey::start(
        "n = [0] * 8\n\
         def work(i):\n    while True: n[i] += 1; time.sleep(0.001)\n\
         [threading.Thread(target=work, args=(i,), daemon=True).start() for i in range(8)]\n\
         print('ready')\ntime.sleep(2)\na = list(n)\ntime.sleep(1)\nprint(all(x > y for x, y in zip(n, a)))",
    );
    for _ in 0..10 {
        prey.visit();
    }
    assert_eq!(prey.line(), "True");
}

#[test]
fn trap_6_an_error_on_the_way_leaves_the_task_as_it_was() {
    let mut prey = Prey::start(
        "threading.Thread(target=time.sleep, args=(100,), daemon=True).start()\n\
         print('ready')\ntime.sleep(1)\nprint('well')",
    );
    let maps = prey.file("maps");
    let mut failing = Program::new();
    failing.close(-1);
    let mut fine = Program::new();
    fine.call(Sysno::getpid, []);
    // In the first thread, in another, and in one of two that run at once.
    for jobs in [
        &[(0, &failing)][..],
        &[(1, &failing)],
        &[(0, &fine), (1, &failing)],
    ] {
        let mut tracees = vec![Tracee::seize(prey.pid()).expect("seize")];
        let jobs: Vec<Job<'_>> = jobs
            .iter()
            .map(|(thread, program)| Job {
                tracee: 0,
                thread: *thread,
                program,
            })
            .collect();
        let error = run_all(&mut tracees, &jobs).expect_err("EBADF");
        assert_eq!(error.errno(), Some(nix::errno::Errno::EBADF));
        drop(tracees);
        assert_eq!(prey.file("maps"), maps);
    }
    assert_eq!(prey.line(), "well");
}

#[test]
fn trap_14_threads_that_are_killed_do_not_keep_their_leader() {
    let mut prey = Prey::start(
        "[threading.Thread(target=time.sleep, args=(100,), daemon=True).start() for i in range(8)]\n\
         print('ready')\ntime.sleep(100)",
    );
    let tracee = Tracee::seize(prey.pid()).expect("seize");
    assert_eq!(tracee.threads().len(), 9);
    tracee.kill().expect("kill");
    let until = Instant::now() + Duration::from_secs(5);
    // Its parent and its tracer are the same here, so its status may have been taken already.
    while matches!(prey.child.try_wait(), Ok(None)) {
        assert!(Instant::now() < until, "the leader cannot be reaped");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const REAL_TIME: i32 = 35;

#[test]
fn trap_15_signals_that_come_while_a_task_is_held_come_once() {
    let mut prey = Prey::start(
        // Python calls a handler once for many signals; the pipe gets a byte for each.
        "r, w = os.pipe(); os.set_blocking(r, False); os.set_blocking(w, False); signal.set_wakeup_fd(w)\n\
         signal.signal(35, lambda *_: None)\nsignal.signal(10, lambda *_: None)\n\
         print('ready')\ntime.sleep(2)\nprint(len(os.read(r, 100)))",
    );
    let mut tracee = Tracee::seize(prey.pid()).expect("seize");
    let mut program = Program::new();
    program.call(Sysno::getpid, []);
    for _ in 0..3 {
        tracee.run(&program).expect("run");
        // A real-time signal queues, the other does not.
        for signal in [REAL_TIME, Signal::SIGUSR1 as i32] {
            let sent = Command::new("kill")
                .args([&format!("-{signal}"), &prey.pid().to_string()])
                .status();
            assert!(sent.expect("kill runs").success());
        }
    }
    tracee.run(&program).expect("run");
    tracee.release().expect("release");
    assert_eq!(prey.line(), "4");
}

#[test]
fn trap_19_a_task_that_is_traced_already_is_refused() {
    let prey = Prey::start("print('ready')\ntime.sleep(100)");
    let first = Tracee::seize(prey.pid()).expect("seize");
    // A tracer is a thread, so a second one in this process is somebody else.
    let pid = prey.pid();
    let refused = std::thread::spawn(move || Tracee::seize(pid).map(drop))
        .join()
        .expect("no panic")
        .expect_err("one tracer at a time");
    assert!(
        matches!(refused, criu_tracee::Error::Traced { pid: who, .. } if who == pid),
        "{refused}"
    );
    first.release().expect("release");
    Tracee::seize(pid)
        .and_then(Tracee::release)
        .expect("it is free again");
}

#[test]
fn trap_19_children_that_are_not_held_are_left_to_who_waits_for_them() {
    let prey = Prey::start("print('ready')\ntime.sleep(100)");
    let mut tracee = Tracee::seize(prey.pid()).expect("seize");
    let mut program = Program::new();
    program.call(Sysno::getpid, []);
    for status in 0..20 {
        let mut other = Command::new("sh")
            .args(["-c", &format!("exit {status}")])
            .spawn()
            .expect("sh runs");
        // While it ends, batches wait for theirs.
        for _ in 0..5 {
            tracee.run(&program).expect("run");
        }
        let ended = other.wait().expect("it is still ours to wait for");
        assert_eq!(ended.code(), Some(status));
    }
    tracee.release().expect("release");
}
