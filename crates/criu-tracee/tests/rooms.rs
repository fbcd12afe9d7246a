//! Threads have little room for programs, and borrow their leader's for what does not fit.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use criu_tracee::{Job, Program, Tracee, run_all};
use nix::unistd::Pid;

const SCRIPT: &str = "import threading, time
for _ in range(2): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print('ready', flush=True)
time.sleep(1000)";

#[test]
fn what_does_not_fit_goes_on_alone() {
    let mut child = Command::new("python3")
        .args(["-c", SCRIPT])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 runs");
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    output.read_line(&mut line).expect("text");
    let mut tracees = vec![Tracee::seize(Pid::from_raw(child.id().cast_signed())).expect("seize")];
    let mut program = Program::new();
    let tid = program.gettid();
    let name = program.cstr("large");
    let file = program.memfd_create(name, 0);
    let content: Vec<u8> = (0..60_000u32)
        .flat_map(u32::to_ne_bytes)
        .take(60_000)
        .collect();
    let text = program.bytes(content.clone());
    let written = program.write(file, text, content.len());
    let back = program.room(content.len());
    program.pread64(file, back, content.len(), 0);
    program.close(file);
    let job = |thread| Job {
        tracee: 0,
        thread,
        program: &program,
    };
    let outcomes = run_all(&mut tracees, &[job(1), job(0), job(2)]).expect("run");
    for (outcome, thread) in outcomes.iter().zip([1, 0, 2]) {
        let own = tracees[0].threads()[thread].tid().as_raw();
        assert_eq!(outcome.value(tid), i64::from(own));
        assert_eq!(outcome.value(written), 60_000);
        assert_eq!(outcome.bytes(back), content);
    }
    drop(tracees);
    child.kill().expect("our child");
    child.wait().expect("our child");
}
